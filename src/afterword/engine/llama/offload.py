"""Which layers of a model run on a GPU. Plain values: no library is imported here."""

from __future__ import annotations

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
    ``kv`` the KV memory of these layers is on the devices. ``free_bytes`` is what the devices had
    free before the model was loaded, and ``weights_bytes`` an estimate of what it takes there.
    ``why_not`` says why no layer runs on a GPU although some might.
    """

    layers: int = 0
    all_layers: int = 0
    devices: tuple[Device, ...] = ()
    kv: bool = True
    free_bytes: int = 0
    weights_bytes: int = 0
    why_not: str = ""

    def __str__(self) -> str:
        """Returns all that may change an answer, in words; empty without a layer on a GPU."""
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
        """What notes about a model depend on; nothing more without a layer on a GPU."""
        return (str(self),) if self.layers else ()

    @property
    def kv_share(self) -> float:
        """The part of the KV memory that is on the devices, from 0 to 1."""
        return self.layers / self.all_layers if self.layers and self.kv else 0.0


ON_PROCESSOR = Offload()
"""All layers run on the processor, and nobody wanted it otherwise."""
