"""Rows as a table of pandas, which is imported only then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]
"""Values by the names of their columns."""


def frame(rows: Iterable[Row], columns: Sequence[str]) -> Any:  # noqa: ANN401 - pandas is not a dependency
    """Returns a ``pandas.DataFrame``, with the columns also for no rows.

    Raises ``ImportError`` if pandas is not installed.
    """
    try:
        pandas: Any = import_module("pandas")
    except ModuleNotFoundError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas", name="pandas") from error
    return pandas.DataFrame.from_records(list(rows), columns=list(columns))
