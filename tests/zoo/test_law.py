"""An answer equals that of a fresh server, whatever was asked before, on every kind of model."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from zoo.machine import Law
from zoo.orders import ORDERS, job, prompt
from zoo.serving import Model, difference, is_single

PHASES = (Phase.explicit, Phase.generate)
"""Failures are not shrunk, because each try asks a model for many answers."""


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_of_requests(model: Model, order: str) -> None:
    requests = ORDERS[order](model)
    with model.server() as server:
        for request in requests:
            found = server.ask(request)
            if model.batch_invariant or is_single(request):
                assert difference(found, model.fresh(request)) is None


def test_any_order(model: Model, law_examples: int) -> None:
    class Here(Law):
        def __init__(self) -> None:
            super().__init__(model)

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=law_examples,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            report_multiple_bugs=False,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_many_prefixes_are_kept_and_evicted(model: Model) -> None:
    """Four times as many as memory holds, asked in turn, give the answers of a fresh server."""
    requests = [
        (job(prompt(stem, 150 + 9 * cut, 9, branch=cut), max_tokens=2),)
        for cut in range(5)
        for stem in range(3)
    ]
    with model.server(2, contexts=1) as server:
        for request in (*requests, *requests[::2]):
            assert difference(server.ask(request), model.fresh(request)) is None


def test_answers_that_outgrow_memory_are_those_of_a_fresh_server(model: Model) -> None:
    """Three of 420 tokens do not fit into two contexts of 512: one of them is preempted."""
    requests = [(job(prompt(stem, 20), max_tokens=400, endless=True),) for stem in range(3)]
    with model.server(3, contexts=2) as server:
        keys = [server.send(request) for request in requests]
        server.run()
        for key, request in zip(keys, requests, strict=True):
            assert len(server.answers[key].choices[0, 0].tokens) == 400
            if model.batch_invariant:
                assert difference(server.answers[key], model.fresh(request)) is None
        in_blocks = server.runner.blocks > 0 and server.runner.sharing == "cells"
        assert (server.scheduler.counters.preemptions > 0) == in_blocks


def test_a_header_is_computed_once_for_all_questions_behind_it(model: Model) -> None:
    """The second prompt, at the latest, shows where the header ends."""
    if not model.batch_invariant:
        pytest.skip("nothing is shared where results depend on the batch")
    header, question, questions = 200, 9, 20
    with model.server() as server:
        for branch in range(questions):
            server.ask((job(prompt(2, header, question, branch=branch), max_tokens=1),))
        prefilled = server.scheduler.counters.prefilled_tokens
    assert prefilled <= 2 * header + questions * (question + 1)
