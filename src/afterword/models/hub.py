"""Models of the Hugging Face hub, fetched and stored by the hub's own client."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path, PurePosixPath

from afterword.core.errors import ConfigError
from afterword.models.choosing import choose, models_in, named
from afterword.models.parts import expected_parts, part_name
from afterword.models.source import HubChoice, HubSource

_BUSY = (408, 429)
_ITS_FAULT = 500


class Unreachable(ConfigError):
    """The hub does not answer, or not now."""


def chosen_in_cache(choice: HubChoice) -> HubSource | None:
    """Returns the file that the hub would choose, if the cache has it for certain, else None.

    That needs a named quantization or a usual one: for others the whole repository counts.
    """
    file = named(_cached_files(choice), choice.quantization)
    return None if file is None else HubSource(choice.repository, file, choice.revision)


def choose_file(choice: HubChoice) -> HubSource:
    """Ask the hub which file a choice means. Raises ``ConfigError``.

    If the hub cannot be reached, the files in the cache are all that there is.
    """
    name = f"hf:{choice.repository}"
    try:
        files = _files(choice)
    except Unreachable:
        files = _cached_files(choice)
        if not files:
            raise
    file = choose(files, choice.quantization)
    if file is not None:
        return HubSource(choice.repository, file, choice.revision)
    there = models_in(files)
    if not there:
        raise ConfigError(f"{name}: has no GGUF files of models")
    raise ConfigError(f"{name}: has no file for {choice.quantization}; it has {', '.join(there)}")


def _files(choice: HubChoice) -> Sequence[str]:
    """Returns the paths of a repository's files in their order. Raises ``ConfigError``."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - half a second

    with _asking(f"hf:{choice.repository}"):
        return sorted(HfApi().list_repo_files(choice.repository, revision=choice.revision))


def _cached_files(choice: HubChoice) -> Sequence[str]:
    """Returns the paths of the cached files of a repository."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - half a second
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    with _asking(f"hf:{choice.repository}"):
        try:
            folder = Path(
                snapshot_download(
                    choice.repository, revision=choice.revision, local_files_only=True
                )
            )
        except LocalEntryNotFoundError:
            return ()
    return sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*.gguf"))


def find_in_cache(source: HubSource) -> Path | None:
    """Returns the first file of a model if the cache has all its parts, else None.

    Raises ``ConfigError`` if the hub's client refuses a name.
    """
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - half a second

    with _asking(f"hf:{source.repository}/{source.file}"):
        first = try_to_load_from_cache(source.repository, source.file, revision=source.revision)
    if not isinstance(first, str):
        return None
    said = part_name(Path(first).name)
    others = () if said is None else said.all()
    return Path(first) if all(Path(first).with_name(name).is_file() for name in others) else None


def fetch_model(source: HubSource) -> Path:
    """Fetch all parts of a model. Returns its first file.

    Raises ``ConfigError`` if ``source`` is not the first part or the hub does not send a part.
    """
    file = PurePosixPath(source.file)
    said = part_name(file.name)
    if said is None:
        return _fetch_file(source)
    if said.number != 1:
        raise ConfigError(
            f"hf:{source.repository}/{file}: is part {said.number} of {said.count} of a model; "
            f"begin with part 1, {said.of(1)}"
        )
    first = _fetch_file(source)
    # The folder of a snapshot has the commit's name, so all parts come from one commit.
    commit = first.parents[len(file.parts) - 1].name
    for part in expected_parts(first)[1:]:
        name = str(file.with_name(part.name))
        _fetch_file(HubSource(source.repository, name, commit))
    return first


def _fetch_file(source: HubSource) -> Path:
    """Download with the hub's own client, which shows progress and goes on if a connection breaks.

    It keeps nothing of a download that fails. Raises ``ConfigError``.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - half a second

    with _asking(f"hf:{source.repository}/{source.file}"):
        return Path(hf_hub_download(source.repository, source.file, revision=source.revision))


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Turn what the hub's client raises into ``ConfigError`` with one line about ``name``."""
    from httpx2 import HTTPError  # noqa: PLC0415 - the hub's own client has it

    # The client writes to standard error by itself; the log would have each line a second time.
    logging.getLogger("huggingface_hub").handlers.clear()
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _refusal(name, error) from error


def _refusal(name: str, error: Exception) -> ConfigError:
    from httpx2 import HTTPError, ProtocolError  # noqa: PLC0415 - as above
    from huggingface_hub import errors  # noqa: PLC0415 - half a second

    # The client overlooks what the hub answers if the cache has the file, and says so if not.
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    match error:
        case errors.HfHubHTTPError() if error.response is not None:
            status = error.response.status_code
            kind = Unreachable if status in _BUSY or status >= _ITS_FAULT else ConfigError
            return kind(f"{name}: the hub answered {status}")
        case errors.FileMetadataError() | JSONDecodeError() | UnicodeDecodeError():
            return ConfigError(f"{name}: what answers is not a hub (HF_ENDPOINT, a proxy)")
        case ProtocolError():
            return Unreachable(f"{name}: the hub's answer broke off")
        case HTTPError() | errors.LocalEntryNotFoundError() | ConnectionError():
            return Unreachable(f"{name}: the hub cannot be reached")
        case OSError() if error.errno is not None:
            where = "" if error.filename is None else f"{error.filename}: "
            return ConfigError(f"{name}: cannot be stored (HF_HOME): {where}{error.strerror}")
    reason = str(error).partition("\n")[0] or type(error).__name__
    return ConfigError(f"{name}: cannot be fetched: {reason}")
