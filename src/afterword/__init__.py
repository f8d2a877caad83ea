"""Afterword, the completions server: the whole of ``POST /v1/completions``, on real models."""

__version__ = "0.1.0"
