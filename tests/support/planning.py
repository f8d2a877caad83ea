"""Plans and generations without an engine that computes them."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any, Self

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.limits import Limits


def toy_service(engine: Any) -> CompletionService:
    """A service of one model, ``toy``, whose ids and seeds are the same each time."""
    return CompletionService(
        Catalog([ServedModel("toy", engine, 0)]),
        Limits(),
        clock=lambda: 0.0,
        entropy=random.Random(1).randbytes,
    )


class NothingToLeave:
    """A generation that holds nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """There is nothing to leave."""
