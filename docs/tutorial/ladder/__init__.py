"""One int4 GEMM, written nine times; each file adds one idea to the one before it."""
