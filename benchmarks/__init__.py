"""Measurements, each one command: `python -m benchmarks.<name>`, JSON as the last line."""
