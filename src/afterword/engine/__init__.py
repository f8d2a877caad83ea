"""Engines that generate tokens, and their parts."""
