"""The policy service: the current policy weights and the engine that generates with them."""
