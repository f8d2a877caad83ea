"""Flags, documents and settings are one declaration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner

from afterword.cli.options import PANELS, SettingsCommand, setting_flags, settings_table
from afterword.config import SETTINGS, Settings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


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


def test_every_setting_is_declared_for_people() -> None:
    assert list(SETTINGS) == list(Settings.__struct_fields__)
    for setting in SETTINGS.values():
        assert setting.help.endswith((".", ")", "*.")), setting.name
        assert setting.default, setting.name


@pytest.mark.parametrize("panel", PANELS)
def test_the_document_has_the_settings(panel: str) -> None:
    table = settings_table(panel)
    assert table in PAGE.read_text(), f"run scripts/tables.py; docs should have:\n\n{table}"
