"""Several benchmarks as one: rows taken from them by turns or by chance, their labels brought to one list of names."""

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
    """Rows of several benchmarks as one, for a `ClipStream`.

    Which source comes next is what `datasets.interleave_datasets` gives for the same arguments, and the same in every
    epoch, so that epochs have one length. Which of a source's rows come, and when, differs from epoch to epoch if the
    stream is shuffled (each source by itself): what "first_exhausted" leaves out is left out by chance, not always the
    end of the longer benchmark, as it would be there. Rows are read where they are needed; nothing is copied.

    Class labels are brought together by name. Where the lists of names are equal nothing happens; otherwise the new
    list has the names of the first source and then those that each next one adds, and class numbers are changed as rows
    are read. `features` of the result has that list.

    Args:
        sources: two or more of what a `ClipStream` takes: `datasets.Dataset`, `datasets.IterableDataset`, lists of rows.
            All have the same columns (use `select_columns`, `rename_column`).
        probabilities: of the sources, summing to 1; None takes a row of each by turns.
        seed: of the choice of sources.
        stopping_strategy: an epoch ends when the first source is used up ("first_exhausted"); when every source has been
            used up once, shorter ones starting again meanwhile ("all_exhausted"; a row that comes again is cut and
            augmented anew and counted in `repeated_clips`); or when every row has come exactly once
            ("all_exhausted_without_replacement").
        names: column -> names in the order of the class numbers wanted, such as those of a trained model; a source with
            a name that is not among them is refused.
        num_rows: of each source, where a streamed one's is known, so that the epoch has a length.

    Raises:
        ValueError: fewer than two sources, wrong probabilities or strategy, columns or kinds of columns that differ, names
            that are missing in `names`, or that two sources write with other capitals or spaces.
    """
    return InterleavedRows(sources, probabilities, seed, stopping_strategy, names, num_rows)


class InterleavedRows:
    """What `interleave` returns. `features` of its rows (None if the sources have none), `num_rows` of an epoch (None if
    not known).
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
            # Of a source that is never asked an epoch never sees the end.
            if len(probabilities) != len(self.sources) or min(probabilities) <= 0 or abs(sum(probabilities) - 1) > 1e-6:
                raise ValueError(
                    f"probabilities must be {len(self.sources)} positive numbers that sum to 1, got {probabilities}"
                )
            probabilities = [value / sum(probabilities) for value in probabilities]
        self.probabilities = probabilities
        self.seed = seed
        self.stopping_strategy = stopping_strategy
        self.features, self._maps = _align([getattr(source, "features", None) for source in self.sources], names)
        _same_keys(self.sources)
        num_rows = list(num_rows) if num_rows is not None else [None] * len(self.sources)
        if len(num_rows) != len(self.sources):
            raise ValueError(f"num_rows must hold a number or None for each of {len(self.sources)} sources")
        self._orders = [RowOrder(source, num_rows=number) for source, number in zip(self.sources, num_rows)]
        if empty := [number for number, order in enumerate(self._orders) if order.num_rows == 0]:
            raise ValueError(f"sources {empty} have no rows")
        known = [order.num_rows for order in self._orders]
        self.num_rows, self._left_out = (None, 0) if None in known else self._length(known)

    def shuffled(self, seed: int, shuffle_buffer: int) -> InterleavedRows:
        """The same with each source shuffled by itself; for `ClipStream`."""
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
        """The whole order of an epoch, the same in all processes and workers."""
        turns = [0] * len(self._orders)
        running = [order.draws(epoch) for order in self._orders]
        heads = [next(each, None) for each in running]  # one ahead, to know the end of a source when it comes
        if None in heads:
            raise ValueError(f"source {heads.index(None)} of the interleaved rows gave no row")
        ended = [False] * len(heads)
        over = any if self.stopping_strategy == "first_exhausted" else all
        for number in self._choices():
            if heads[number] is None:
                continue  # used up, and not to be used again
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
    def clips(self) -> list[int | None]:
        """Of each source, see `RowOrder.clips`."""
        return [order.clips for order in self._orders]

    def layout(self) -> dict[str, Any]:
        """What decides the order besides the stream's own seed and buffer, as JSON can hold it."""
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
        """Endless numbers of sources, those of `datasets.interleave_datasets`."""
        if self.probabilities is None:
            yield from cycle(range(len(self._orders)))
        generator = np.random.default_rng(self.seed)
        while True:
            yield from generator.choice(len(self._orders), size=1000, p=self.probabilities).tolist()

    def _length(self, known: list[int]) -> tuple[int, int]:
        """Rows of an epoch, and how many it leaves out, from the lengths of the sources."""
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
        raise AssertionError("choices never end")

    def _read(self, number: int, read: Any) -> Mapping[str, Any]:
        row, maps = read(), self._maps[number]
        if not maps:
            return row
        row = dict(row)
        for column, table in maps.items():
            value = row[column]
            if isinstance(value, (list, tuple)):
                row[column] = [_mapped(item, table) for item in value]
            else:
                row[column] = _mapped(value, table)
        return row


def _mapped(label: int | None, table: list[int]) -> int | None:
    return label if label is None or label < 0 else table[label]  # -1 is datasets' "no label"


def _align(
    features: list[datasets.Features | None], names: Mapping[str, Sequence[str]] | None
) -> tuple[datasets.Features | None, list[dict[str, list[int]]]]:
    """The features of all, and for each source the new numbers of the columns whose classes are numbered anew."""
    import datasets

    if any(each is None for each in features):
        if names or any(each is not None for each in features):
            raise ValueError(
                "some sources have no known features, so their labels have no names to go by: make them datasets with"
                " features (Dataset.from_list(rows, features=...), cast)"
            )
        return None, [{} for _ in features]
    first = features[0]
    for number, each in enumerate(features[1:], start=1):
        if differ := sorted(set(first) ^ set(each)):
            raise ValueError(
                f"sources 0 and {number} do not have the same columns, only one of them has {', '.join(differ)}: bring"
                " them to one set with select_columns or rename_column"
            )
        for column in first:
            if _kind(first[column]) != _kind(each[column]):
                raise ValueError(
                    f"the column {column!r} is {_kind(first[column])} in source 0 and {_kind(each[column])} in source"
                    f" {number}: cast one of them"
                )
    if unknown := sorted(set(names or {}) - {column for column in first if _names(first[column]) is not None}):
        raise ValueError(f"names are given for {', '.join(unknown)}, which are no columns of class labels")
    merged, maps = dict(first), [{} for _ in features]
    for column in first:
        lists = [_names(each[column]) for each in features]
        if lists[0] is None:
            continue
        target = _one_list(column, lists, (names or {}).get(column))
        for each, own in zip(maps, lists):
            if own != target:
                number_of = {name: number for number, name in enumerate(target)}
                each[column] = [number_of[name] for name in own]
        label = datasets.ClassLabel(names=target)
        merged[column] = datasets.List(label) if isinstance(first[column], datasets.List) else label
    return datasets.Features(merged), maps


def _one_list(column: str, lists: list[list[str]], wanted: Sequence[str] | None) -> list[str]:
    if wanted is not None:
        target = list(wanted)
        for number, own in enumerate(lists):
            if missing := [name for name in own if name not in set(target)]:
                raise ValueError(
                    f"source {number} has {len(missing)} classes of {column!r} that names[{column!r}] lacks, such as"
                    f" {', '.join(map(repr, missing[:3]))}"
                )
        return target
    target = list(dict.fromkeys(name for own in lists for name in own))
    written: dict[str, str] = {}
    for name in target:
        other = written.setdefault(" ".join(name.lower().replace("_", " ").split()), name)
        if other != name:
            raise ValueError(
                f"the classes {other!r} and {name!r} of {column!r} differ only in writing, and would be two: rename one,"
                f" or give names={{{column!r}: [...]}} if they are two"
            )
    if any(own != target for own in lists):
        logger.warning(
            "interleaved sources have different lists of %r (%s names), brought to one of %d by name; %d names are in all",
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
    """What must be alike: class labels, one or several, or the type; not the width of a number."""
    inner = getattr(feature, "feature", None)
    if inner is not None and not isinstance(inner, dict):
        return f"a list of {_kind(inner)}"
    dtype = getattr(feature, "dtype", None)
    if type(feature).__name__ == "Value" and dtype is not None:
        return dtype.rstrip("0123456789").removeprefix("large_")
    return type(feature).__name__


def _same_keys(sources: list[Any]) -> None:
    """Lists of rows have no features; their first rows tell the columns."""
    if any(getattr(source, "features", None) is not None for source in sources):
        return
    keys = [set(source[0]) for source in sources if hasattr(source, "__getitem__") and len(source)]
    for number, each in enumerate(keys[1:], start=1):
        if differ := sorted(keys[0] ^ each):
            raise ValueError(f"sources 0 and {number} do not have the same columns: {', '.join(differ)}")
