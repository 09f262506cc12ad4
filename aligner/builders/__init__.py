"""Dataset builders: they turn rows into other rows, and train nothing."""
