"""Threads, event loops, cancellation, and the end: nothing runs on that nobody reads."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from afterword import LLM, AsyncLLM, ConfigError, EngineUnavailable, InvalidRequest, Settings
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.runner import Batch
from afterword.engine.toy import toy_engine
from afterword.library.backend import Backend
from support.library import comparable, served, toy
from support.tiny_gguf import make_gguf

LONG: dict[str, Any] = {"max_tokens": 250, "ignore_eos": True, "seed": 1}
PROMPTS = [f"Once upon {i}" for i in range(12)]


class Gate:
    """Holds the engine before each batch while it is closed."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, batch: Batch) -> None:
        self.reached.set()
        self.open.wait()


def idle(engine: BatchingEngine) -> bool:
    return engine.stats().running_sequences == 0


async def until_idle(engine: BatchingEngine) -> None:
    while not idle(engine):
        await asyncio.sleep(0)


def test_threads_share_a_model(llm: LLM) -> None:
    def ask(prompt: str) -> object:
        return comparable(llm.complete(prompt, max_tokens=20, seed=3))

    alone = [ask(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, PROMPTS)) == alone


async def test_an_event_loop_gets_what_a_thread_gets(llm: LLM) -> None:
    async with AsyncLLM.opened_by(toy()) as model:
        assert (await model.facts()) == llm.facts
        asked = [model.complete(prompt, max_tokens=20, seed=3) for prompt in PROMPTS]
        for prompt, answer in zip(PROMPTS, await asyncio.gather(*asked), strict=True):
            wanted = llm.complete(prompt, max_tokens=20, seed=3)
            assert comparable(answer) == comparable(wanted)
        async with await model.stream("Once", max_tokens=9, seed=1) as stream:
            text = "".join([chunk.text async for chunk in stream])
        assert text == llm.complete("Once", max_tokens=9, seed=1).text
        assert await model.score("a b") == llm.score("a b")
        assert await model.score_continuations("a", [" b"]) == llm.score_continuations("a", [" b"])
        assert (await model.infill("a", "b", max_tokens=3, seed=1)).text == (
            llm.infill("a", "b", max_tokens=3, seed=1).text
        )
        ids = await model.tokenize("a b")
        assert await model.detokenize(ids) == "a b"
        with pytest.raises(InvalidRequest, match="'temperature'"):
            await model.stream("a", temperature=9)


async def test_a_cancelled_task_ends_its_request() -> None:
    gate = Gate()
    engine = toy_engine(before_decode=gate)
    async with AsyncLLM.opened_by(toy(engine)) as model:
        task = asyncio.create_task(model.complete("a", **LONG))
        await asyncio.to_thread(gate.reached.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        await until_idle(engine)
        assert engine.stats().generated_tokens < LONG["max_tokens"]
        # Others go on.
        assert (await model.complete("a", max_tokens=1)).usage.completion_tokens == 1


@pytest.mark.parametrize("how", ["close", "drop", "leave"])
async def test_a_stream_that_is_left_ends(how: str) -> None:
    engine = toy_engine()
    with LLM.opened_by(toy(engine)) as llm:
        stream = llm.stream("a", **LONG)
        next(stream)
        if how == "close":
            stream.close()
            assert list(stream) == []
        elif how == "drop":
            del stream
            gc.collect()
        else:
            with stream:
                next(stream)
        await until_idle(engine)


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_stream_that_another_thread_closes_ends_for_its_reader(where: str) -> None:
    """As by a button that says Stop, while nothing comes."""
    gate = Gate()
    engine = toy_engine(before_decode=gate)
    with ExitStack() as stack:
        if where == "here":
            llm = stack.enter_context(LLM.opened_by(toy(engine)))
        else:
            llm = stack.enter_context(LLM.connect(stack.enter_context(served(engine))))
        threads = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(gate.open.set)
        gate.open.set()
        stream = llm.stream("a", **LONG)
        next(stream)
        gate.open.clear()
        gate.reached.clear()
        reader = threads.submit(list, stream)
        gate.reached.wait()
        stream.close()
        assert reader.result(timeout=60) is not None


async def test_a_stream_that_another_task_closes_ends_for_its_reader() -> None:
    gate = Gate()
    async with AsyncLLM.opened_by(toy(toy_engine(before_decode=gate))) as model:
        stream = await model.stream("a", **LONG)
        reader = asyncio.create_task(anext(stream, None))
        await asyncio.to_thread(gate.reached.wait)
        await stream.aclose()
        assert await reader is None
        gate.open.set()


def test_a_closed_model_refuses_and_ends_what_runs() -> None:
    gate, before = Gate(), set(threading.enumerate())
    llm = LLM.opened_by(toy(toy_engine(before_decode=gate)))
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(llm.complete, "a", **LONG)
        gate.reached.wait()
        closing = threads.submit(llm.close)
        with pytest.raises(EngineUnavailable):
            running.result()
        gate.open.set()
        closing.result()
    llm.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        llm.complete("a")
    assert set(threading.enumerate()) <= before


async def test_what_runs_in_an_event_loop_ends_with_an_error_not_a_cancellation() -> None:
    gate = Gate()
    model = AsyncLLM.opened_by(toy(toy_engine(before_decode=gate)))
    task = asyncio.create_task(model.complete("a", **LONG))
    await asyncio.to_thread(gate.reached.wait)
    closing = asyncio.create_task(model.aclose())
    with pytest.raises(EngineUnavailable):
        await task
    gate.open.set()
    await closing


def test_a_forked_process_is_told(llm: LLM) -> None:
    """A fork copies no threads: a call would wait for ever. The parent's model stays as it is."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        said = 0
        try:
            llm.complete("a", max_tokens=1)
        except EngineUnavailable as error:
            llm.close()
            said = 7 if "before a fork" in error.message else 1
        finally:
            os._exit(said)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert llm.complete("a", max_tokens=1).usage.completion_tokens == 1


def test_a_model_in_a_pickle_is_refused_in_words(llm: LLM) -> None:
    """As by ``multiprocessing``, which pickles what it gives to a process. Answers may go there."""
    with pytest.raises(TypeError, match="open it in the process that uses it"):
        pickle.dumps(llm)
    for answer in (llm.complete("a", max_tokens=2, logprobs=2), llm.score("a b", top=2)):
        assert pickle.loads(pickle.dumps(answer)) == answer  # noqa: S301 - our own


def test_a_callback_may_not_wait_for_the_library(llm: LLM) -> None:
    def advance(done: int, total: int) -> None:
        llm.complete("a", max_tokens=1)

    with pytest.raises(RuntimeError, match="may not wait"):
        llm.score("a b", advance=advance)


@asynccontextmanager
async def broken() -> AsyncIterator[Backend]:
    raise ConfigError("no such model")
    yield


async def test_a_model_that_cannot_be_opened() -> None:
    with pytest.raises(ConfigError, match="no such model"):
        LLM.opened_by(broken)
    model = AsyncLLM.opened_by(broken)
    for _ in range(2):
        with pytest.raises(ConfigError, match="no such model"):
            await model.complete("a")
    await model.aclose()
    with pytest.raises(ConfigError, match="no such model"):
        async with AsyncLLM.opened_by(broken):
            pytest.fail("it was not opened")


def test_models_are_named_as_on_the_command_line(tmp_path: Path) -> None:
    for name, message in (
        (str(tmp_path / "none.gguf"), "no such file"),
        ("pypi:x", "is not pypi:PACKAGE==VERSION"),
        ("hf:a", "is not hf:ORG"),
        ("vllm+http://127.0.0.1:9", "needs a NAME="),
    ):
        with pytest.raises(ConfigError, match=message):
            LLM(name)
    with pytest.raises(ConfigError, match=r"'slot' is not a setting \(did you mean 'slots'\?\)"):
        LLM(slot=1)
    for setting in ("port", "no_auth", "database", "max_body_bytes", "log_level"):
        with pytest.raises(ConfigError, match=f"'{setting}' has no effect here"):
            LLM(**{setting: 1})
    with pytest.raises(ConfigError, match="'models' is not for one model"):
        LLM("a", models={"b": "c"})
    with pytest.raises(ConfigError, match="slots = 0"):
        LLM(slots=0)
    file = make_gguf(tmp_path / "tiny.gguf")
    with LLM(f"mine={file}", slots=1, threads=1) as llm:
        assert llm.facts.name == "mine"
        assert llm.complete("a", max_tokens=2, temperature=0).model == "mine"
    with LLM(file, slots=1, threads=1) as llm:
        assert llm.facts.name == "tiny"
    with pytest.raises(ConfigError, match="not NoneType"):
        LLM(None)  # type: ignore[arg-type]


def test_several_models_of_some_settings(tmp_path: Path) -> None:
    sources = {name: str(make_gguf(tmp_path / f"{name}.gguf")) for name in ("a", "b")}
    with LLM.of(Settings(models=sources, slots=1, threads=1)) as llm:
        assert llm.complete("x", max_tokens=1).model == "a"
        assert llm.complete("x", max_tokens=1, model="b").model == "b"


@pytest.mark.parametrize("closed", [True, False])
def test_a_model_that_is_gone_leaves_nothing(closed: bool) -> None:
    """A program may open thousands; what was registered for its end would keep each of them."""
    llm = LLM.opened_by(toy())
    thread, session = llm._session._thread, weakref.ref(llm._session)
    if closed:
        llm.close()
    del llm
    gc.collect()
    thread.join()
    del thread
    gc.collect()
    assert session() is None


def test_a_program_that_forgets_to_close_ends_well(tmp_path: Path) -> None:
    program = (
        "import atexit, threading, afterword\n"
        # The last one that runs: what was registered first.
        "atexit.register(lambda: print([t.name for t in threading.enumerate()]))\n"
        f"llm = afterword.LLM({str(make_gguf(tmp_path / 'tiny.gguf', context=8192))!r})\n"
        "stream = llm.stream('a', max_tokens=8000, ignore_eos=True)\n"
        "print(repr(next(stream).text) != '')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True", "['MainThread']"]
    assert done.stderr == ""


@pytest.mark.parametrize("last", ["pass", "stream.close()", "del stream", "llm.close()"])
def test_a_program_that_leaves_a_stream_of_a_server_ends_well(last: str) -> None:
    with served() as url:
        program = (
            "import afterword\n"
            f"llm = afterword.LLM.connect({url!r})\n"
            "stream = llm.stream('a', max_tokens=250, ignore_eos=True)\n"
            "next(stream)\n"
            f"{last}\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")
