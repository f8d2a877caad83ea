"""Settings, each declared once. Flags, documents and ``--print-config`` are made from that."""

from afterword.config.declared import SETTINGS, Setting
from afterword.config.resolving import Resolved, is_model_name, nearest, resolve
from afterword.config.settings import LEGACY_NAME, Settings
from afterword.core.embedded import EMBEDDED_MODEL, EMBEDDED_SOURCE

__all__ = [
    "EMBEDDED_MODEL", "EMBEDDED_SOURCE", "LEGACY_NAME", "SETTINGS",
    "Resolved", "Setting", "Settings", "is_model_name", "nearest", "resolve",
]  # fmt: skip
