"""A layer of experts for few tokens: weights to registers, stripes over all experts."""
