"""Which rows an epoch takes, and in which order: one benchmark, several interleaved, classes balanced. Nothing is decoded."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from .balancing import LabelBalance

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# Rows are read some at a time: between two clips that are decoded one takes longer than among others, since what reads it
# has left the processor's caches by then. Few, since they are held meanwhile.
READ_AT_ONCE = 8


@dataclass(slots=True)
class Draw:
    """One place in the order of an epoch: a row that is read when it is asked for.

    copy: how often the row has come up before in this epoch. left_out: rows that this epoch leaves out, told with the
    draw beside them, so that everybody who sums over the draws that it takes counts each once.
    """

    read: Callable[[], Mapping[str, Any]]
    copy: int = 0
    left_out: int = 0

    def row(self) -> Mapping[str, Any]:
        """The undecoded row; a repeated one has its number in `copy`, so that it is cut and augmented in another way."""
        row = self.read()
        return {**row, "copy": self.copy} if self.copy else row


class RowOrder:
    """The order of one dataset's rows in every epoch, the same in all processes and workers.

    Args:
        rows: `datasets.IterableDataset`, or anything with a length and random access.
        seed: of the order; shuffle_buffer: as `ClipStream`.
        num_rows: where a streamed dataset's is known.
        balance: rows come up as often as it says; needs shuffling, since copies of a row would be neighbours.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset | datasets.Dataset | Sequence[Mapping[str, Any]],
        *,
        seed: int = 0,
        shuffle_buffer: int = 0,
        num_rows: int | None = None,
        balance: LabelBalance | None = None,
    ):
        import datasets

        self.streamed = isinstance(rows, datasets.IterableDataset)
        if not self.streamed and not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise TypeError(
                "rows must be a datasets.IterableDataset, a datasets.Dataset or a sequence of rows, got"
                f" {type(rows).__name__}"
            )
        if not self.streamed and num_rows is not None and num_rows != len(rows):
            raise ValueError(f"num_rows={num_rows}, but rows holds {len(rows)}")
        if balance is not None and not shuffle_buffer:
            raise ValueError(
                "balanced rows must be shuffled, or copies of a row stand side by side: set shuffle_buffer"
            )
        self.num_rows = num_rows if self.streamed else len(rows)
        if balance is not None:
            if self.num_rows is not None and self.num_rows != balance.num_rows:
                raise ValueError(f"balance counts {balance.num_rows} rows, but there are {self.num_rows}")
            self.num_rows = balance.num_rows  # as many as without it, repetitions counted
        if self.streamed and shuffle_buffer:
            # Of datasets' own shuffling only that of the shards: its buffer cannot be resumed exactly, and reading several
            # shards at once, its default, ends every epoch with a sleep of 5 s (datasets 5.2).
            rows = rows.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        self.rows = rows
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.balance = balance
        # Of rows with random access every label is known beforehand.
        self._factors = balance.factors(rows) if balance is not None and not self.streamed else None

    def draws(self, epoch: int, turn: int = 0) -> Iterator[Draw]:
        """The whole order of an epoch; `turn` counts repetitions of all rows within it, each in an order of its own."""
        parts = (self.seed, epoch, turn) if turn else (self.seed, epoch)
        if not self.streamed:
            yield from self._known(parts)
            return
        rows: Iterator[Any] = whole(in_epoch(self.rows, epoch + (turn << 32)))
        if self.balance is not None:
            rows = self._balanced(rows, stable_hash("balance", *parts))
        else:
            rows = (Draw(partial(_itself, row)) for row in rows)
        if self.shuffle_buffer:
            generator = torch.Generator().manual_seed(stable_hash("order", *parts, 0))
            rows = shuffled(rows, self.shuffle_buffer, generator)
        yield from rows

    def draws_at(self, epoch: int, places: Iterable[int]) -> Iterator[Draw]:
        """Those at `places`, which must rise; with random access and no balance the others cost nothing."""
        if self.streamed or self.balance is not None:
            yield from at_places(self.draws(epoch), places)
            return
        order = self.order((self.seed, epoch))
        indices = (order[place] for place in takewhile(lambda place: place < len(order), places))
        if not hasattr(self.rows, "__getitems__"):
            yield from (Draw(partial(self.rows.__getitem__, index)) for index in indices)
            return
        while some := list(islice(indices, READ_AT_ONCE)):
            together = _Together(self.rows, some)
            yield from (Draw(partial(together.read, number)) for number in range(len(some)))

    @cached_property
    def clips(self) -> int | None:
        """A number that other clips, or the same in another order, have another of; None where they are not known before
        they are read.
        """
        import datasets

        if not isinstance(self.rows, datasets.Dataset) or "clip_id" not in self.rows.column_names:
            return None
        column = self.rows.select_columns("clip_id").with_format("arrow")[:]["clip_id"]
        return stable_hash(*column.to_pylist())

    def layout(self) -> Any:
        """What decides the order besides seed, buffer and number of rows; None for one dataset as it is."""
        return None if self.balance is None else self.balance.layout()

    def order(self, parts: tuple[Any, ...]) -> Sequence[int]:
        """Row numbers of one epoch; for rows with random access."""
        if not self.shuffle_buffer:
            return range(len(self.rows))
        generator = torch.Generator().manual_seed(stable_hash("order", *parts))
        return torch.randperm(len(self.rows), generator=generator).tolist()

    def _known(self, parts: tuple[Any, ...]) -> Iterator[Draw]:
        order = self.order(parts)
        if self.balance is None:
            for index in order:
                yield Draw(partial(self.rows.__getitem__, index))
            return
        copies = LabelBalance.copies(self._factors[np.asarray(order)], _offset(stable_hash("balance", *parts)))
        places = np.repeat(np.arange(len(order)), copies)
        number = np.arange(len(places)) - np.repeat(np.cumsum(copies) - copies, copies)
        missing = int((copies == 0).sum())
        generator = torch.Generator().manual_seed(stable_hash("copies", *parts))
        for which in torch.randperm(len(places), generator=generator).tolist():
            # All that are left out are told with the first draw: here they are known.
            yield Draw(partial(self.rows.__getitem__, order[places[which]]), int(number[which]), missing)
            missing = 0

    def _balanced(self, rows: Iterator[Mapping[str, Any]], seed: int) -> Iterator[Draw]:
        total = _offset(seed)
        held: Draw | None = None  # until it is known how many rows after it are left out
        passed = 0
        for row in rows:
            before, total = total, total + self.balance.factor(row)
            copies = int(total) - int(before)
            if not copies:
                passed += 1
            for copy in range(copies):
                if held is not None:
                    yield replace(held, left_out=passed)
                    passed = 0
                held = Draw(partial(_itself, row), copy)
        if held is not None:
            yield replace(held, left_out=passed)


class _Together:
    """Several rows of a `datasets.Dataset`, read at once when the first of them is asked for."""

    def __init__(self, rows: datasets.Dataset, indices: list[int]):
        self._rows, self._indices = rows, indices
        self._read: dict[int, Mapping[str, Any]] = {}

    def read(self, number: int) -> Mapping[str, Any]:
        """The row of one of the indices, which is not kept."""
        if number not in self._read:
            self._read = dict(enumerate(self._rows.__getitems__(self._indices)))
        return self._read.pop(number)


def at_places(draws: Iterable[Draw], places: Iterable[int]) -> Iterator[Draw]:
    """The draws at these places, which must rise; none is read."""
    places = iter(places)
    place = next(places, None)
    if place is None:
        return
    for number, draw in enumerate(draws):
        if number == place:
            yield draw
            place = next(places, None)
            if place is None:
                return


def in_epoch(rows: datasets.IterableDataset, epoch: int) -> datasets.IterableDataset:
    """The dataset with an epoch that is this process's own.

    `set_epoch` writes to memory that all workers share, `epoch += new - epoch` (datasets 5.2): of two that do so at once both
    add the difference, and then each may read the shards in an order that is neither the epoch's nor the other's.
    """
    made = object.__new__(type(rows))  # not copy.copy: datasets gives that copy the same __dict__
    made.__dict__.update(rows.__dict__, _epoch=torch.tensor(epoch))
    if made.epoch != epoch:
        raise NotImplementedError("this version of datasets keeps the epoch of an IterableDataset elsewhere")
    return made


def whole(rows: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """All rows, in a worker too, where a streamed dataset's own `__iter__` gives only that worker's shards."""
    if get_worker_info() is not None:
        import fsspec.asyn

        fsspec.asyn.reset_lock()  # as `__iter__` does in a worker: the lock may have been held when it was forked
    for batch in rows.iter(batch_size=READ_AT_ONCE):
        yield from (dict(zip(batch, values)) for values in zip(*batch.values()))


def shuffled(rows: Iterable[Any], size: int, generator: torch.Generator) -> Iterator[Any]:
    """A row leaves a full buffer, drawn by chance, for each that enters; the rest comes at the end."""
    buffer = []
    for row in rows:
        if len(buffer) < size:
            buffer.append(row)
            continue
        place = torch.randint(size, (), generator=generator).item()
        yield buffer[place]
        buffer[place] = row
    for place in torch.randperm(len(buffer), generator=generator).tolist():
        yield buffer[place]


def stable_hash(*parts: Any) -> int:
    """63 bits; Python's own hash differs from process to process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _offset(seed: int) -> float:
    """Uniform over (0, 1), off its ends by more than the rounding error of a sum over millions of rows."""
    return 1e-6 + (1 - 2e-6) * torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).item()


def _itself(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row
