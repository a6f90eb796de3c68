"""Learning from a file alone: no rollouts, no other service. rows.py reads, batches.py deals, the others learn."""
