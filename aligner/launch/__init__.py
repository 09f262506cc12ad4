"""Several processes and several machines: the command that starts them, and what each rank
knows."""
