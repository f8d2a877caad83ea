"""The pool of one model's upstreams: health, routing, attempts."""
