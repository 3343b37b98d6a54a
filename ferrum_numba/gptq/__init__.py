"""Checkpoints of GPTQ weights, and their way into the layouts of the kernels."""
