"""Spans of requests: their place in the client's trace, their times, and no secret in them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from afterword.cli.tracing import observer
from afterword.http.middleware import AccessRecord

RECORD = AccessRecord(
    request_id="req_1", method="POST", path="/v1/completions", route="/v1/completions", status=200,
    outcome="answered", duration_ms=250.0, model="m", stream=True, first_token_ms=100.0,
    prompt_tokens=3, cached_tokens=1, completion_tokens=7, key="key-1",
)  # fmt: skip


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def test_a_span_has_the_requests_times_and_counts(exporter: InMemorySpanExporter) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observe = observer(provider.get_tracer("t"))
    trace = "0af7651916cd43dd8448eb211c80319c"
    observe(RECORD, {b"traceparent": f"00-{trace}-b7ad6b7169203331-01".encode()})
    observe(AccessRecord(request_id="r", method="GET", path="/x", route="(none)", status=500,
                         outcome="failed", duration_ms=1.0), {})  # fmt: skip
    whole, failed = exporter.get_finished_spans()
    assert whole.name == "POST /v1/completions"
    assert whole.kind is SpanKind.SERVER
    assert whole.context is not None
    assert f"{whole.context.trace_id:032x}" == trace
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == "b7ad6b7169203331"
    assert whole.start_time is not None
    assert whole.end_time is not None
    assert whole.end_time - whole.start_time == 250_000_000
    (event,) = whole.events
    assert event.timestamp - whole.start_time == 100_000_000
    assert whole.attributes is not None
    assert whole.attributes["gen_ai.usage.input_tokens"] == 3
    assert whole.attributes["gen_ai.usage.output_tokens"] == 7
    assert whole.attributes["afterword.key_id"] == "key-1"
    assert failed.parent is None
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes is not None
    assert "gen_ai.request.model" not in failed.attributes
