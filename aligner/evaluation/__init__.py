"""What turns a model into numbers; start at `evaluate.py`."""
