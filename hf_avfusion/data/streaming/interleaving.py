"""Interleaves the rows of several benchmarks, in turn or at random, and merges their label names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from .orders import Draw, RowOrder, stable_hash

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

STRATEGIES = ("first_exhausted", "all_exhausted", "all_exhausted_without_replacement")


def interleave(
    sources: Sequence[Any],
    *,
    probabilities: Sequence[float] | None = None,
    seed: int = 0,
    stopping_strategy: str = "first_exhausted",
    names: Mapping[str, Sequence[str]] | None = None,
    num_rows: Sequence[int | None] | None = None,
) -> InterleavedRows:
    """Interleaves the rows of several benchmarks, for a `ClipStream`.

    The sequence of sources is that of `datasets.interleave_datasets` for the same arguments. It is the same in every epoch,
    so all epochs have one length. If the stream is shuffled, each source is shuffled separately, and the rows differ from
    epoch to epoch: "first_exhausted" leaves out random rows of the longer benchmarks, where `interleave_datasets` would
    always leave out their last rows. Rows are read only when needed, and nothing is copied.

    Class labels are merged by name. If the sources' lists of names differ, the merged list has the names of the first
    source, then the additional names of each next source. Class numbers are mapped when rows are read. `features` of the
    result has the merged list.

    Args:
        sources: two or more datasets that a `ClipStream` takes: `datasets.Dataset`, `datasets.IterableDataset`, lists of
            rows. All have the same columns (use `select_columns`, `rename_column`).
        probabilities: of the sources, summing to 1; None takes one row of each source in turn.
        seed: seed of the random choice of sources.
        stopping_strategy: an epoch ends when the first source is exhausted ("first_exhausted"); when every source was
            exhausted once, where shorter sources start again ("all_exhausted"; a repeated row gets another window and
            augmentation, and is counted in `repeated_clips`); or when every row appeared exactly once
            ("all_exhausted_without_replacement").
        names: column -> class names in the wanted order, such as those of a trained model. A source with other names
            raises an error.
        num_rows: number of rows of each source, None for a streamed source of unknown length. It gives the epoch a length.

    Raises:
        ValueError: there are fewer than two sources, the probabilities or the strategy are invalid, columns or their types
            differ, a name is missing in `names`, or names of two sources differ only in capitals or spaces.
    """
    return InterleavedRows(sources, probabilities, seed, stopping_strategy, names, num_rows)


class InterleavedRows:
    """Interleaved rows, made by `interleave`.

    `features`: of the rows, None if the sources have none. `num_rows`: of an epoch, None if unknown.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        probabilities: Sequence[float] | None,
        seed: int,
        stopping_strategy: str,
        names: Mapping[str, Sequence[str]] | None,
        num_rows: Sequence[int | None] | None,
    ):
        self.sources = list(sources)
        if len(self.sources) < 2:
            raise ValueError(f"interleave takes two or more sources, got {len(self.sources)}")
        if stopping_strategy not in STRATEGIES:
            raise ValueError(f"stopping_strategy must be one of {', '.join(STRATEGIES)}, got {stopping_strategy!r}")
        if probabilities is not None:
            probabilities = [float(value) for value in probabilities]
            # A source with probability 0 would never be exhausted.
            if len(probabilities) != len(self.sources) or min(probabilities) <= 0 or abs(sum(probabilities) - 1) > 1e-6:
                raise ValueError(
                    f"probabilities must be {len(self.sources)} positive numbers that sum to 1, got {probabilities}"
                )
            probabilities = [value / sum(probabilities) for value in probabilities]
        self.probabilities = probabilities
        self.seed = seed
        self.stopping_strategy = stopping_strategy
        self.features, self._maps = _align_features(
            [getattr(source, "features", None) for source in self.sources], names
        )
        _check_same_keys(self.sources)
        num_rows = list(num_rows) if num_rows is not None else [None] * len(self.sources)
        if len(num_rows) != len(self.sources):
            raise ValueError(
                f"num_rows must have a number or None for each of {len(self.sources)} sources, got {len(num_rows)} values"
            )
        self._orders = [RowOrder(source, num_rows=number) for source, number in zip(self.sources, num_rows)]
        if empty := [number for number, order in enumerate(self._orders) if order.num_rows == 0]:
            raise ValueError(f"the sources {empty} have no rows; leave them out")
        known = [order.num_rows for order in self._orders]
        self.num_rows, self._left_out = (None, 0) if None in known else self._length(known)

    def shuffled(self, seed: int, shuffle_buffer: int) -> InterleavedRows:
        """Returns a copy in which each source is shuffled separately; called by `ClipStream`."""
        made = object.__new__(InterleavedRows)
        made.__dict__.update(self.__dict__)
        made._orders = [
            RowOrder(
                order.rows,
                seed=stable_hash("source", seed, number),
                shuffle_buffer=shuffle_buffer,
                num_rows=order.num_rows,
            )
            for number, order in enumerate(self._orders)
        ]
        return made

    def draws(self, epoch: int) -> Iterator[Draw]:
        """Yields the whole order of an epoch, the same in all processes and workers."""
        turns = [0] * len(self._orders)
        running = [order.draws(epoch) for order in self._orders]
        heads = [next(each, None) for each in running]  # one row ahead, to notice the last row of a source
        if None in heads:
            raise ValueError(f"source {heads.index(None)} of the interleaved rows has no rows; leave it out")
        ended = [False] * len(heads)
        over = any if self.stopping_strategy == "first_exhausted" else all
        for number in self._choices():
            if heads[number] is None:
                continue  # exhausted, and not repeated
            draw = Draw(partial(self._read, number, heads[number].read), copy=turns[number])
            heads[number] = next(running[number], None)
            if heads[number] is None:
                ended[number] = True
                if over(ended):
                    draw.left_out = self._left_out
                    yield draw
                    return
                if self.stopping_strategy == "all_exhausted":
                    turns[number] += 1
                    running[number] = self._orders[number].draws(epoch, turns[number])
                    heads[number] = next(running[number])
            yield draw

    @property
    def clips_hash(self) -> list[int | None]:
        """`RowOrder.clips_hash` of each source."""
        return [order.clips_hash for order in self._orders]

    def layout(self) -> dict[str, Any]:
        """The settings that the order depends on, apart from the stream's seed and buffer, as JSON values."""
        return {
            "interleaved": [order.num_rows for order in self._orders],
            "probabilities": self.probabilities,
            "seed": self.seed,
            "stopping_strategy": self.stopping_strategy,
        }

    @property
    def split_by_node(self) -> bool:
        return any(getattr(order.rows, "_distributed", None) is not None for order in self._orders)

    def _choices(self) -> Iterator[int]:
        """Yields the numbers of the sources without end, in the sequence of `datasets.interleave_datasets`."""
        if self.probabilities is None:
            yield from cycle(range(len(self._orders)))
        generator = np.random.default_rng(self.seed)
        while True:
            yield from generator.choice(len(self._orders), size=1000, p=self.probabilities).tolist()

    def _length(self, known: list[int]) -> tuple[int, int]:
        """Computes the number of rows of an epoch and of the rows it leaves out, from the lengths of the sources."""
        if self.stopping_strategy == "all_exhausted_without_replacement":
            return sum(known), 0
        left = list(known)
        ended = [False] * len(known)
        over = any if self.stopping_strategy == "first_exhausted" else all
        for length, number in enumerate(self._choices(), start=1):
            left[number] -= 1
            if left[number] == 0:
                ended[number] = True
                if over(ended):
                    first = self.stopping_strategy == "first_exhausted"
                    return length, sum(left) if first else 0
                left[number] = known[number]
        raise AssertionError("unreachable: _choices never ends")

    def _read(self, number: int, read: Any) -> Mapping[str, Any]:
        row, maps = read(), self._maps[number]
        if not maps:
            return row
        row = dict(row)
        for column, table in maps.items():
            value = row[column]
            if isinstance(value, (list, tuple)):
                row[column] = [_map_label(item, table) for item in value]
            else:
                row[column] = _map_label(value, table)
        return row


def _map_label(label: int | None, table: list[int]) -> int | None:
    return label if label is None or label < 0 else table[label]  # -1 is datasets' "no label"


def _align_features(
    features: list[datasets.Features | None], names: Mapping[str, Sequence[str]] | None
) -> tuple[datasets.Features | None, list[dict[str, list[int]]]]:
    """Merges the features of the sources.

    Returns:
        the merged features; and for each source, a dictionary from column to new class numbers, for changed columns.
    """
    import datasets

    if any(each is None for each in features):
        if names or any(each is not None for each in features):
            raise ValueError(
                "some sources have no features, so their labels have no names and cannot be merged; make them datasets with"
                " features (Dataset.from_list(rows, features=...), cast)"
            )
        return None, [{} for _ in features]
    first = features[0]
    for number, each in enumerate(features[1:], start=1):
        if differ := sorted(set(first) ^ set(each)):
            raise ValueError(
                f"sources 0 and {number} must have the same columns, but only one of them has {', '.join(differ)}; use"
                " select_columns or rename_column"
            )
        for column in first:
            if _kind(first[column]) != _kind(each[column]):
                raise ValueError(
                    f"the column {column!r} is {_kind(first[column])} in source 0 and {_kind(each[column])} in source"
                    f" {number}; cast one of them"
                )
    if unknown := sorted(set(names or {}) - {column for column in first if _names(first[column]) is not None}):
        raise ValueError(
            f"names has the keys {', '.join(unknown)}, which are not columns of class labels; remove them from names"
        )
    merged, maps = dict(first), [{} for _ in features]
    for column in first:
        lists = [_names(each[column]) for each in features]
        if lists[0] is None:
            continue
        target = _merge_names(column, lists, (names or {}).get(column))
        for each, own in zip(maps, lists):
            if own != target:
                number_of = {name: number for number, name in enumerate(target)}
                each[column] = [number_of[name] for name in own]
        label = datasets.ClassLabel(names=target)
        merged[column] = datasets.List(label) if isinstance(first[column], datasets.List) else label
    return datasets.Features(merged), maps


def _merge_names(column: str, lists: list[list[str]], wanted: Sequence[str] | None) -> list[str]:
    if wanted is not None:
        target = list(wanted)
        for number, own in enumerate(lists):
            if missing := [name for name in own if name not in set(target)]:
                raise ValueError(
                    f"source {number} has {len(missing)} classes of {column!r} that names[{column!r}] lacks, such as"
                    f" {', '.join(map(repr, missing[:3]))}; add them to names, or leave out their rows"
                )
        return target
    target = list(dict.fromkeys(name for own in lists for name in own))
    written: dict[str, str] = {}
    for name in target:
        other = written.setdefault(" ".join(name.lower().replace("_", " ").split()), name)
        if other != name:
            raise ValueError(
                f"the class names {other!r} and {name!r} of {column!r} differ only in spelling; rename one if they are the"
                f" same class, or pass names={{{column!r}: [...]}} if they are two classes"
            )
    if any(own != target for own in lists):
        logger.warning(
            "interleaved sources have different lists of %r (%s names); merged them to %d names, %d of which are in all",
            column,
            ", ".join(str(len(own)) for own in lists),
            len(target),
            len(set.intersection(*map(set, lists))),
        )
    return target


def _names(feature: Any) -> list[str] | None:
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else list(names)


def _kind(feature: Any) -> str:
    """Describes the type of a column (class label, list or value type), without the width of numbers."""
    inner = getattr(feature, "feature", None)
    if inner is not None and not isinstance(inner, dict):
        return f"a list of {_kind(inner)}"
    dtype = getattr(feature, "dtype", None)
    if type(feature).__name__ == "Value" and dtype is not None:
        return dtype.rstrip("0123456789").removeprefix("large_")
    return type(feature).__name__


def _check_same_keys(sources: list[Any]) -> None:
    """Compares the first rows of sources without features, such as lists of rows."""
    if any(getattr(source, "features", None) is not None for source in sources):
        return
    keys = [set(source[0]) for source in sources if hasattr(source, "__getitem__") and len(source)]
    for number, each in enumerate(keys[1:], start=1):
        if differ := sorted(keys[0] ^ each):
            raise ValueError(
                f"sources 0 and {number} must have the same columns, but only one of them has {', '.join(differ)}"
            )
