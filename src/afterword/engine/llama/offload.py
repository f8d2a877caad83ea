"""Which layers of a model run on a GPU. Plain values: no library is imported here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import msgspec


class Device(msgspec.Struct, frozen=True):
    """A GPU as the library names and describes it. ``pointer`` is the library's.

    ``free_bytes`` and ``total_bytes`` are of its memory; an ``integrated`` one has the machine's.
    A driver that tells neither says 0.
    """

    name: str
    description: str
    free_bytes: int
    total_bytes: int
    integrated: bool
    pointer: int


class Offload(msgspec.Struct, frozen=True):
    """The last ``layers`` of a model run on ``devices``, the others on the processor.

    The output counts as a layer, so there is one more in ``all_layers`` than the file says. With
    ``kv`` the KV memory of these layers is on the devices. What is free on ``devices`` is that
    before the model was loaded, and ``weights_bytes`` an estimate of what it takes there.
    ``variables`` are those of the environment that choose kernels of a GPU. ``why_not`` says why
    no layer runs on a GPU although some might.
    """

    layers: int = 0
    all_layers: int = 0
    devices: tuple[Device, ...] = ()
    kv: bool = True
    weights_bytes: int = 0
    variables: tuple[str, ...] = ()
    why_not: str = ""

    def __str__(self) -> str:
        """Returns what runs where, in words; empty without a layer on a GPU."""
        if not self.layers:
            return ""
        kv = "KV memory there" if self.kv else "KV memory in main memory"
        return f"{self.layers} of {self.all_layers} layers on {self._where}, {kv}"

    def details(self) -> dict[str, str | int]:
        """Returns what runs on a GPU, for a model's card."""
        if not self.layers:
            return {"gpu_layers": 0, **({"no_gpu": self.why_not} if self.why_not else {})}
        return {
            "gpu_layers": self.layers,
            "layers": self.all_layers,
            "device": self._where,
            "kv_on_gpu": self.kv,
        }

    @property
    def _where(self) -> str:
        return ", ".join(f"{device.name} ({device.description})" for device in self.devices)

    @property
    def origin(self) -> tuple[str, ...]:
        """All that may change an answer or a note about a model; nothing without a GPU."""
        return (str(self), *self.variables) if self.layers else ()

    @property
    def on_each(self) -> Sequence[int]:
        """The number of layers on each of the devices."""
        return split(self.layers, [device.free_bytes for device in self.devices])


def split(layers: int, free_bytes: Sequence[int]) -> Sequence[int]:
    """Returns the number of layers on each device: the library's split by what is free there."""
    # Drivers that tell nothing.
    parts = free_bytes if any(free_bytes) else [1] * len(free_bytes)
    ends = [end / sum(parts) for end in accumulate(parts)]
    where = [bisect_right(ends, layer / layers) for layer in range(layers)]
    return [where.count(device) for device in range(len(free_bytes))]


ON_PROCESSOR = Offload()
"""All layers run on the processor, and nobody wanted it otherwise."""
