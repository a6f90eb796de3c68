"""Iterated online RLHF: rounds of sampling, comparing, fitting the reward model, reinforcing, each resumable."""
