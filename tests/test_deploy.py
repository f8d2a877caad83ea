"""What is deployed names things that there are: flags, settings, figures, files."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from afterword.config import Settings, resolve
from afterword.engine.toy import toy_engine
from asgi import Client
from conftest import make_client

DEPLOY = Path(__file__).parents[1] / "deploy"
parse_yaml: Any = yaml.safe_load
VARIABLE = re.compile(r"AFTERWORD_([A-Z_]+)")


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(DEPLOY / name)
    return parsed


def test_every_variable_is_a_setting() -> None:
    names = {*Settings.__struct_fields__, "config"}
    for file in DEPLOY.rglob("*"):
        if file.is_file():
            for variable in VARIABLE.findall(file.read_text()):
                assert variable.lower() in names, (file, variable)


def test_the_unit_starts_the_server_without_rights() -> None:
    service = unit("afterword.service")["Service"]
    assert shlex.split(service["ExecStart"])[1:3] == ["serve", "--config"]
    assert "-HUP" in service["ExecReload"]
    for name, value in {
        "DynamicUser": "yes", "ProtectSystem": "strict", "ProtectHome": "yes",
        "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "PrivateDevices": "yes",
        "RestrictNamespaces": "yes", "SystemCallArchitectures": "native",
    }.items():  # fmt: skip
        assert service[name] == value
    assert int(service["TimeoutStopSec"]) > Settings().shutdown_grace_s
    assert unit("afterword.socket")["Socket"]["ListenStream"].endswith(":8000")


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd on this machine")
    for name in ("afterword.service", "afterword.socket"):
        text = (DEPLOY / name).read_text()
        # The program is not where the unit expects it.
        (tmp_path / name).write_text(re.sub(r"=/opt/\S+/afterword ", "=/bin/true ", text))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(str(path) for path in tmp_path.iterdir())],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert not [line for line in done.stderr.splitlines() if "afterword." in line], done.stderr


def test_the_compose_file_names_files_that_are_there() -> None:
    services = parse_yaml((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"afterword", "postgres", "prometheus"}
    build = services["afterword"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert (DEPLOY / "prometheus" / "prometheus.yaml").is_file()
    url = services["afterword"]["environment"]["AFTERWORD_DATABASE"]
    assert resolve({}, {"AFTERWORD_DATABASE": url}).settings.database == url
    scrape = parse_yaml((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    (job,) = scrape["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/etc/prometheus/key"


async def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    engine = toy_engine()
    client: Client = make_client({"toy": engine})
    await client.stream(prompt="a", max_tokens=3)
    text = (await client.get("/metrics")).body.decode()
    await engine.aclose()
    there = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    dashboard = json.loads((DEPLOY / "grafana" / "afterword.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"afterword_\w+", target["expr"])
    }
    assert len(asked) > 15
    assert {name.removesuffix("_bucket") for name in asked} <= there
