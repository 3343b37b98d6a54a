"""A detector of races by happens-before, over what the interpreter runs."""
