"""Self-augmented preference optimization."""
