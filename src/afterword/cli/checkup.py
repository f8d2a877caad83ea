"""Checks a server's surroundings: cores, files, disk, port, ledger, Redis."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Sequence

import msgspec

from afterword.cli.database import database
from afterword.cli.files import files_each, files_needed
from afterword.cli.ledger import data_folder, ledger_place, without_password
from afterword.cli.sockets import bind, is_loopback, load_tls
from afterword.config import Settings
from afterword.core.errors import ConfigError
from afterword.core.machine import processor_features, usable_cores
from afterword.engine.llama.devices import backends, devices, searched
from afterword.ledger.audit import check
from afterword.ledger.database import REVISION, reading, revision_of
from afterword.ledger.folder import has_database, journals_in
from afterword.ledger.keys import any_key
from afterword.ledger.open_ledger import redis_limiter
from afterword.ledger.orphans import unreadable

_GIB = 2**30
_INSTRUCTIONS = ("avx2", "f16c", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile",
                 "asimd", "asimddp", "i8mm", "sve")  # fmt: skip
_LEAST_FREE_BYTES = 2 * _GIB


class Finding(msgspec.Struct, frozen=True):
    """One row. ``change`` says what to do; ``fatal``: a server would not start."""

    name: str
    text: str
    change: str | None = None
    fatal: bool = False


def instructions() -> Sequence[str]:
    """Returns the vector instructions of this processor that matrix kernels use."""
    has = processor_features()
    return [name for name in _INSTRUCTIONS if name in has]


def gpus() -> str:
    """Returns the GPUs that the native half finds, with their memory, in one line."""
    kinds = backends()
    if not kinds:
        return "none: this native half is for the processor alone (GPU=vulkan make install)"
    found = [
        f"{device.name} ({device.description}), {device.free_bytes / _GIB:.1f} of "
        f"{device.total_bytes / _GIB:.1f} GiB free"
        for device in devices()
    ]
    return "; ".join(found) or f"none found for {searched()}"


def surroundings(settings: Settings) -> Iterator[Finding]:
    """Everything but the models, in the order of a server's start."""
    yield _threads(settings)
    yield _files(settings)
    yield _disk(settings)
    yield _port(settings)
    yield from _ledger(settings)
    if settings.redis is not None:
        yield _redis(settings.redis)


def _threads(settings: Settings) -> Finding:
    cores = usable_cores()
    busy = os.getloadavg()[0]
    change = None
    if (settings.threads or cores) > cores:
        change = f"--threads {cores}: more threads than cores wait for each other"
    elif busy > cores / 2:
        change = f"other programs keep {busy:.1f} of {cores} cores busy: steps will take longer"
    return Finding("load", f"{busy:.1f} of {cores} cores", change)


def _files(settings: Settings) -> Finding:
    # The server raises the soft limit itself.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_needed(settings.max_connections, files_each(settings.models.values()))
    if most == resource.RLIM_INFINITY:
        return Finding("open files", "no limit")
    change = None
    if most < needed:
        change = f"ulimit -n {needed}: {settings.max_connections} connections need so many files"
    return Finding("open files", f"{most} at most", change)


def _disk(settings: Settings) -> Finding:
    folder = data_folder(settings)
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        where = "--data-dir: name a folder that can be written to"
        return Finding("data folder", f"{folder}: cannot be written to", where, fatal=True)
    change = None
    if free < _LEAST_FREE_BYTES:
        change = "free some disk: when it is full, requests are refused"
    return Finding("data folder", f"{folder.absolute()}: {free / _GIB:.1f} GiB free", change)


def _port(settings: Settings) -> Finding:
    where = f"{settings.host} port {settings.port}"
    try:
        load_tls(settings.certfile, settings.keyfile)
        with bind(settings.host, settings.port, reuse_port=settings.reuse_port) as bound:
            here = is_loopback(bound)
    except ConfigError as error:
        # This server may already run there.
        return Finding("port", f"{where}: cannot be used", str(error))
    change = None
    if not here and settings.certfile is None:
        change = "--certfile, or a proxy with TLS: keys cross the network readable"
    return Finding("port", f"{where}: free{'' if here else ', open to other machines'}", change)


def _ledger(settings: Settings) -> Iterator[Finding]:
    if settings.database is None and not has_database(data_folder(settings)):
        # Opening it would make the file.
        yield _other_time(f"sqlite, {ledger_place(settings)}", None)
        return
    try:
        with database(settings, prepared=False) as engine:
            kind = f"{engine.dialect.name}, {ledger_place(settings)}"
            found = revision_of(engine)
            if found != REVISION:
                yield _other_time(kind, found)
                return
            wrong = check(engine) + unreadable(journals_in(data_folder(settings)))
            change = f"run `afterword db check`: {wrong[0]}" if wrong else None
            state = f"{len(wrong)} things do not agree" if wrong else "whole"
            yield Finding("ledger", f"{kind}, {state}", change)
            with reading(engine) as connection:
                made = any_key(connection)
    except ConfigError as error:
        yield Finding("ledger", "cannot be used", str(error), fatal=True)
        return
    change = None
    if not made:
        change = "run `afterword keys create NAME` before other machines are let in"
    yield Finding("keys", "needed by every request" if made else "none", change)


def _other_time(kind: str, found: str | None) -> Finding:
    if found is None:
        return Finding("ledger", f"{kind}, empty: the server sets it up")
    return Finding("ledger", f"{kind}, at step {found}", "run `afterword db upgrade`", fatal=True)


def _redis(url: str) -> Finding:
    try:
        reachable = redis_limiter(url).answers()
    except ConfigError as error:
        return Finding("redis", "cannot be used", str(error), fatal=True)
    change = None if reachable else "start it, or leave --redis out: limited keys are refused"
    state = "reachable" if reachable else "not reachable"
    return Finding("redis", f"{without_password(url)}: {state}", change)
