"""Text completions: decides requests, and folds an engine's events into choices."""
