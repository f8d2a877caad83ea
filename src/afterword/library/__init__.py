"""The library: a model in this process, or a server, behind one interface."""
