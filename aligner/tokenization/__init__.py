"""The only place where text becomes token ids."""
