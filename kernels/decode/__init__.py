"""Few tokens, at the memory's speed: weights straight to registers, as A of mma.sync."""
