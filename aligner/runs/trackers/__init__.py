"""Trackers: what a run logs, also in TensorBoard, Trackio, Weights & Biases or MLflow."""
