"""Whatever was asked before, an answer is that of a fresh server: on every kind of model."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from zoo.machine import Law
from zoo.orders import ORDERS
from zoo.serving import Model, difference

PHASES = (Phase.explicit, Phase.generate)
"""A failure is not made smaller: each try asks a model for many answers."""


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_of_requests(model: Model, order: str) -> None:
    requests = ORDERS[order](model)
    with model.server() as server:
        for request in requests:
            found = server.ask(request)
            if model.batch_invariant or len(request) == request[0].n == 1:
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
