"""Training data from battles: which answers are worth learning from, and why."""
