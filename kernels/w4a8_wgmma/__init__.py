"""W4A8 on Hopper: int4 weights dequantised to 8 bits in registers, times 8-bit rows of x."""
