"""What the compiled kernels hold to, read from machine code: no GPU is needed, Triton is."""
