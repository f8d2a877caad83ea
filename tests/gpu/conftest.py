"""Tests of a native half for a GPU. ``make test-gpu`` runs them; ``make test`` does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.engine.llama.devices import backends, devices
from afterword.engine.llama.offload import Device
from support.tiny_gguf import make_gguf


@pytest.fixture(scope="session")
def device() -> Device:
    """The first GPU. Every test fails without one, because then it would test the processor."""
    assert backends(), "this native half is for no GPU: run make test-gpu"
    found = devices()
    assert found, "no GPU found; on Debian and Ubuntu: apt install mesa-vulkan-drivers"
    return found[0]


@pytest.fixture(scope="session")
def tiny(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, and an output."""
    assert device.name
    return make_gguf(tmp_path_factory.mktemp("gpu") / "tiny.gguf")
