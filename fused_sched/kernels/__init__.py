"""The Triton engine's kernels: one skeleton, small rules, small opcodes."""
