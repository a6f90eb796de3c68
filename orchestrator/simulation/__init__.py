"""A discrete-event simulator of the pipeline and its pools: seeded, so the same scenario gives the same run."""
