"""A process that opens a model with layers on a GPU, and computes a batch (``loading.try_apart``).

A fault in the driver of a GPU ends the process that it happens in. Here it ends no server.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from threading import Thread

import msgspec
import numpy as np

from afterword.core.errors import ConfigError
from afterword.engine.batching.runner import Batch, DecodeError
from afterword.engine.llama.engine import open_model
from afterword.engine.llama.loading import NOTHING_TRIED, GpuTrial, load, placed
from afterword.engine.llama.runner import LlamaRunner
from afterword.models.notes import Notes


def _compute(runner: LlamaRunner) -> None:
    """Compute a batch as large as any, and one token behind it, as a server does."""
    count = min(runner.max_batch_tokens, runner.context_tokens - 1)
    for start, end in ((0, count), (count, count + 1)):
        positions = np.arange(start, end, dtype=np.int32)
        runner.decode(
            Batch(
                tokens=positions % runner.vocabulary,
                positions=positions,
                slots=np.zeros_like(positions),
                wanted=positions == end - 1,
            )
        )


def attempt(wanted: GpuTrial) -> bool:
    """Open a model, and compute. Returns whether a GPU has room for a layer of it.

    Raises ``ConfigError`` or ``DecodeError`` with the reason if that fails.
    """
    notes = Notes(Path(wanted.notes)) if wanted.notes is not None else None
    path, digest = Path(wanted.path), wanted.digest
    offload = placed(path, wanted.options)
    if not offload.layers:
        return False
    # A number, so that nothing is done on the processor instead.
    options = msgspec.structs.replace(wanted.options, gpu_layers=offload.layers)
    loaded = load(path, options, digest=digest, notes=notes, offload=offload)
    opened = open_model(loaded, digest=digest, name=path.stem, options=options, notes=notes)
    _compute(opened.runner)
    opened.runner.close()
    return True


def _end_with_input() -> None:
    """End this process when its input ends, because then the server that waited has ended."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    """Read a line with a ``GpuTrial`` from standard input, which stays open while somebody waits.

    Exit with 1, and the reason on standard output, if it fails.
    """
    # Ctrl-C reaches this process, too, and ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The server gives the same warnings itself. The last words of a driver stay.
    logging.disable(logging.WARNING)
    wanted = msgspec.json.decode(sys.stdin.buffer.readline(), type=GpuTrial)
    Thread(target=_end_with_input, daemon=True).start()
    try:
        sys.exit(0 if attempt(wanted) else NOTHING_TRIED)
    except (ConfigError, DecodeError) as error:
        sys.stdout.write(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
