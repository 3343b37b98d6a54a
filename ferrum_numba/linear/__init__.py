"""Quantised linear layers on torch, CuPy and NumPy arrays: dense ones, and stacks of experts."""
