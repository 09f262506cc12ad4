"""How a model leaves: merged into one folder, as a GGUF file, to a hub."""
