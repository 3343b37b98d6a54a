"""W4A8 for few tokens: the weight streamed as `decode` does it, times 8-bit rows of x."""
