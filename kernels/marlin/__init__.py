"""Marlin's design: mma.sync, a cp.async ring, equal stripes over the SMs."""
