"""The figures of an engine, as Prometheus gets them."""

from __future__ import annotations

from collections.abc import Callable

from afterword.engine.toy import toy_engine
from support.asgi import Client


async def test_metrics_count_batches_by_size(serve: Callable[..., Client]) -> None:
    """Five steps have four sequences, three have one."""
    client = serve(toy_engine())
    await client.complete(prompt="a", n=4, max_tokens=5, ignore_eos=True)
    await client.complete(prompt="a", max_tokens=3, ignore_eos=True)
    text = (await client.get("/metrics")).body.decode()
    name = "afterword_engine_batch_sequences"
    for bound, steps in (("1.0", 3), ("2.0", 3), ("4.0", 8), ("1024.0", 8), ("+Inf", 8)):
        assert f'{name}_bucket{{le="{bound}",model="toy"}} {steps}.0\n' in text
    assert f'{name}_count{{model="toy"}} 8.0\n' in text
    assert f'{name}_sum{{model="toy"}} 23.0\n' in text
    assert 'afterword_engine_steps_total{model="toy"} 8.0\n' in text
