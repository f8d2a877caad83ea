"""The composition root: settings become engines, a service, an application."""
