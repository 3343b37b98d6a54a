"""The PTX vocabulary: every instruction once, as a Numba intrinsic and as NumPy."""
