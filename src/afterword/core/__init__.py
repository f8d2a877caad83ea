"""Values that every layer may use: the wire's shapes, jobs and events, protocols, errors."""
