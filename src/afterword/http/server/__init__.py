"""The HTTP/1.1 server under the app: sockets in, ASGI out."""
