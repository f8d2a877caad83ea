"""OpenTelemetry (an extra): sends a span for each request to OTEL_EXPORTER_OTLP_ENDPOINT."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from afterword.core.errors import ConfigError
from afterword.http.middleware import AccessRecord, Observer

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as missing:
    raise ConfigError("otel needs its packages: pip install 'afterword[otel]'") from missing


@contextmanager
def open_tracing() -> Iterator[Observer]:
    """Yields an observer that sends spans; the end of the block sends the last ones.

    The usual OTEL_ variables configure it.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": "afterword"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield observer(provider.get_tracer("afterword"))
    finally:
        provider.shutdown()


def observer(tracer: Tracer) -> Observer:
    """Returns an observer that makes a span of each finished request, in the client's trace."""
    propagator = TraceContextTextMapPropagator()

    def observe(record: AccessRecord, headers: Mapping[bytes, bytes]) -> None:
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        end_ns = time.time_ns()
        start_ns = end_ns - round(record.duration_ms * 1e6)
        span = tracer.start_span(
            f"{record.method} {record.route}",
            propagator.extract(carrier),
            SpanKind.SERVER,
            attributes={k: v for k, v in _attributes(record).items() if v is not None},
            start_time=start_ns,
        )
        if record.first_token_ms is not None:
            span.add_event("first token", timestamp=start_ns + round(record.first_token_ms * 1e6))
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)

    return observe


def _attributes(record: AccessRecord) -> Mapping[str, str | int | bool | None]:
    """Returns a span's attributes: no prompt, no completion, no secret of a key.

    Source of the names: OpenTelemetry's semantic conventions, where they have one.
    """
    return {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "afterword.request_id": record.request_id,
        "afterword.outcome": record.outcome,
        "afterword.key_id": record.key,
        "afterword.stream": record.stream,
        "afterword.cached_tokens": record.cached_tokens,
    }
