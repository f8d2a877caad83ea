"""Afterword, the completions server: the whole of ``POST /v1/completions``, on real models.

``from afterword import LLM`` is the same in a program, without a server. Names are imported when
they are used, so ``import afterword`` takes no time. ``__init__.pyi`` has their types.
"""

__version__ = "0.1.0"

_PLACES = {
    "LLM": "library.llm",
    "AsyncLLM": "library.async_llm",
    "TextStream": "library.streams",
    "AsyncTextStream": "library.streams",
    "ContinuationScore": "library.answers",
    "TextChoice": "library.answers",
    "TextChunk": "library.answers",
    "TextCompletion": "library.answers",
    "TextScore": "library.answers",
    "plot": "library.plots",
    "create_app": "compose.mounted",
    "Settings": "config.settings",
    "AfterwordError": "core.errors",
    "ApiError": "core.errors",
    "ConfigError": "core.errors",
    "ContextLengthExceeded": "core.errors",
    "EngineOverloaded": "core.errors",
    "EngineUnavailable": "core.errors",
    "InvalidRequest": "core.errors",
    "ModelNotFound": "core.errors",
}
"""Where the public names are."""
__all__ = ["__version__", *_PLACES]  # noqa: PLE0604 - all are strings


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'afterword' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - not for the version alone

    value = getattr(import_module(f"afterword.{place}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
