"""A torch stream of clips that shuffles and splits undecoded rows and decodes last, in the DataLoader's workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ...media.reader import MediaError
from ..transforms import ClipTransform
from .balancing import LabelBalance
from .interleaving import InterleavedRows
from .orders import Draw, RowOrder, at_places, in_epoch, shuffled, stable_hash

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

MAX_WORKERS = 1024
GIVE_UP_AFTER = 100  # clips in a row that do not decode: then it is the set-up, not the clips


class ClipStream(IterableDataset):
    """Iterates over samples: each row of `rows` through `transform`, in the worker that needs it.

    A row's randomness is a generator seeded by (seed, epoch, the row's clip_id, start and end), so what a clip becomes
    depends neither on the order of rows nor on the number of workers. Workers divide the rows among them: a
    streamed `datasets.IterableDataset` by its shards (use at least as many shards as workers), anything with random
    access row by row.

    Iterating over the stream itself is for a single process and starts at the beginning. `loading.ClipLoader`, which
    `AVTrainer` uses, makes batches of it, splits them over processes, and resumes in the middle of an epoch.

    Args:
        rows: `datasets.IterableDataset` (streamed), or anything with a length and random access (`datasets.Dataset`, a
            list) whose items are rows: dictionaries with clip_id, video {bytes, path}, start, end and label columns; or
            several of these, by `interleave`.
        transform: (row, generator) -> sample; a `ClipTransform`.
        seed: of the order and of everything random in a sample.
        shuffle_buffer: 0 keeps the order of `rows`. A streamed dataset is shuffled by shards and by a buffer of this
            many undecoded rows; with random access any positive number means a full shuffle. Every epoch has its own
            order.
        on_error: "skip" leaves out a clip that does not decode, logs its id and counts it in `skipped`; "stop" raises.
        num_rows: number of rows, where a streamed dataset's is known, so that `len` works and epochs can be counted.
            `interleave` has its own argument for it.
        balance: clips of rare labels come up more often than common ones (`LabelBalance`); by default each comes up once
            an epoch.

    Raises:
        TypeError, ValueError: arguments that cannot be, or that do not go together.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset | datasets.Dataset | InterleavedRows | Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any], torch.Generator], dict[str, Any]],
        *,
        seed: int = 0,
        shuffle_buffer: int = 0,
        on_error: str = "skip",
        num_rows: int | None = None,
        balance: LabelBalance | None = None,
    ):
        if on_error not in ("skip", "stop"):
            raise ValueError(f"on_error must be 'skip' or 'stop', got {on_error!r}")
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer must not be negative, got {shuffle_buffer}")
        if isinstance(rows, InterleavedRows):
            if balance is not None:
                raise ValueError("interleaved rows are weighed by their probabilities; balance is for one benchmark")
            if num_rows is not None:
                raise ValueError("give num_rows, one number for each source, to interleave")
            self._order: RowOrder | InterleavedRows = rows.shuffled(seed, shuffle_buffer) if shuffle_buffer else rows
        else:
            self._order = RowOrder(rows, seed=seed, shuffle_buffer=shuffle_buffer, num_rows=num_rows, balance=balance)
            rows = self._order.rows
        self.rows = rows
        self.transform = transform
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.on_error = on_error
        self.num_rows = self._order.num_rows
        # In shared memory, since workers are other processes, and may outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """Rows of one epoch, over all workers; those that will not decode are counted too."""
        if self.num_rows is None:
            raise TypeError("the number of rows of this stream is not known; pass num_rows to ClipStream")
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch's: another order, other augmentations."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @property
    def order(self) -> RowOrder | InterleavedRows:
        """Which rows an epoch takes, and in which order."""
        return self._order

    @property
    def once_each(self) -> bool:
        """Whether every row comes up exactly once an epoch."""
        return self._order.layout() is None

    @property
    def skipped(self) -> int:
        """Clips left out so far because they did not decode, over all workers and epochs."""
        return int(self._skipped.sum())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch
        for sample in self.decoded(self._undecoded(epoch), epoch):
            if sample is not None:
                yield sample

    def decoded(
        self,
        rows: Iterable[Mapping[str, Any]],
        epoch: int,
        together: Callable[[], int] | None = None,
        empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] | None = None,
    ) -> Iterator[dict[str, Any] | None]:
        """The samples of rows in an epoch; None for a row that does not decode, after it was logged and counted.

        together: asked, each time, how many rows may be decoded before the first of their samples is given; a
            `ClipTransform` then prepares them as one batch, which gives the same in less time. Default: one.
        empty: (size, dtype) -> memory for the tensors of that batch.

        Raises:
            MediaError: a row does not decode, with on_error="stop". RuntimeError: nothing decodes any more.
        """
        worker = get_worker_info()
        number = worker.id if worker is not None else 0
        in_a_row = 0
        # Not for a subclass with another call, whose halves are not this one's.
        halves = together is not None and type(self.transform).__call__ is ClipTransform.__call__
        transform = self.transform.decode if halves else self.transform
        rows = iter(rows)
        while True:
            made, seeds = [], []
            for row in islice(rows, together() if halves else 1):
                seed = row_seed(self.seed, epoch, row)
                # For the collator: the batch's randomness comes from its rows, but is not what the rows drew themselves.
                seeds.append(stable_hash("batch", seed))
                try:
                    made.append(transform(row, torch.Generator().manual_seed(seed)))
                    in_a_row = 0
                except MediaError as error:
                    if self.on_error == "stop":
                        raise MediaError(f"clip {row['clip_id']}", str(error)) from error
                    made.append(None)
                    self._skipped[number] += 1
                    in_a_row += 1
                    logger.warning("skipped clip %s: %s", row["clip_id"], error)
                    if in_a_row == GIVE_UP_AFTER:
                        raise RuntimeError(
                            f"{GIVE_UP_AFTER} clips in a row did not decode; is the path to the clips, or the backend, "
                            f"right? Last: {row['clip_id']}: {error}"
                        ) from error
            if not made:
                return
            if halves:
                whole = [clip for clip in made if clip is not None]
                samples = iter(self.transform.prepare(whole, empty) if whole else ())
                made = [None if clip is None else next(samples) for clip in made]
            for sample, seed in zip(made, seeds):
                if sample is not None:
                    sample["seed"] = seed
                yield sample

    def rows_at(self, epoch: int, places: Iterable[int]) -> Iterator[Mapping[str, Any]]:
        """The undecoded rows at these places, which must rise, of an epoch's order over *all* rows.

        That order is the same in every process and worker, whatever their number. With random access nothing else is
        read; a streamed dataset is read from its beginning, undecoded, past the rows that are not asked for.
        """
        return (draw.row() for draw in self.draws_at(epoch, places))

    def draws_at(self, epoch: int, places: Iterable[int]) -> Iterator[Draw]:
        """As `rows_at`, before the rows are read, with what is counted about them."""
        if isinstance(self._order, RowOrder) and not self._order.streamed:
            return self._order.draws_at(epoch, places)
        return at_places(self._no_more_than_declared(self._order.draws(epoch)), places)

    def _no_more_than_declared(self, draws: Iterator[Draw]) -> Iterator[Draw]:
        for number, draw in enumerate(draws):
            if number == self.num_rows:
                logger.warning("num_rows=%d, but there are more rows; in training those never come up", self.num_rows)
            yield draw

    def _undecoded(self, epoch: int) -> Iterator[Mapping[str, Any]]:
        """This worker's rows of an epoch, in order."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        order = self._order
        if not isinstance(order, RowOrder) or order.balance is not None:
            yield from (draw.row() for draw in islice(order.draws(epoch), first, None, step))
        elif not order.streamed:
            yield from (self.rows[index] for index in order.order((self.seed, epoch))[first::step])
        else:
            rows = in_epoch(self.rows, epoch)
            # In a worker, the dataset gives that worker's shards.
            if self.shuffle_buffer:
                generator = torch.Generator().manual_seed(stable_hash("order", self.seed, epoch, first))
                rows = shuffled(rows, self.shuffle_buffer, generator)
            yield from rows


def row_seed(seed: int, epoch: int, row: Mapping[str, Any]) -> int:
    """The seed of everything random that happens to a row in an epoch."""
    copy = [row["copy"]] if row.get("copy") else []  # of a row that comes up several times in an epoch
    return stable_hash(seed, epoch, row["clip_id"], row.get("start"), row.get("end"), *copy)
