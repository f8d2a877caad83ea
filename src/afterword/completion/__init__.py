"""What a text completion means: requests decided, events folded into choices."""
