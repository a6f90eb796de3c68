"""The reward service: reward models and rules behind one scoring API. Knows neither policies nor training."""
