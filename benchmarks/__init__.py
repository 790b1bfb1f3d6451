"""Benchmarks: one question per file, every provider in one table, pairs interleaved in one run."""
