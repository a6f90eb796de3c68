"""Kills, stalls, partitions and worse, while a run goes on: `make chaos SEED=… MINUTES=…`."""
