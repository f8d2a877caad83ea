"""The law of shared prefixes with every layer on a GPU, for every architecture of the zoo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from afterword.engine.llama.devices import devices
from afterword.engine.llama.loading import EngineOptions
from zoo.architectures import ARCHITECTURES, SCAN_BY_HEADS
from zoo.making import make
from zoo.orders import ORDERS, job, prompt
from zoo.serving import BUDGET, Answer, Model, Request, Server, difference, is_single, nats_apart

SHORT = ("the same again", "behind the window", "siblings after a longer one", "arrays")
_NATS = 0.1
"""How far a log-probability may be from that of a prompt that was computed at once.

Kernels of GPUs round otherwise in batches of another size, shared prefixes or not.
"""
_AVERAGE = 0.25
"""Nats. Weights in BF16 in place of F32 move those of qwen3next by 0.07 on the processor."""
_HEADER = 90
"""Tokens of a shared prefix: more than the window. A device in software is slow."""
_TRIED = EngineOptions(threads=1)
_SCANNED = 128
"""A GPU scans states of heads that have so many values; the processor scans smaller ones for it."""


def in_software() -> bool:
    return any(name in devices()[0].description for name in ("llvmpipe", "SwiftShader"))


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """Each model in turn, as the probe found it; in the short form, without a trial and a probe.

    A device in software may have a driver that ends a process. A card's may not.
    """
    assert devices(), "no GPU found: run make test-gpu"
    architecture = ARCHITECTURES[request.param]
    if SCAN_BY_HEADS.items() <= architecture.keys.items():
        keys = {**architecture.keys, "ssm.state_size": _SCANNED}
        architecture = msgspec.structs.replace(architecture, keys=keys)
    path = tmp_path_factory.mktemp("law") / f"{request.param}.gguf"
    short = request.config.getoption("--short")
    given = EngineOptions(threads=1, gpu_layers=999, exact=False) if short else _TRIED
    made = Model(make(architecture, request.param, path), given=given)
    offload = made.loaded.model.offload
    if "ended a process" in offload.why_not and in_software():
        made.close()
        pytest.skip(offload.why_not)
    assert offload.layers == offload.all_layers > 1, offload.why_not
    yield made
    made.close()


def test_a_gpu_computes_what_the_processor_computes(model: Model) -> None:
    """On average. If rounding chooses another expert, a token's log-probability moves by nats."""
    request = (job(prompt(2, _HEADER), scored=0, max_tokens=2),)
    processor = Model(model.path, given=EngineOptions(threads=1, gpu_layers=0))
    expected, found = processor.fresh(request).scored[0], model.fresh(request).scored[0]
    processor.close()
    assert expected is not None
    assert found is not None
    assert np.abs(np.subtract(found.logprobs, expected.logprobs)[1:]).mean() < _AVERAGE


@pytest.mark.whole
@pytest.mark.parametrize("order", SHORT)
def test_an_answer_is_that_of_a_fresh_server(model: Model, order: str) -> None:
    """Bit for bit, because what the probe did not confirm is not shared."""
    with model.server() as server:
        for request in ORDERS[order](model):
            found = server.ask(request)
            if model.batch_invariant or is_single(request):
                assert difference(found, model.fresh(request)) is None


@contextmanager
def sharing(model: Model) -> Iterator[None]:
    """The model as with ``--kv fast``: prefixes are shared on a GPU as on the processor."""
    promised = model.loaded
    model.loaded = msgspec.structs.replace(promised, sharing=promised.model.unproven_sharing)
    try:
        yield
    finally:
        model.loaded = promised


def ask_in_steps(
    server: Server, request: Request, budgets: Sequence[int] = ()
) -> tuple[Answer, Sequence[int]]:
    """Returns the answer, and how many prompt tokens each step computed."""
    key = server.send(request)
    counters, computed, planned = server.scheduler.counters, [], iter(budgets)
    while not server.scheduler.idle:
        before = counters.prefilled_tokens
        server.step(next(planned, BUDGET))
        computed.append(counters.prefilled_tokens - before)
    return server.answers[key], [tokens for tokens in computed if tokens]


def test_a_shared_prefix_is_what_the_same_batches_compute(model: Model) -> None:
    """Bit for bit, however a GPU rounds: steps of the same sizes give what a prefix replaces."""
    header, *questions = (
        (job(prompt(2, _HEADER, tail, branch=branch)),) for tail, branch in ((0, 0), (9, 0), (9, 1))
    )
    with sharing(model):
        with model.server() as server:
            _, shared = ask_in_steps(server, header)
            found = [ask_in_steps(server, question) for question in questions]
        for question, (answer, own) in zip(questions, found, strict=True):
            prompt_tokens = len(question[0].prompt_ids)
            steps = [*shared, *own] if sum(own) < prompt_tokens else own
            with model.server() as server:
                expected, computed = ask_in_steps(server, question, steps)
            assert computed == steps
            assert sum(computed) == prompt_tokens
            assert difference(answer, expected) is None
    assert sum(own) < prompt_tokens, "the last question shares"


@pytest.mark.whole
def test_shared_prefixes_change_no_more_than_a_batch_does(model: Model) -> None:
    """They change how many tokens a step computes."""
    requests = ORDERS["questions behind a header"](model)
    fresh = [model.fresh(request) for request in requests]
    with sharing(model), model.server() as server:
        for request, expected in zip(requests, fresh, strict=True):
            assert nats_apart(server.ask(request), expected) < _NATS
        prefilled = server.scheduler.counters.prefilled_tokens
    assert prefilled < sum(len(job.prompt_ids) for request in requests for job in request) / 2
