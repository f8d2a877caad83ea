"""Converted files: made once, whole or not at all, and nothing is left by who died."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest

from afterword.core.errors import ConfigError
from afterword.engine.llama.examination import converter
from afterword.engine.llama.parts import read_header
from afterword.engine.llama.weights import WeightsFolder, most_bytes
from tiny_gguf import make_gguf

DIGEST = "ab" * 32
CONVERT = converter(threads=1)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def folder(tmp_path: Path) -> WeightsFolder:
    return WeightsFolder(tmp_path / "weights")


def no_conversion(source: Path, destination: Path, form: str, descriptor: int) -> None:
    pytest.fail(f"{form} is converted again")


def test_a_form_is_converted_once(tiny: Path, folder: WeightsFolder) -> None:
    assert folder.find(DIGEST, "q8_0") is None
    with folder.work() as shop:
        path = shop.convert(tiny, DIGEST, "q8_0", CONVERT)
        assert shop.convert(tiny, DIGEST, "q8_0", no_conversion) == path
    assert folder.find(DIGEST, "q8_0") == path
    assert folder.find(DIGEST, "bf16") is None
    assert folder.find("cd" * 32, "q8_0") is None
    assert path.stat().st_size <= most_bytes(read_header(tiny), "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    (kept,) = folder.kept()
    assert (kept.form, kept.digest, kept.size_bytes) == ("q8_0", DIGEST, path.stat().st_size)


def test_two_that_want_a_form_convert_it_once(tiny: Path, tmp_path: Path) -> None:
    """Each opens the folder by itself, as processes do; the first works, the other waits."""
    both = threading.Barrier(2)
    conversions: list[str] = []

    def run(source: Path, destination: Path, form: str, descriptor: int) -> None:
        conversions.append(form)
        shutil.copy(source, destination)

    def want() -> Path:
        both.wait()
        with WeightsFolder(tmp_path / "weights").work() as shop:
            return shop.convert(tiny, DIGEST, "q8_0", run)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(want), pool.submit(want)
        assert first.result() == second.result()
    assert conversions == ["q8_0"]


def test_a_file_that_was_cut_is_made_again(tiny: Path, folder: WeightsFolder) -> None:
    with folder.work() as shop:
        path = shop.convert(tiny, DIGEST, "q8_0", lambda source, to, *_: shutil.copy(source, to))
        with path.open("r+b") as file:
            file.truncate(100)
        assert folder.find(DIGEST, "q8_0") is None
        shop.convert(tiny, DIGEST, "q8_0", lambda source, to, *_: shutil.copy(source, to))
    assert folder.find(DIGEST, "q8_0") == path


def test_what_the_library_says_is_one_line(tmp_path: Path, folder: WeightsFolder) -> None:
    broken = tmp_path / "broken.gguf"
    whole = make_gguf(tmp_path / "tiny.gguf").read_bytes()
    broken.write_bytes(whole.replace(b"general.architecture", b"general.architectura"))
    with (
        folder.work() as shop,
        shop.scratch("x", 0) as part,
        pytest.raises(
            ConfigError, match=r"broken\.gguf: llama\.cpp cannot convert it to q8_0: "
        ) as it,
    ):
        CONVERT(broken, part, "q8_0", shop.descriptor)
    assert "\n" not in str(it.value)
    assert "architecture" in str(it.value)
    assert [path.name for path in folder.folder.iterdir()] == ["lock"]


def test_a_full_disk_is_said_before(
    tiny: Path, folder: WeightsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil's
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1000))
    with folder.work() as shop, pytest.raises(ConfigError, match="MB may be needed, and 0 MB are"):
        shop.convert(tiny, DIGEST, "bf16", no_conversion)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = WeightsFolder(tmp_path / "file" / "weights")
    folder.sweep()
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"), folder.work():
        pass


KILLED = """
import sys
from pathlib import Path
from afterword.engine.llama.examination import converter
from afterword.engine.llama.weights import WeightsFolder
with WeightsFolder(Path(sys.argv[1])).work() as shop, shop.scratch("half", 0) as part:
    part.write_bytes(b"half")
    converter(1)(Path(sys.argv[2]), part, "q8_0", shop.descriptor)
"""


def test_kill_9_leaves_nothing_behind(tmp_path: Path, folder: WeightsFolder) -> None:
    """The file that is converted is a pipe, so that the child is surely at work when we kill."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    part = folder.folder / "half.part"
    command: list[str | Path] = [sys.executable, "-c", KILLED, folder.folder, pipe]
    with subprocess.Popen(command) as parent, pipe.open("wb"):  # opens when the child reads
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        watched = os.pidfd_open(int(child))
        folder.sweep()
        assert part.read_bytes() == b"half"
        with pytest.raises(ConfigError, match="a process prepares weights there now"):
            folder.prune()
        parent.send_signal(signal.SIGKILL)
        # The child dies with its parent, although the pipe is still open.
        assert select.select([watched], [], [])[0]
        os.close(watched)
    assert part.exists()
    folder.sweep()
    assert [path.name for path in folder.folder.iterdir()] == ["lock"]


def test_a_crash_of_the_child_is_an_error_of_ours(
    tmp_path: Path, folder: WeightsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -SEGV $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    with (
        folder.work() as shop,
        pytest.raises(ConfigError, match=r"m\.gguf: llama\.cpp was ended by"),
    ):
        CONVERT(Path("m.gguf"), Path("x"), "q8_0", shop.descriptor)


def test_prune_frees_everything(tiny: Path, folder: WeightsFolder) -> None:
    assert folder.prune() == 0
    with folder.work() as shop:
        size = shop.convert(tiny, DIGEST, "bf16", CONVERT).stat().st_size
    assert folder.prune() == size
    assert list(folder.kept()) == []
