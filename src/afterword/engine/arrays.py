"""The arrays of an engine, by what their numbers are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
TokenIds = npt.NDArray[np.int32]
Row = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float32]
LogProbs = npt.NDArray[np.float64]

NO_IDS: TokenIds = np.empty(0, np.int32)
