"""Loads files as models: checks all files first, then loads one after another on a thread."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from afterword.config import Settings
from afterword.core.errors import ConfigError
from afterword.engine.llama.loading import EngineOptions, load
from afterword.gateway.address import is_remote, parse_addresses
from afterword.models.package import Progress
from afterword.models.source import parse_source
from afterword.models.store import ModelFile, Store

if TYPE_CHECKING:
    from afterword.engine.llama.engine import OpenModel


class LocalModel(msgspec.Struct, frozen=True):
    """A file, and the future of the model that the thread makes of it."""

    file: ModelFile
    opened: Future[OpenModel]


class Loading:
    """The models of some settings: addresses of upstreams, and files, which it loads.

    ``probe`` tests each model's batch invariance, once on a machine; ``fresh`` tests again. No
    file is read before ``begin``. Models that are not taken are freed at the end of the block.
    Raises ``ConfigError`` if an address is malformed.
    """

    def __init__(
        self, settings: Settings, progress: Progress, *, probe: bool = True, fresh: bool = False
    ) -> None:
        self.addresses = {
            name: parse_addresses(text) for name, text in settings.models.items() if is_remote(text)
        }
        self._settings = settings
        self._store = Store(settings.models_dir, progress)
        self._probe = probe
        self._notes = None if fresh else self._store.notes
        self._thread = ThreadPoolExecutor(1, "afterword-loading")
        self._models: dict[str, LocalModel] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The library cannot stop a load half-way, so this waits for it.
        self._thread.shutdown(cancel_futures=True)
        for left in (self._models or {}).values():
            if not left.opened.cancelled() and left.opened.exception() is None:
                left.opened.result().runner.close()

    def begin(self) -> None:
        """Fetch and check every file, then start to load. Later calls do nothing.

        Raises ``ConfigError`` if a file cannot be fetched or its header is refused.
        """
        if self._models is not None:
            return
        # A mistake in any file is reported before the first one is loaded.
        names = [name for name in self._settings.models if name not in self.addresses]
        files = {name: checked(self._store, self._settings, name) for name in names}
        self._models = {
            name: LocalModel(file, self._thread.submit(self._open, name, file))
            for name, file in files.items()
        }
        # The thread ends when all models are open.
        self._thread.shutdown(wait=False)

    async def take(self, name: str) -> tuple[Path, OpenModel]:
        """Wait for a model. Returns its file and the model, which the caller now owns.

        Call it after ``begin``. Raises ``ConfigError`` if the model cannot be loaded.
        """
        # Imported here, so that loading starts before asyncio is imported.
        import asyncio  # noqa: PLC0415

        models = self._models or {}
        opened = await asyncio.wrap_future(models[name].opened)
        return models.pop(name).file.path, opened

    def _open(self, name: str, file: ModelFile) -> OpenModel:
        options = self.options
        loaded = load(file.path, options, digest=file.digest, notes=self._notes)
        # Another thread may import this during the load.
        from afterword.engine.llama.engine import open_model  # noqa: PLC0415

        return open_model(
            loaded,
            digest=file.digest,
            name=name,
            options=options,
            notes=self._notes,
        )

    @property
    def options(self) -> EngineOptions:
        """The options of engines that run a file."""
        settings = self._settings
        checkpoint_mib = settings.checkpoint_mib
        return EngineOptions(
            ctx=settings.ctx,
            slots=settings.slots,
            max_sequences=settings.max_sequences,
            kv_bytes=settings.kv_mib * 2**20 if settings.kv_mib is not None else None,
            threads=settings.threads,
            exact=settings.kv == "exact",
            probe=self._probe,
            max_waiting=settings.max_waiting,
            score_cache_bytes=settings.score_cache_mib * 2**20,
            checkpoint_bytes=checkpoint_mib * 2**20 if checkpoint_mib is not None else None,
            target_gap_ms=settings.target_gap_ms,
            prompt_lookup=settings.prompt_lookup,
            gpu_layers=settings.gpu_layers,
            device=settings.device,
            kv_on_gpu=settings.kv_on_gpu,
        )


def checked(store: Store, settings: Settings, name: str) -> ModelFile:
    """Fetch the file of a model and check its header. Returns the file.

    Raises ``ConfigError`` if that fails or ``ctx`` is larger than the model's context.
    """
    file = store.fetch(parse_source(settings.models[name]))
    trained = store.header(file).context_tokens
    if settings.ctx is not None and trained is not None and settings.ctx > trained:
        raise ConfigError(
            f"model {name}: a context of {settings.ctx} tokens is larger than the model's, "
            f"which is {trained}"
        )
    return file
