"""How a model of the library comes to be: from a name, from settings, or from a server."""

from __future__ import annotations

import weakref
from os import PathLike
from typing import Any, NoReturn, Self

import msgspec

from afterword.config import EMBEDDED_MODEL, Settings
from afterword.library.backend import Opener
from afterword.library.calls import Calls
from afterword.library.opening import opener_for, settings_for
from afterword.library.session import Session

TIMEOUT_S = 600.0
"""How long a server may be silent."""


class OpenedModel:
    """What ``LLM`` and ``AsyncLLM`` share: a session that begins to open at once."""

    def __init__(
        self,
        model: str | PathLike[str] = EMBEDDED_MODEL,
        /,
        **settings: Any,  # noqa: ANN401 - of many types
    ) -> None:
        self._start(opener_for(settings_for(model, settings)))

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Self:
        """Returns a model of the Afterword server at ``url``; without ``model`` its first one.

        ``key`` is sent as ``Authorization: Bearer``. Raises ``ConfigError`` for an address that is
        none, and ``ApiError`` if the server cannot be reached or refuses. With ``AsyncLLM`` the
        first call raises the latter.
        """
        from afterword.library.remote import connecting  # noqa: PLC0415 - a client of HTTP

        return cls.opened_by(connecting(url, key=key, model=model, timeout_s=timeout_s))

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Returns the models of some settings; requests without ``model`` mean the first one.

        Raises ``ConfigError``.
        """
        return cls.opened_by(opener_for(msgspec.structs.replace(settings, require_model=False)))

    @classmethod
    def opened_by(cls, opener: Opener) -> Self:
        """Returns the model of a backend that ``opener`` opens. Raises what opening raises."""
        made = cls.__new__(cls)
        made._start(opener)  # noqa: SLF001 - its own
        return made

    def __reduce__(self) -> NoReturn:
        """Raises ``TypeError``: another process opens a model itself."""
        raise TypeError("a model cannot be pickled: open it in the process that uses it")

    def _start(self, opener: Opener) -> None:
        self._session = Session(opener)
        # A model that is dropped is freed, too. The collector must not wait for it.
        weakref.finalize(self, self._session.leave).atexit = False
        self._calls = Calls(self._session.ready)
