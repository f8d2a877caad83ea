"""Programs that stand in for others in tests: servers, the hub, databases."""
