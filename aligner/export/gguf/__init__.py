"""GGUF files, the format of llama.cpp and Ollama: written, read back and compared."""
