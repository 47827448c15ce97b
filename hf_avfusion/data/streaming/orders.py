"""Computes which rows an epoch uses and in which order, for a dataset with or without balancing. Nothing is decoded."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from .balancing import LabelBalance

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# A streamed dataset gives its rows in chunks, which stay in memory.
ROWS_PER_CHUNK = 8


@dataclass(slots=True)
class Draw:
    """One position in the order of an epoch, with a row that is not read yet.

    Args:
        read: reads the row.
        copy: how often the row appeared before in this epoch.
        left_out: number of rows that this epoch leaves out next to this draw. Each left-out row is counted with one draw, so
            the sum over all draws, divided among processes in any way, is right.
    """

    read: Callable[[], Mapping[str, Any]]
    copy: int = 0
    left_out: int = 0

    def row(self) -> Mapping[str, Any]:
        """Reads the undecoded row. A repeated row has its number in `copy`, so that its window and augmentation differ."""
        row = self.read()
        return {**row, "copy": self.copy} if self.copy else row


class RowOrder:
    """The order of one dataset's rows in every epoch, the same in all processes and workers.

    Args:
        rows: `datasets.IterableDataset`, or anything with a length and random access.
        seed: seed of the order.
        shuffle_buffer: see `ClipStream`.
        num_rows: number of rows of a streamed dataset, if known.
        balance: decides how often each row appears. It needs shuffling, since copies of a row would be neighbours.
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
            raise ValueError(f"got num_rows={num_rows} for {len(rows)} rows; leave out num_rows")
        if balance is not None and not shuffle_buffer:
            raise ValueError(
                "got balance with shuffle_buffer=0; set shuffle_buffer, or copies of a row would follow each other"
            )
        self.num_rows = num_rows if self.streamed else len(rows)
        if balance is not None:
            if self.num_rows is not None and self.num_rows != balance.num_rows:
                raise ValueError(
                    f"balance counts {balance.num_rows} rows, but there are {self.num_rows}; count the labels of these rows"
                )
            self.num_rows = balance.num_rows  # repetitions included, an epoch has as many rows as without balance
        if self.streamed and shuffle_buffer:
            # `datasets` shuffles only the shards here: its buffer cannot be resumed exactly, and its default of reading
            # several shards at once ends every epoch with a sleep of 5 s (datasets 5.2).
            rows = rows.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        self.rows = rows
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.balance = balance
        # With random access, all labels can be read beforehand.
        self._factors = balance.factors(rows) if balance is not None and not self.streamed else None

    def draws(self, epoch: int, turn: int = 0) -> Iterator[Draw]:
        """Yields the whole order of an epoch. `turn` numbers the passes over all rows within it; each has its own order."""
        parts = (self.seed, epoch, turn) if turn else (self.seed, epoch)
        if not self.streamed:
            yield from self._random_access_draws(parts)
            return
        rows: Iterator[Any] = rows_of_all_shards(with_epoch(self.rows, epoch + (turn << 32)))
        if self.balance is not None:
            rows = self._balanced_draws(rows, stable_hash("balance", *parts))
        else:
            rows = (Draw(partial(_identity, row)) for row in rows)
        if self.shuffle_buffer:
            generator = torch.Generator().manual_seed(stable_hash("order", *parts, 0))
            rows = shuffled(rows, self.shuffle_buffer, generator)
        yield from rows

    def draws_at(self, epoch: int, positions: Iterable[int]) -> Iterator[Draw]:
        """Yields the draws at ascending positions. With random access and no balance, the others cost nothing."""
        if self.streamed or self.balance is not None:
            yield from select_positions(self.draws(epoch), positions)
            return
        order = self.indices((self.seed, epoch))
        indices = (order[position] for position in takewhile(lambda position: position < len(order), positions))
        yield from (Draw(partial(self.rows.__getitem__, index)) for index in indices)

    @cached_property
    def clips_hash(self) -> int | None:
        """Hash of the clip ids in order; None if they are unknown before reading."""
        import datasets

        if not isinstance(self.rows, datasets.Dataset) or "clip_id" not in self.rows.column_names:
            return None
        column = self.rows.select_columns("clip_id").with_format("arrow")[:]["clip_id"]
        return stable_hash(*column.to_pylist())

    def layout(self) -> Any:
        """The settings that the order depends on, apart from seed, buffer and number of rows; None without balance."""
        return None if self.balance is None else self.balance.layout()

    def indices(self, parts: tuple[Any, ...]) -> Sequence[int]:
        """Row numbers in the order of one epoch, for rows with random access; `parts` are hashed to a seed."""
        if not self.shuffle_buffer:
            return range(len(self.rows))
        generator = torch.Generator().manual_seed(stable_hash("order", *parts))
        return torch.randperm(len(self.rows), generator=generator).tolist()

    def _random_access_draws(self, parts: tuple[Any, ...]) -> Iterator[Draw]:
        order = self.indices(parts)
        if self.balance is None:
            for index in order:
                yield Draw(partial(self.rows.__getitem__, index))
            return
        copies = LabelBalance.copies(self._factors[np.asarray(order)], _random_offset(stable_hash("balance", *parts)))
        positions = np.repeat(np.arange(len(order)), copies)
        number = np.arange(len(positions)) - np.repeat(np.cumsum(copies) - copies, copies)
        left_out = int((copies == 0).sum())
        generator = torch.Generator().manual_seed(stable_hash("copies", *parts))
        for which in torch.randperm(len(positions), generator=generator).tolist():
            # The first draw counts all left-out rows.
            yield Draw(partial(self.rows.__getitem__, order[positions[which]]), int(number[which]), left_out)
            left_out = 0

    def _balanced_draws(self, rows: Iterator[Mapping[str, Any]], seed: int) -> Iterator[Draw]:
        total = _random_offset(seed)
        held: Draw | None = None  # until the number of left-out rows after it is known
        left_out = 0
        for row in rows:
            before, total = total, total + self.balance.factor(row)
            copies = int(total) - int(before)
            if not copies:
                left_out += 1
            for copy in range(copies):
                if held is not None:
                    yield replace(held, left_out=left_out)
                    left_out = 0
                held = Draw(partial(_identity, row), copy)
        if held is not None:
            yield replace(held, left_out=left_out)


def select_positions(draws: Iterable[Draw], positions: Iterable[int]) -> Iterator[Draw]:
    """Yields the draws at ascending positions, without reading their rows."""
    positions = iter(positions)
    position = next(positions, None)
    if position is None:
        return
    for number, draw in enumerate(draws):
        if number == position:
            yield draw
            position = next(positions, None)
            if position is None:
                return


def with_epoch(rows: datasets.IterableDataset, epoch: int) -> datasets.IterableDataset:
    """Returns a copy of the dataset whose epoch belongs to this process only.

    `set_epoch` writes to memory that all workers share, `epoch += new - epoch` (datasets 5.2). If two workers do so at the
    same time, both add the difference, and each may read the shards in the order of a wrong epoch.
    """
    made = object.__new__(type(rows))  # not copy.copy: datasets gives that copy the same __dict__
    made.__dict__.update(rows.__dict__, _epoch=torch.tensor(epoch))
    if made.epoch != epoch:
        import datasets

        raise NotImplementedError(
            f"datasets {datasets.__version__} stores the epoch of an IterableDataset in another way; install datasets 5.2"
        )
    return made


def rows_of_all_shards(rows: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """Yields all rows. In a worker, the dataset's own `__iter__` would yield only the rows of that worker's shards."""
    if get_worker_info() is not None:
        import fsspec.asyn

        fsspec.asyn.reset_lock()  # like `__iter__` in a worker: the lock may have been held when the worker was forked
    for batch in rows.iter(batch_size=ROWS_PER_CHUNK):
        yield from (dict(zip(batch, values)) for values in zip(*batch.values()))


def shuffled(rows: Iterable[Any], size: int, generator: torch.Generator) -> Iterator[Any]:
    """Shuffles rows with a buffer: each new row replaces a random row, which is yielded; the buffer follows at the end."""
    buffer = []
    for row in rows:
        if len(buffer) < size:
            buffer.append(row)
            continue
        position = torch.randint(size, (), generator=generator).item()
        yield buffer[position]
        buffer[position] = row
    for position in torch.randperm(len(buffer), generator=generator).tolist():
        yield buffer[position]


def stable_hash(*parts: Any) -> int:
    """Hashes to 63 bits, the same in every process, unlike Python's `hash`."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _random_offset(seed: int) -> float:
    """Uniform in (0, 1), away from both ends by more than the rounding error of a sum over millions of rows."""
    return 1e-6 + (1 - 2e-6) * torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).item()


def _identity(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row
