"""Bytes in, bytes out: the ASGI application."""
