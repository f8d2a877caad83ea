"""Values that everybody may know: the wire's shapes, jobs and events, protocols, errors."""
