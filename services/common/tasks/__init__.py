"""Small tasks with known optima: data, reward and measure without a model. Numpy and the standard library alone."""
