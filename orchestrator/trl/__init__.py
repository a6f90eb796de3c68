"""Reads a TRL config, data set and reward functions, and writes what they mean here: a run, or a job's command."""
