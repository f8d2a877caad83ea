"""The base of readers whose request asks for one sequence of an upstream with a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from afterword.core.job import Event, Job
from afterword.gateway.dialects.stream_reader import StreamReader
from afterword.gateway.failures import StreamBroke
from afterword.gateway.vocabulary import RemoteTokenizer


class SingleReader:
    """A ``Reader`` without ``read``; ``_seen`` counts the tokens that ``read`` has seen."""

    def __init__(
        self, stream: StreamReader, job: Job, seq: int, tokenizer: RemoteTokenizer
    ) -> None:
        self._stream = stream
        self._job = job
        self._seq = seq
        self._tokenizer = tokenizer
        self._seen = 0

    @property
    def over(self) -> bool:
        """See ``Reader``."""
        return self._stream.over

    def close(self, seq: int) -> None:
        """See ``Reader``."""
        self._stream.close(seq)

    @property
    def remarks(self) -> Mapping[str, str]:
        """See ``Reader``."""
        return self._stream.remarks

    def done(self, *, said: bool) -> list[Event]:
        """See ``Reader``."""
        stream, seq = self._stream, self._seq
        if said and stream.wants(seq) and stream.made(seq):
            return [stream.ended(seq, stream.unsaid(seq))]
        if not stream.over:
            raise StreamBroke("it ended its stream without ending its choice")
        return []
