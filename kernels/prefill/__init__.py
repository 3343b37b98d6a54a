"""Many rows on Hopper: warp-specialised wgmma with dequantised weights as its A operand."""
