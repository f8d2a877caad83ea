"""The law of shared prefixes with every layer on a GPU, for every architecture of the zoo."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from afterword.engine.llama.devices import devices
from zoo.architectures import ARCHITECTURES
from zoo.making import make_model
from zoo.orders import ORDERS
from zoo.serving import Model, difference, is_single, nats_apart

SHORT = ("the same again", "behind the window", "siblings after a longer one", "arrays")
_NATS = 0.1
"""How far a log-probability may be from that of a prompt that was computed at once."""


def in_software() -> bool:
    return any(name in devices()[0].description for name in ("llvmpipe", "SwiftShader"))


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """Each model in turn, as the probe found it.

    A device in software may have a driver that ends a process. A card's may not.
    """
    assert devices(), "no GPU found: run make test-gpu"
    made = Model(
        make_model(request.param, tmp_path_factory.mktemp("law") / f"{request.param}.gguf")
    )
    offload = made.loaded.model.offload
    if "ended a process" in offload.why_not and in_software():
        made.close()
        pytest.skip(offload.why_not)
    assert offload.layers == offload.all_layers > 1, offload.why_not
    yield made
    made.close()


@pytest.mark.parametrize("order", SHORT)
def test_an_answer_is_that_of_a_fresh_server(model: Model, order: str) -> None:
    """Bit for bit, because what the probe did not confirm is not shared."""
    with model.server() as server:
        for request in ORDERS[order](model):
            found = server.ask(request)
            if model.batch_invariant or is_single(request):
                assert difference(found, model.fresh(request)) is None


def test_shared_prefixes_change_no_more_than_a_batch_does(model: Model) -> None:
    """With ``--kv fast`` prefixes are shared on a GPU as on the processor."""
    promised = model.loaded
    requests = ORDERS["questions behind a header"](model)
    fresh = [model.fresh(request) for request in requests]
    model.loaded = msgspec.structs.replace(promised, sharing=promised.model.unproven_sharing)
    try:
        with model.server() as server:
            for request, expected in zip(requests, fresh, strict=True):
                assert nats_apart(server.ask(request), expected) < _NATS
            prefilled = server.scheduler.counters.prefilled_tokens
    finally:
        model.loaded = promised
    assert prefilled < sum(len(job.prompt_ids) for request in requests for job in request) / 2
