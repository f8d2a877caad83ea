"""Settings: four layers, each value with its origin, and one clear line for what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from afterword.config import EMBEDDED_MODEL, EMBEDDED_SOURCE, LEGACY_NAME, Settings, resolve
from afterword.core.alias import Alias
from afterword.core.errors import ConfigError
from afterword.core.limits import Limits


def test_defaults_serve_the_embedded_model_under_the_legacy_name() -> None:
    resolved = resolve({}, {})
    assert resolved.settings.models == {EMBEDDED_MODEL: EMBEDDED_SOURCE}
    assert resolved.settings.effective_aliases() == {LEGACY_NAME: Alias(EMBEDDED_MODEL)}
    assert set(resolved.origins.values()) == {"default"}


def test_the_limits_are_the_contracts() -> None:
    assert Settings().limits() == Limits()
    assert Limits(
        max_logprobs=20, max_stops=16, max_n=128, max_best_of=20, default_max_tokens=None,
        require_model=True,
    ) == Limits()  # fmt: skip


def test_later_layers_win_and_say_so(tmp_path: Path) -> None:
    file = tmp_path / "afterword.toml"
    file.write_text('port = 1\nslots = 1\nmax_n = 1\nhost = "h"\n[models]\na = "x.gguf"\n')
    environment = {
        "AFTERWORD_CONFIG": str(file),
        "AFTERWORD_SLOTS": "2",
        "AFTERWORD_MAX_N": "2",
        "AFTERWORD_REQUIRE_MODEL": "false",
    }
    resolved = resolve({"max_n": "3"}, environment)
    settings = resolved.settings
    assert (settings.port, settings.slots, settings.max_n) == (1, 2, 3)
    assert settings.models == {"a": "x.gguf"}
    assert settings.require_model is False
    origins = {name: resolved.origins[name] for name in ("port", "slots", "max_n", "ctx")}
    assert origins == {
        "port": str(file), "slots": "AFTERWORD_SLOTS", "max_n": "--max-n", "ctx": "default",
    }  # fmt: skip


def test_a_flag_names_the_file_before_the_environment_does(tmp_path: Path) -> None:
    for port in (1, 2):
        (tmp_path / f"{port}.toml").write_text(f"port = {port}")
    environment = {"AFTERWORD_CONFIG": str(tmp_path / "1.toml")}
    assert resolve({}, environment).settings.port == 1
    assert resolve({}, environment, str(tmp_path / "2.toml")).settings.port == 2


def test_tables_can_be_set_by_the_environment() -> None:
    environment = {
        "AFTERWORD_MODELS": "a=/x.gguf, b=hf:o/r/f.gguf",
        "AFTERWORD_ALIASES": "davinci=b, old=a;template=chat",
    }
    settings = resolve({}, environment).settings
    assert settings.models == {"a": "/x.gguf", "b": "hf:o/r/f.gguf"}
    assert settings.effective_aliases() == {"davinci": Alias("b"), "old": Alias("a", "chat")}


def test_a_variable_that_is_no_setting_is_reported() -> None:
    assert resolve({}, {"AFTERWORD_PROT": "1", "OTHER": "1"}).unknown == ("AFTERWORD_PROT",)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"port": "x"}, "--port: port = 'x': expected a whole number"),
        ({"port": "65536"}, "--port: port = '65536': expected int <= 65535"),
        ({"slots": "0"}, "--slots: slots = '0': expected int >= 1"),
        ({"kv": "slow"}, "--kv: kv = 'slow': expected 'exact' or 'fast'"),
        (
            {"require_model": "maybe"},
            "--require-model: require_model = 'maybe': expected true or false",
        ),
        ({"models": {}}, "--model: no model to serve"),
        ({"models": {"a b": "x"}}, "--model: 'a b' cannot be a model's name"),
        ({"aliases": {"x": "y"}}, "--alias: alias 'x': no model 'y'"),
        ({"aliases": {EMBEDDED_MODEL: EMBEDDED_MODEL}}, "is a model's name"),
        ({"trusted_proxies": "10.0.0.1,proxy"}, "trusted_proxies: 'proxy' is neither"),
        ({"cors_origins": "*, lite.koboldai.net"}, "'lite.koboldai.net' is no origin, as in https"),
        ({"cors_origins": "http://a.example/page"}, "'http://a.example/page' is no origin"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        resolve(flags, {})


@pytest.mark.parametrize("key", ["a\r\nx-evil: 1", "a\n", "a\u2028", " ", "a ", "\u00e9"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    file = tmp_path / "a.toml"
    models, keys = "models.m = 'vllm+http://h/v1'", f"upstream_keys.m = {json.dumps(key)}"
    file.write_text(f"{models}\n{keys}")
    with pytest.raises(ConfigError) as caught:
        resolve({}, {}, str(file))
    assert str(caught.value) == (
        f"{file}: the key for 'm' has characters that no header takes, or none"
    )
    file.write_text(f"{models}\nupstream_keys.m = 'a key with spaces'")
    assert resolve({}, {}, str(file)).settings.upstream_keys == {"m": "a key with spaces"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port = ", "is not TOML"),
        ("prot = 1", "unknown setting 'prot' (did you mean 'port'?)"),
        ('port = "8000x"', "port = '8000x': expected a whole number"),
        ("port = 1.5", "port = 1.5: expected int, got float"),
        ("models = 3", "models = 3: expected object, got int"),
        ("port = true", "port = True: expected int, got bool"),
    ],
)
def test_a_files_mistake_names_the_file(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "afterword.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        resolve({}, {}, str(file))
    assert str(error.value).startswith(str(file))


def test_a_file_of_another_system(tmp_path: Path) -> None:
    """With a byte order mark and carriage returns, as editors of Windows write it."""
    file = tmp_path / "afterword.toml"
    file.write_bytes("\ufeffport = 1\r\nmax_n = 4\r\n".encode())
    settings = resolve({}, {}, str(file)).settings
    assert (settings.port, settings.max_n) == (1, 4)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        resolve({}, {}, str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"host = '\xe9'")
    with pytest.raises(ConfigError, match="is not TOML"):
        resolve({}, {}, str(tmp_path / "latin.toml"))


@pytest.mark.parametrize("value", ["a", "a=", "a=x,a=y", "=x"])
def test_a_broken_table_in_the_environment(value: str) -> None:
    with pytest.raises(ConfigError, match="AFTERWORD_MODELS"):
        resolve({}, {"AFTERWORD_MODELS": value})


def test_every_setting_can_be_set_by_each_layer(tmp_path: Path) -> None:
    """No setting is left out of a layer: each takes its own default from all of them."""
    for name, default in msgspec.structs.asdict(Settings()).items():
        if default is None or isinstance(default, dict):
            continue
        text = str(default).lower() if isinstance(default, bool) else str(default)
        file = tmp_path / "one.toml"
        file.write_text(f"{name} = {text!r}" if isinstance(default, str) else f"{name} = {text}")
        variable = f"AFTERWORD_{name.upper()}"
        assert resolve({}, {variable: text}).origins[name] == variable
        assert resolve({}, {}, str(file)).origins[name] == str(file)
        assert getattr(resolve({name: text}, {}).settings, name) == default


def test_origins_are_written_as_browsers_do() -> None:
    given = " https://A.example/,null, *, http://[::1]:8080,app://obsidian.md,capacitor://localhost"
    assert resolve({"cors_origins": given}, {}).settings.origins() == (
        "https://a.example", "null", "*", "http://[::1]:8080", "app://obsidian.md",
        "capacitor://localhost",
    )  # fmt: skip


def test_an_option_that_aliases_do_not_have_is_refused() -> None:
    for text in ("a,template=jinja", "a,tokens", "a,template=chat,template=chat"):
        with pytest.raises(ConfigError, match=r"alias old: .* is not "):
            resolve({"models": {"a": "/x.gguf"}, "aliases": {"old": text}}, {})


@pytest.mark.parametrize("layers", ["auto", 0, 33])
def test_layers_are_a_number_or_auto(layers: object) -> None:
    assert resolve({"gpu_layers": str(layers)}, {}).settings.gpu_layers == layers
    assert resolve({}, {"AFTERWORD_GPU_LAYERS": str(layers)}).settings.gpu_layers == layers


@pytest.mark.parametrize("layers", ["all", "-1", "1.5", ""])
def test_other_layers_are_refused(layers: str) -> None:
    with pytest.raises(ConfigError, match=r"--gpu-layers: .* expected a number from 0 on, or 'au"):
        resolve({"gpu_layers": layers}, {})
