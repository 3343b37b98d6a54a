"""What to measure, what others measured, and what was measured here."""
