"""What changes a row of logits before a token is drawn from it."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.engine.arrays import Ids, Row
from afterword.engine.history import History

Mask = npt.NDArray[np.bool_]


class Bias(msgspec.Struct, frozen=True):
    """``logit_bias`` by meaning: ``values`` to add at ``ids``, ``banned`` and ``forced`` ids."""

    ids: Ids
    values: Row
    banned: Ids
    forced: Ids

    @staticmethod
    def of(logit_bias: tuple[tuple[int, float], ...]) -> Bias | None:
        """Returns the bias of (id, value) pairs; None if empty. -100 bans and 100 forces (R14)."""
        if not logit_bias:
            return None
        added = [(i, v) for i, v in logit_bias if -100 < v < 100]
        return Bias(
            np.array([i for i, _ in added], np.int64),
            np.array([v for _, v in added], np.float32),
            np.array([i for i, v in logit_bias if v <= -100], np.int64),
            np.array([i for i, v in logit_bias if v >= 100], np.int64),
        )


def change(
    logits: Row,
    *,
    bias: Bias | None = None,
    history: History | None = None,
    allowed: Ids | None = None,
    mask: Mask | None = None,
    banned: Ids | None = None,
) -> None:
    """Change logits [vocabulary] in place.

    ``history`` has this choice's tokens, for the penalties. Only ``allowed`` ids and those of the
    ``mask`` [vocabulary] are left, and no ``banned`` id, whatever the bias says.
    """
    if bias is not None:
        logits[bias.ids] += bias.values
        logits[bias.banned] = -np.inf
    if history is not None:
        history.penalise(logits)
    if allowed is not None:
        _keep_only(logits, allowed)
    if mask is not None:
        np.copyto(logits, -np.inf, where=~mask)
    if banned is not None:
        logits[banned] = -np.inf
    if bias is not None and bias.forced.size and (logits[bias.forced] > -np.inf).any():
        _keep_only(logits, bias.forced)


def _keep_only(logits: Row, ids: Ids) -> None:
    """Set all other logits to minus infinity."""
    held = logits[ids]
    logits.fill(-np.inf)
    logits[ids] = held
