"""Sources of models, the store of models on this machine, and the headers of GGUF files."""
