"""Arena Learning: rounds of battles, selection and training."""
