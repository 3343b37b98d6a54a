"""The general design, on a GPTQ checkpoint's own tensors: any group size, any order of rows."""
