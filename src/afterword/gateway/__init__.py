"""Engines in front of other servers (upstreams): transport, dialects, vocabularies, pools."""
