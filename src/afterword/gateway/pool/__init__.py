"""Several servers of one model: health, routing, attempts."""
