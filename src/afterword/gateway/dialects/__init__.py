"""Dialects of upstreams: one file for each kind of server, and what they share."""
