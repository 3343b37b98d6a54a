"""A layer of experts on Hopper: dequantised weights as A of wgmma, rows of x gathered by copies."""
