"""The learner service: trainable weights, optimiser, and the state of the run."""
