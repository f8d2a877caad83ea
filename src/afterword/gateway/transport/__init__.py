"""The client's side of sockets, HTTP/1.1 and server-sent events."""
