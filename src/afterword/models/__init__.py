"""Where models come from, where they are kept, and what a GGUF file says of itself."""
