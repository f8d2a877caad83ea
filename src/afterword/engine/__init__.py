"""How tokens are made: engines, and what they are built from."""
