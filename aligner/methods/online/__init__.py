"""Online iterative preference optimization: rounds of sampling, scoring, pairing and training."""
