"""Evaluations of models on tasks in files, through the library."""
