"""``afterword score``, ``eval`` and ``complete``: what they print, of a server's models."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from afterword import LLM
from afterword.cli import cli
from afterword.cli.texts import standard_input
from afterword.core.alias import Alias
from afterword.core.errors import AfterwordError, ConfigError
from afterword.engine.batching.runner import Batch
from afterword.engine.toy import toy_engine
from afterword.library.answers import TextScore
from afterword.library.tints import TINTS, step_of
from support.library import served

TEXT = "Once upon the <b> é中🙂\n"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as there:
        yield there


@pytest.fixture(scope="module")
def llm(url: str) -> Iterator[LLM]:
    with LLM.connect(url) as opened:
        yield opened


def run(*arguments: str | Path, text: str | bytes | None = None, tty: bool = False) -> Result:
    environment = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "COLUMNS": "200"} if tty else {}
    done = CliRunner().invoke(cli, [str(each) for each in arguments], input=text, env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_score_prints_each_token_and_the_totals(url: str, llm: LLM) -> None:
    (wanted,) = llm.score(TEXT)
    done = run("score", TEXT, "--url", url)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    for position, value in enumerate(wanted.token_logprobs):
        row = next(line for line in lines if line.split()[:1] == [str(position)])
        assert f"{value:.4f}" in row
    totals = lines[-1].split()
    assert totals[0] == "toy"
    figures = (wanted.total_logprob, wanted.mean_logprob, wanted.perplexity, wanted.bits_per_byte)
    assert totals[1:6] == [str(len(wanted.tokens)), *(f"{value:.4f}" for value in figures)]
    assert "\x1b" not in done.stdout


def test_a_terminal_gets_the_pages_tints(url: str, llm: LLM) -> None:
    (wanted,) = llm.score(TEXT)
    shown = run("score", TEXT, "--url", url, tty=True).stdout
    for value in wanted.token_logprobs:
        red, green, blue = bytes.fromhex(TINTS[step_of(value)][1:])
        assert f"48;2;{red};{green};{blue}" in shown


def test_prose_is_shown_as_it_is(url: str) -> None:
    """But nothing in it controls the terminal, and no line is turned."""
    text = "a\u00a0b\u3000c\u200dd\u00ad\r\ne\x1b[31m\u202ef\u2028"
    shown = run("score", text, "--url", url).stdout
    assert "a\u00a0b\u3000c\u200dd\u00ad\ne\ufffd[31m\ufffdf\ufffd" in shown


def test_an_answer_controls_no_terminal(url: str) -> None:
    """Programs get it as it is."""
    words = ("complete", "a\x1b]0;b\u3000\x07", "--max-tokens", "0", "--echo", "--url", url)
    assert run(*words).stdout == "a\x1b]0;b\u3000\x07\n"
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb") as screen, os.fdopen(its, "wb") as terminal:
        command = [sys.executable, "-m", "afterword", *words]
        subprocess.run(
            command, check=True, stdout=terminal, env={**os.environ, "PYTHONIOENCODING": "utf-8"}
        )
        assert screen.readline().decode() == "a\ufffd]0;b\u3000\ufffd\r\n"


def test_score_reads_files_and_standard_input(url: str, llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT * 10)
    window = ("--window", "40", "--stride", "30")
    done = run("score", "-", "--file", file, "--url", url, "--json", *window, text="a b")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["standard input", str(file)]
    for row, score in zip(rows, llm.score(["a b", TEXT * 10], window=40, stride=30), strict=True):
        assert [token["logprob"] for token in row["tokens"]] == list(score.token_logprobs)
        assert row["total_logprob"] == score.total_logprob
        assert row["bits_per_byte"] == score.bits_per_byte
        assert (row["windows"], row["overlap_tokens"]) == (score.windows, 10)
    assert rows[1]["windows"] > 1
    shown = run("score", "--file", file, "--url", url, *window).stdout
    assert f"{rows[1]['windows']} of 40 tokens, 30 apart, 10 overlap" in shown
    assert run("score", "--url", url, "--json", text="a b").stdout == (
        run("score", "-", "--url", url, "--json", text="a b").stdout
    )


def test_texts_are_read_to_the_byte(url: str, tmp_path: Path) -> None:
    """A byte order mark is no text; the ends of lines are."""
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffa\r\nb\n".encode())
    for given, text in (("--file", None), ("-", file.read_bytes().decode())):
        arguments = (given, file) if text is None else (given,)
        done = run("score", *arguments, "--url", url, "--json", text=text)
        row = json.loads(done.stdout)
        assert [token["token"] for token in row["tokens"]] == ["a", "\r", "\n", "b", "\n"]
        assert row["bytes"] == 5


@pytest.mark.parametrize("command", ["score", "complete"])
def test_input_that_is_no_text_is_named(url: str, command: str) -> None:
    with pytest.raises(ConfigError, match="standard input: is not text in UTF-8"):
        run(command, "-", "--url", url, text=b"a\xff")


def test_standard_input_is_read_once(url: str) -> None:
    """Its second text would be empty."""
    done = run("score", "-", "a", "-", "--url", url, text="b")
    assert done.exit_code == 2
    assert "standard input can be read once" in done.stderr


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("score", "a", b"caf\xe9"), "text 2"),
        (("complete", b"caf\xe9"), "PROMPT"),
        (("complete", "a", "--stop", b"caf\xe9"), "--stop"),
        (("complete", "a", "--suffix", b"caf\xe9"), "--suffix"),
    ],
)
def test_arguments_that_are_no_text_are_named(
    url: str, words: Sequence[str | bytes], name: str
) -> None:
    given = [os.fsdecode(word) if isinstance(word, bytes) else word for word in words]
    with pytest.raises(ConfigError, match=f"^{name}: is not text in UTF-8$"):
        run(*given, "--url", url)


def test_arguments_in_the_locale_c(url: str) -> None:
    """Python without its UTF-8 mode reads them as ASCII there; a terminal's bytes are UTF-8."""
    done = subprocess.run(
        [sys.executable, "-m", "afterword", "score", "é", "--json", "--url", url],
        check=True, capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert '"token": "é"' in done.stdout.decode()


def test_answers_in_the_locale_c(url: str) -> None:
    """Python without its UTF-8 mode fails there at each character that is not of ASCII."""
    done = subprocess.run(
        [sys.executable, "-m", "afterword", "complete", "é", "--echo", "--max-tokens", "1",
         "--url", url],
        check=True, capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.stdout.startswith(b"\\xe9")


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_what_programs_read_is_utf8(url: str, form: str) -> None:
    """An encoding's escapes, such as \\xe9, would be no JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "afterword", "score", "é🙂", form, "--url", url],
        check=True, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout.decode() == run("score", "é🙂", form, "--url", url).stdout


def test_a_closed_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="standard input: is closed"):
        standard_input()


def test_a_perplexity_beyond_all_floats(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of JSON stay JSON."""
    monkeypatch.setattr(TextScore, "mean_logprob", -9999.0)
    row = json.loads(run("score", "a", "--url", url, "--json").stdout, parse_constant=pytest.fail)
    assert row["perplexity"] is None
    assert " inf " in run("score", "a", "--url", url).stdout


@pytest.mark.parametrize("to", [("/dev/full", 1), (os.devnull, 0)])
@pytest.mark.parametrize("words", [("score", "é"), ("score", "é", "--csv"), ("complete", "é")])
def test_output_that_cannot_be_written(url: str, words: Sequence[str], to: tuple[str, int]) -> None:
    """A full disk is one line, and an encoding without some characters is no error."""
    with Path(to[0]).open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "afterword", *words, "--url", url],
            check=False, stdout=out, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
    full = "afterword: the output cannot be written: No space left on device\n"
    assert (done.stderr, done.returncode) == (full if to[1] else "", to[1])


@pytest.mark.parametrize(
    "words", [("score", "a"), ("score", "a", "--csv"), ("complete", "a"), ("eval",)]
)
@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_output_takes_everything(
    url: str, tmp_path: Path, words: Sequence[str], closed: int
) -> None:
    """And no file that is opened gets its number."""
    task = tmp_path / "task.jsonl"
    task.write_text('{"prompt": "a", "target": "b", "max_tokens": 1}\n')
    more = (str(task), "--state", str(tmp_path)) if words == ("eval",) else ()
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {closed}>&-', sys.executable, "-m", "afterword", *words,
         *more, "--url", url],
        check=True, capture_output=True,
    )  # fmt: skip
    assert bool(done.stdout) == (closed == 2)
    assert b"Traceback" not in done.stderr


def test_an_empty_text(url: str) -> None:
    row = json.loads(run("score", "", "--url", url, "--json").stdout)
    assert (row["tokens"], row["total_logprob"], row["bits_per_byte"]) == ([], 0.0, 0.0)
    totals = run("score", "", "--url", url).stdout.splitlines()[-1].split()
    assert (totals[1], totals[-1]) == ("0", "0")


def test_score_as_csv_is_read_back(url: str, llm: LLM) -> None:
    text = '=1+1,"\n\r' + TEXT
    done = run("score", text, "--url", url, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout, newline="")))
    (score,) = llm.score(text)
    assert [json.loads(row["token"]) for row in rows] == list(score.tokens)
    assert [float(row["logprob"]) for row in rows] == list(score.token_logprobs)
    # No cell is a formula for a spreadsheet.
    assert not any(row["token"].startswith(tuple("=+-@")) for row in rows)


def test_each_model_shows_its_likeliest_tokens() -> None:
    aliases = {"second": Alias("toy")}
    with served(aliases=aliases) as there:
        words = ("score", "a b", "--url", there, "--model", "toy", "--model", "second")
        lines = run(*words, "--top", "2").stdout.splitlines()
    header = next(line for line in lines if "TOKEN " in line)
    assert re.search(r"toy +second +LIKELIEST toy +LIKELIEST second", header)
    row = next(line for line in lines if line.startswith("0  "))
    # Of each model its value, and two or three alternatives.
    assert row.count("%") >= 6


def test_models_side_by_side(url: str, llm: LLM) -> None:
    models = ("--model", "toy", "--model", "toy")
    done = run("score", "a b", "--url", url, *models, "--top", "2")
    header = next(line for line in done.stdout.splitlines() if "TOKEN " in line)
    assert "LIKELIEST" in header
    assert len(run("score", "a", "--url", url, *models, "--json").stdout.splitlines()) == 2


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_a_model_that_is_done_is_written_before_the_next(url: str, form: str) -> None:
    wanted = run("score", "a b", "--url", url, form).stdout
    done = subprocess.run(
        [sys.executable, "-m", "afterword", "score", "a b", "--url", url, form,
         "--model", "toy", "--model", "other"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == (wanted, 1)
    assert done.stderr.startswith("afterword: The model `other` does not exist")


@pytest.mark.parametrize("words", [("score", "a"), ("complete", "a"), ("eval", "TASK")])
def test_an_interrupted_command_has_the_status_of_shells(
    words: Sequence[str], tmp_path: Path
) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text('{"prompt": "a", "target": "b", "max_tokens": 4}\n')
    reached, opened = threading.Event(), threading.Event()

    def wait(_: Batch) -> None:
        reached.set()
        opened.wait()

    with served(toy_engine(before_decode=wait)) as there:
        command = [sys.executable, "-m", "afterword"]
        command += [str(task) if word == "TASK" else word for word in words]
        with subprocess.Popen(
            [*command, "--url", there], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        ) as running:
            reached.wait()
            running.send_signal(signal.SIGINT)
            _, said = running.communicate()
        opened.set()
    assert (said, running.returncode) == ("afterword: interrupted\n", 130)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("score", "a", "--url", "URL", "--threads", "2"), "--threads has no effect with --url"),
        (("complete", "a", "--url", "URL", "--config", "b"), "--config has no effect with --url"),
        (("score", "a", "--key", "sk-secret"), "--key is for --url"),
        (("score", "a", "--csv", "--top", "3"), "--csv has no alternatives"),
        (("score", "a", "--alias", "b=c"), "No such option '--alias'"),
        (("complete", "a", "--url", "URL", "--model", "toy", "--model", "b"), "several times"),
    ],
)
def test_what_would_have_no_effect_is_refused(url: str, words: Sequence[str], said: str) -> None:
    done = run(*(url if word == "URL" else word for word in words))
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert "sk-secret" not in done.stderr


def test_progress_on_long_input(url: str) -> None:
    done = run("score", "a" * 20_001, "--url", url, "--window", "256", "--stride", "255", "--json")
    assert "toy: tokens: " in done.stderr
    assert "toy: tokens: 100%" in done.stderr
    assert run("score", "a", "--url", url).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "a", "--window", "999"), "'window': expected 2 to 256"),
        (("score", "a", "--top", "99"), "'top': expected"),
        (("score", "a", "--model", "other"), "`other` does not exist"),
        (("score", "--file", "/no/such/file"), "cannot be read"),
        (("complete", "a", "--temperature", "9"), "'temperature'"),
        (("eval", "/no/such/file"), "cannot be read"),
    ],
)
def test_mistakes_are_named(url: str, arguments: Sequence[str], message: str) -> None:
    with pytest.raises(AfterwordError, match=message) as refused:
        run(*arguments, "--url", url)
    assert "Traceback" not in str(refused.value)


def test_complete_shows_log_probabilities(url: str, llm: LLM) -> None:
    words = ("--max-tokens", "6", "--temperature", "0")
    plain = run("complete", "Once", "--url", url, *words).stdout
    answer = llm.complete("Once", max_tokens=6, temperature=0, logprobs=3)
    assert plain == answer.text + "\n"
    done = run("complete", "Once", "--url", url, *words, "--logprobs", "3").stdout
    assert done.startswith(plain)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    table = done[len(plain) :].splitlines()[1:]
    assert len(table) == 6
    for row, value in zip(table, logprobs.token_logprobs, strict=True):
        assert f"{value:.4f}" in row
        assert row.count("%") >= 4


def test_eval_goes_on_and_reports(url: str, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    items = [{"context": f"Once {i}", "choices": [" a", " the"], "label": 0} for i in range(9)]
    task.write_text("".join(json.dumps(item) + "\n" for item in items))
    common = ("eval", task, "--url", url, "--state", tmp_path)
    first = run(*common, "--first", "4")
    assert "toy: items: 100%" in first.stderr
    page = tmp_path / "report.html"
    done = run(*common, "--report", page, "--json")
    assert "toy: items: 25%" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["items"] == 9
    table = run(*common).stdout
    share = summary["models"]["toy"]["acc"]
    assert f"{share['value']:.4f}" in table
    assert f"{share['low']:.4f} to {share['high']:.4f}" in table
    assert "<svg" in page.read_text()
    state = (tmp_path / "task.toy.fp_0000000000.state.jsonl").read_text().splitlines()
    assert len(state) == 10
    with pytest.raises(ConfigError, match="two models have the name toy"):
        run(*common, "--model", "toy", "--model", "toy")
    with pytest.raises(ConfigError, match="its folder is not there"):
        run("eval", task, "--report", tmp_path / "none" / "report.html")
    with pytest.raises(ConfigError, match="it is a folder"):
        run("eval", task, "--report", tmp_path)


def test_names_of_all_scripts_have_states_of_their_own(url: str, tmp_path: Path) -> None:
    names = {
        "数学": "数学",
        "逻辑": "逻辑",
        "Übung-ü": "Übung-ü",
        "a b": "a%20b",
        "a%20b": "a%2520b",
        "a-b": "a-b",
    }
    for name, written in names.items():
        task = tmp_path / f"{name}.jsonl"
        task.write_text('{"prompt": "a", "target": "b", "max_tokens": 1}\n')
        run("eval", task, "--url", url, "--state", tmp_path)
        assert (tmp_path / f"{written}.toy.fp_0000000000.state.jsonl").exists()
