"""Metrics to TensorBoard, Weights & Biases and MLflow: adapters behind one port, none of which can stop a run."""
