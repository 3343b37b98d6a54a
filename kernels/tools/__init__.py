"""What stands before and after a GEMM: repack, gather, bias, and the weight as a plain matrix."""
