"""How much memory a training will take, from the config of its model alone."""
