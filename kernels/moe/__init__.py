"""What stands around the experts' GEMMs: routing, the work list, the gate, the sum."""
