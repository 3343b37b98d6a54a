"""Quantised checkpoints: configs, safetensors files, the tensors of a layer; NumPy, no CUDA."""
