"""9 to 32 tokens on Hopper: weights as the A operand of wgmma, a ring a warpgroup."""
