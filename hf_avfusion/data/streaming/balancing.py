"""Balanced sampling: clips with rare labels are repeated within an epoch, clips with common labels are left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# gen_weight_file.py of PSLA and AST: label_weight = 1000 / (label_count + 0.01). The 1000 cancels.
COUNT_OFFSET = 0.01


@dataclass(frozen=True)
class LabelBalance:
    """Balanced sampling of labels, with one or several labels per clip. No published recipe here uses it.

    A clip's weight is the sum over its labels of 1 / (n_c + 0.01), where n_c is the number of clips with label c. These
    are the weights of PSLA and AST (Gong, Chung and Glass, "PSLA", IEEE/ACM TASLP 2021, section III.C;
    `gen_weight_file.py` of their code). PANNs (Kong et al. 2020) balances by cycling through the classes instead.

    PSLA and AST draw N clips with replacement per epoch. Here clip i appears floor or ceil of its expected number
    f_i = N w_i / sum_j w_j times (systematic sampling, Madow 1949): with a uniform u per epoch and
    F_i = f_1 + ... + f_i, it appears floor(F_i + u) - floor(F_(i-1) + u) times. The expectation is the same and the
    variance smaller; it needs one pass over a stream, and an epoch keeps its N clips.

    **An epoch no longer contains each clip once**: a common clip is missing in most epochs, and a rare one appears many
    times, each time with another window and augmentation. The training logs count both as `left_out_clips` and
    `repeated_clips`.

    Args:
        column: column of class numbers, one or a list per row. A row without labels has weight 0 and never appears.
        counts: number of rows of each class.
        num_rows: number of rows of the whole split.

    Raises:
        ValueError: `counts` or `num_rows` is invalid.
    """

    column: str
    counts: tuple[int, ...]
    num_rows: int
    _weights: np.ndarray = field(init=False, repr=False, compare=False)  # float64 [classes], their mean over rows is 1

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts, dtype=np.float64)
        if counts.ndim != 1 or not len(counts) or (counts < 0).any() or not counts.any():
            raise ValueError(f"counts must be the numbers of rows of the classes, not all 0, got {self.counts!r}")
        if self.num_rows < 1:
            raise ValueError(f"num_rows must be positive, got {self.num_rows}")
        object.__setattr__(self, "counts", tuple(int(count) for count in counts))
        weights = 1 / (counts + COUNT_OFFSET)
        object.__setattr__(self, "_weights", weights * (self.num_rows / (counts * weights).sum()))

    @classmethod
    def of(cls, rows: Any, column: str) -> LabelBalance:
        """Counts the labels of all rows.

        For a `datasets.Dataset`, only the column is read. For a stream, all shards are read once with their undecoded
        videos; for parquet shards, `of_shards` reads only the column.
        """
        features = getattr(rows, "features", None)
        if features is not None and column not in features:
            raise ValueError(f"no column {column!r} to balance; the columns are: {', '.join(features)}")
        if hasattr(rows, "select_columns"):
            rows = rows.select_columns([column])
        return cls.count((row[column] for row in rows), column, num_classes=_num_classes(features, column))

    @classmethod
    def of_shards(cls, shards: Iterable[str | os.PathLike], column: str) -> LabelBalance:
        """Counts the labels of parquet shards (from `shards.find_shards`, for example); reads only that column."""
        import pyarrow.parquet as pq

        batches = (batch for shard in shards for batch in pq.ParquetFile(shard).iter_batches(columns=[column]))
        return cls.count((label for batch in batches for label in batch.column(0).to_pylist()), column)

    @classmethod
    def count(cls, labels: Iterable[int | Sequence[int]], column: str, num_classes: int = 0) -> LabelBalance:
        """Counts labels, given row by row; `num_classes` is the smallest number of classes of the result."""
        counts: dict[int, int] = dict.fromkeys(range(num_classes), 0)
        number = 0
        for value in labels:
            number += 1
            for label in _as_list(value, column):
                counts[label] = counts.get(label, 0) + 1
        return cls(column, tuple(counts.get(label, 0) for label in range(max(counts, default=-1) + 1)), number)

    def factor(self, row: Mapping[str, Any]) -> float:
        """Expected number of times that a row appears in an epoch."""
        labels = _as_list(row[self.column], self.column)
        if wrong := [label for label in labels if not 0 <= label < len(self.counts)]:
            raise ValueError(
                f"the column {self.column!r} contains the classes {wrong}, but the balance counted {len(self.counts)}"
                " classes; count the labels of these rows again"
            )
        return float(sum(self._weights[label] for label in labels))

    def factors(self, rows: Any) -> np.ndarray:
        """Factors of all rows of a dataset with random access, float64 [rows]."""
        if hasattr(rows, "select_columns"):
            rows = rows.select_columns([self.column])
        return np.array([self.factor(row) for row in rows], dtype=np.float64)

    @staticmethod
    def copies(factors: np.ndarray, offset: float) -> np.ndarray:
        """Number of times that each row appears, int [rows], from factors [rows] in the epoch's order and u (`offset`)."""
        ends = np.floor(np.cumsum(factors) + offset).astype(np.int64)
        return np.diff(ends, prepend=0)

    def layout(self) -> dict[str, Any]:
        """The settings that a position in a balanced stream depends on, as JSON values."""
        return {"balanced": self.column, "counts": list(self.counts)}


def _as_list(value: Any, column: str) -> list[int]:
    labels = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(label, bool) or not isinstance(label, int) or label < 0 for label in labels):
        raise ValueError(f"the column {column!r} must contain class numbers, got {value!r}")
    return labels


def _num_classes(features: Any, column: str) -> int:
    feature = None if features is None else features[column]
    return len(getattr(getattr(feature, "feature", feature), "names", None) or ())
