"""Algorithms, pure: tensors and a frozen config in, results out; no I/O, no clock, no global seed."""
