"""Sockets, HTTP/1.1 and server-sent events, as a client."""
