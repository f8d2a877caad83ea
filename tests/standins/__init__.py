"""Stand-ins for other programs in tests: servers, the hub, databases."""
