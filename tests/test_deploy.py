"""What is deployed names things that there are: flags, settings, figures, files."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click.testing import CliRunner

from afterword.cli import cli
from afterword.cli.terminal import Terminal
from afterword.config import Settings, resolve
from afterword.engine.toy import toy_engine
from afterword.http.app import is_open
from afterword.ledger.database import parse_url
from afterword.models.store import Store
from conftest import make_client
from standins.services import program
from support.asgi import Client

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
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


@pytest.mark.slow  # installs systemd where it is missing
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """As written, and as tight as it says: 10 is no protection, 0 is all there is."""
    analyze = program("systemd-analyze", "systemd")
    for name in ("afterword.service", "afterword.socket"):
        text = (DEPLOY / name).read_text()
        # The program is not where the unit expects it.
        (tmp_path / name).write_text(re.sub(r"=/opt/\S+/afterword ", "=/bin/true ", text))
    verify = [analyze, "verify", "--man=no", *(str(path) for path in tmp_path.iterdir())]
    done = subprocess.run(verify, check=False, capture_output=True, text=True)
    assert not [line for line in done.stderr.splitlines() if "afterword." in line], done.stderr
    service = str(tmp_path / "afterword.service")
    exposed = [analyze, "security", "--offline=yes", "--threshold=20", service]
    done = subprocess.run(exposed, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_documents_commands_mean_the_units_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (block,) = [
        one for one in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "systemd-run" in one
    ]
    service = unit("afterword.service")["Service"]
    text = (DEPLOY / "afterword.service").read_text()
    (data,) = re.findall(r"AFTERWORD_DATA_DIR=(\S+)", text)
    program_, _, _, config = shlex.split(service["ExecStart"])
    assert data == f"/var/lib/{service['StateDirectory']}"
    monkeypatch.setenv("AFTERWORD_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "afterword.toml").write_text("")
    commands = block.replace("\\\n", " ").strip().splitlines()
    for command in commands[:-1]:
        words = shlex.split(command)
        assert f"--property=EnvironmentFile={service['EnvironmentFile']}" in words
        assert f"--setenv=AFTERWORD_DATA_DIR={data}" in words
        called = words[words.index(program_) + 1 :]
        assert called[-2:] == ["--config", config]
        done = CliRunner().invoke(cli, [*called[:-1], str(tmp_path / "afterword.toml")])
        assert done.exit_code == 0, done.output
        assert done.stderr.startswith(f"ledger: {tmp_path / 'data' / 'ledger.db'}\n")
    assert commands[-1].startswith("journalctl --unit afterword")


def test_the_documents_install_the_units() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (block,) = [one for one in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "--now" in one]
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    (config,) = [words[1] for words in commands if words[0] == "touch"]
    service = unit("afterword.service")["Service"]
    assert config == shlex.split(service["ExecStart"])[-1]
    home = service["ExecStart"].partition("/.venv")[0]
    (copied,) = [words[1:-1] for words in commands if words[0] == "cp"]
    assert {Path(file).name for file in copied} == {path.name for path in DEPLOY.glob("*.s*")}
    for file in copied:
        assert (ROOT / Path(file).relative_to(home)).is_file()
    assert commands[-1][3:] == ["afterword.socket", "afterword.service"]


def test_the_service_can_keep_models_of_the_hub() -> None:
    """It has no home, so the hub's own folder is not there."""
    text = (DEPLOY / "afterword.service").read_text()
    cache = f"/var/cache/{unit('afterword.service')['Service']['CacheDirectory']}"
    assert f"Environment=HF_HOME={cache}/huggingface\n" in text
    kept = image_environment()["HF_HOME"]
    assert any(kept in rest and "--owner afterword" in rest for rest in given("RUN"))
    assert f"hub:{kept}" in SERVICES["afterword"]["volumes"]


# The image.


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, each on one line."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line]
    return [(word, " ".join(rest.split())) for word, rest in pairs]


def given(word: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == word]


def image_environment() -> dict[str, str]:
    (words,) = given("ENV")
    return dict(pair.split("=", 1) for pair in shlex.split(words))


def test_the_image_has_what_it_starts() -> None:
    """Program, model and data lie where the parts of the Dockerfile say that they do."""
    (home,) = given("WORKDIR")
    environment = image_environment()
    resolved = resolve({}, environment)
    assert not resolved.unknown
    (entry,), (command,) = map(json.loads, given("ENTRYPOINT")), map(json.loads, given("CMD"))
    assert f"{home}/.venv/bin/afterword" == entry[0]
    assert command == ["serve"]
    assert CliRunner().invoke(cli, [*command, "--help"]).exit_code == 0
    copied = [shlex.split(rest) for rest in given("COPY")]
    assert ["--from=build", "--chown=root:root", f"{home}/.venv", f"{home}/.venv"] in copied
    build = next(rest for rest in given("RUN") if "make wheel install" in rest)
    cache = re.search(r"XDG_CACHE_HOME=(\S+) make wheel install", build)
    assert cache is not None
    models = str(Path(cache[1]) / "afterword" / "models")
    assert resolved.settings.models_dir == models
    assert [models, models] in [words[-2:] for words in copied]
    for target in ("wheel", "install"):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert given("VOLUME") == [resolved.settings.data_dir]
    assert given("EXPOSE") == [str(resolved.settings.port)]
    assert "afterword" in given("USER")


def test_models_are_kept_where_the_image_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    monkeypatch.delenv("AFTERWORD_MODELS_DIR", raising=False)
    assert str(Store(None, Terminal()).folder) == image_environment()["AFTERWORD_MODELS_DIR"]


def test_the_image_asks_itself_whether_it_is_ready() -> None:
    """By a program that can be compiled, at a path that needs no key, on the image's port."""
    (check,) = given("HEALTHCHECK")
    words = json.loads(check[check.index("[") :])
    compile(words[2], "HEALTHCHECK", "exec")
    url = urlsplit(re.search(r"http://[^']+", words[2])[0])  # type: ignore[index]
    assert str(url.port) == image_environment()["AFTERWORD_PORT"]
    assert is_open(url.path)


def test_the_images_packages_are_debians() -> None:
    """Each that the Dockerfile installs can be had, on a Debian like the image's."""
    release = Path("/etc/os-release")
    (base,) = {rest.split()[0] for rest in given("FROM")}
    codename = base.removeprefix("debian:").removesuffix("-slim")
    if not release.exists() or f"VERSION_CODENAME={codename}" not in release.read_text():
        pytest.skip(f"this machine is not Debian {codename}")
    installed = re.findall(r"--no-install-recommends (.*?) &&", " ".join(given("RUN")))
    assert len(installed) == len(given("FROM"))
    show = ["apt-cache", "show", "--no-all-versions", *" ".join(installed).split()]
    done = subprocess.run(show, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_of_this_machine_gets_into_the_image() -> None:
    """A .venv that came along would be taken for the image's own."""
    kept_out = {line.strip("*/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    unversioned = {line.strip("*/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert {".git", ".venv", "deploy/prometheus/key"} <= kept_out
    assert unversioned <= kept_out


# Compose.


COMPOSE: dict[str, Any] = parse_yaml((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_compose_names_files_and_volumes_that_there_are() -> None:
    assert set(SERVICES) == {"afterword", "postgres", "prometheus"}
    build = SERVICES["afterword"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    sources = [v.split(":")[0] for service in SERVICES.values() for v in service["volumes"]]
    files = {source for source in sources if source.startswith(".")}
    # This one is made by the second step of docs/operations.md.
    assert {name for name in files if not (DEPLOY / name).is_file()} <= {"./prometheus/key"}
    assert set(sources) - files == set(COMPOSE["volumes"])
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)


def test_compose_keeps_what_the_server_writes() -> None:
    """Everything else in it is read-only, and it gets the time that it may take to end."""
    afterword = SERVICES["afterword"]
    assert afterword["read_only"]
    volumes = [volume.split(":")[1] for volume in afterword["volumes"]]
    environment = image_environment()
    assert volumes == [environment["AFTERWORD_DATA_DIR"], environment["HF_HOME"]]
    assert int(afterword["stop_grace_period"].removesuffix("s")) > Settings().shutdown_grace_s
    (port,) = afterword["ports"]
    assert port.split(":")[-1] == image_environment()["AFTERWORD_PORT"]
    assert port.startswith("127.0.0.1:")


def test_compose_gives_the_server_the_database_that_it_makes() -> None:
    made = SERVICES["postgres"]["environment"]
    text = SERVICES["afterword"]["environment"]["AFTERWORD_DATABASE"]
    assert made["POSTGRES_PASSWORD"] in text
    url = text.replace(made["POSTGRES_PASSWORD"], "secret")
    assert resolve({}, {"AFTERWORD_DATABASE": url}).settings.database == url
    parsed = parse_url(url)
    assert (parsed.host, parsed.password) == ("postgres", "secret")
    assert (parsed.username, parsed.database) == (made["POSTGRES_USER"], made["POSTGRES_DB"])
    (_, check) = SERVICES["postgres"]["healthcheck"]["test"]
    assert check == f"pg_isready --username {made['POSTGRES_USER']}"


def test_prometheus_finds_the_server_and_its_key() -> None:
    scrape = parse_yaml((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    (job,) = scrape["scrape_configs"]
    ((target,),) = (one["targets"] for one in job["static_configs"])
    host, port = target.split(":")
    assert host in SERVICES
    assert port == image_environment()["AFTERWORD_PORT"]
    mounted = dict(v.split(":")[:2] for v in SERVICES["prometheus"]["volumes"])
    assert mounted["./prometheus/key"] == job["authorization"]["credentials_file"]
    # Where the image's own command looks for it.
    assert mounted["./prometheus/prometheus.yaml"] == "/etc/prometheus/prometheus.yml"


def test_the_steps_that_start_it_are_commands(tmp_path: Path) -> None:
    """Of docs/operations.md: the file, the services, and what runs inside."""
    steps = re.findall(r"docker compose (.*?)`", (ROOT / "docs" / "operations.md").read_text())
    assert len(steps) == 3
    for step in steps:
        words = shlex.split(step.partition(" > ")[0])
        assert words[:2] == ["--file", "deploy/compose.yaml"]
        assert words[2] in {"up", "run"}
        if words[2] == "run":
            assert step.endswith("> deploy/prometheus/key")
            assert words[3:5] == ["--rm", "afterword"]
            inside = [*words[5:], "--data-dir", str(tmp_path)]
            done = CliRunner().invoke(cli, inside)
            assert done.exit_code == 0, done.output
            assert done.stdout.startswith("sk-")
        else:
            assert set(words[4:]) <= set(SERVICES)


# Figures.


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
