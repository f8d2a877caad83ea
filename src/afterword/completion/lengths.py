"""What a middle of a length costs at least: longer texts are less likely, whatever they say (F3).

If places were compared by log-probabilities alone, short middles would be the best ones: one word
costs little, and many texts share what a long middle may cost. So a middle is compared with the
likeliest text of the same length that was drawn after the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

SHARE = 0.75
"""How much of the likeliest text's log-probability is taken off a middle's; see decision 65."""


class LengthCosts:
    """A share of the log-probability of the likeliest drawn text of each length.

    ``texts`` are the log-probabilities of the tokens of each text, without its end token.
    """

    def __init__(self, texts: Iterable[Sequence[float]]) -> None:
        sums = [list(accumulate(text)) for text in texts]
        longest = max(map(len, sums), default=0)
        self._costs = [0.0]
        for at in range(longest):
            self._costs.append(SHARE * max(text[at] for text in sums if at < len(text)))

    def of(self, tokens: int) -> float:
        """Returns what is taken off the log-probability of a middle of so many tokens; negative.

        Of more than were drawn, each token costs what one of the longest text cost on average.
        """
        known = len(self._costs) - 1
        if tokens <= known:
            return self._costs[tokens]
        return self._costs[-1] * tokens / max(known, 1)
