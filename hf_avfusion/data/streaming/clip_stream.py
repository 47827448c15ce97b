"""A torch dataset of clips that shuffles and splits undecoded rows, and decodes them last, in the DataLoader's workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ...media.reader import MediaError
from .balancing import LabelBalance
from .interleaving import InterleavedRows
from .orders import Draw, RowOrder, select_positions, shuffled, stable_hash, with_epoch

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

MAX_WORKERS = 1024
MAX_CONSECUTIVE_FAILURES = 100  # so many undecodable clips in a row mean a wrong set-up, not bad clips


class ClipStream(IterableDataset):
    """Iterates over samples; each is a row of `rows` after `transform`, made in the worker that needs it.

    All randomness of a row comes from a generator seeded with (seed, epoch, and the row's clip_id, start and end). So a
    sample depends neither on the order of rows nor on the number of workers. The workers divide a streamed
    `datasets.IterableDataset` by its shards (use at least as many shards as workers), and a dataset with random access
    row by row.

    Iterating over the stream itself is for a single process and starts at the beginning. `clip_loader.ClipLoader`, which
    `AVTrainer` uses, makes batches, splits them over processes, and resumes in the middle of an epoch.

    Args:
        rows: `datasets.IterableDataset` (streamed), or anything with a length and random access (`datasets.Dataset`, a
            list) whose items are rows: dictionaries with clip_id, video {bytes, path}, start, end and label columns; or
            several of these, combined by `interleave`.
        transform: (row, generator) -> sample; a `ClipTransform`. Rows whose clip is an address (URL) are fetched only by
            `ClipTransform(..., allow_urls=True)`; otherwise they count as clips that do not decode.
        seed: seed of the order and of everything random in a sample.
        shuffle_buffer: 0 keeps the order of `rows`. A streamed dataset is shuffled by shards and with a buffer of this
            many undecoded rows; with random access, any positive number means a full shuffle. Every epoch has its own
            order.
        on_error: "skip" skips a clip that does not decode, logs its id and counts it in `skipped`; "stop" raises.
        num_rows: number of rows of a streamed dataset, if known, so that `len` works and epochs can be counted.
            `interleave` has its own argument for it.
        balance: repeats clips with rare labels and leaves out clips with common ones (`LabelBalance`); by default, each
            clip appears once per epoch.

    Raises:
        TypeError, ValueError: an argument is invalid, or arguments contradict each other.
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
                raise ValueError(
                    "balance cannot be combined with interleaved rows; use the probabilities of interleave instead"
                )
            if num_rows is not None:
                raise ValueError(
                    f"got num_rows={num_rows} with interleaved rows; pass num_rows to interleave, one number for each source"
                )
            # The rows of an epoch and their order.
            self.order: RowOrder | InterleavedRows = rows.shuffled(seed, shuffle_buffer) if shuffle_buffer else rows
        else:
            self.order = RowOrder(rows, seed=seed, shuffle_buffer=shuffle_buffer, num_rows=num_rows, balance=balance)
            rows = self.order.rows
        self.rows = rows
        self.transform = transform
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.on_error = on_error
        self.num_rows = self.order.num_rows
        # In shared memory, since workers are other processes and may outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """Rows of one epoch over all workers, including rows that do not decode."""
        if self.num_rows is None:
            raise TypeError("the number of rows of this stream is unknown; pass num_rows to ClipStream")
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration; each epoch has its own order and augmentations."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @property
    def has_each_row_once(self) -> bool:
        """Whether every row appears exactly once per epoch."""
        return self.order.layout() is None

    @property
    def skipped(self) -> int:
        """Number of clips skipped so far because they did not decode, over all workers and epochs."""
        return int(self._skipped.sum())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch
        for sample in self.decode(self._undecoded(epoch), epoch):
            if sample is not None:
                yield sample

    def decode(self, rows: Iterable[Mapping[str, Any]], epoch: int) -> Iterator[dict[str, Any] | None]:
        """Yields the samples of rows in an epoch, and None for a row that does not decode (logged and counted).

        Raises:
            MediaError: a row does not decode, with on_error="stop".
            RuntimeError: too many rows in a row did not decode.
        """
        worker = get_worker_info()
        number = worker.id if worker is not None else 0
        failures = 0
        for row in rows:
            seed = row_seed(self.seed, epoch, row)
            try:
                sample = self.transform(row, torch.Generator().manual_seed(seed))
                # The collator's seed. The hash makes its draws differ from those of the row's transform.
                sample["seed"] = stable_hash("batch", seed)
                failures = 0
            except MediaError as error:
                if self.on_error == "stop":
                    raise MediaError(f"clip {row['clip_id']}", str(error)) from error
                sample = None
                self._skipped[number] += 1
                failures += 1
                logger.warning("skipped clip %s: %s", row["clip_id"], error)
                if failures == MAX_CONSECUTIVE_FAILURES:
                    raise RuntimeError(
                        f"{MAX_CONSECUTIVE_FAILURES} clips in a row did not decode; check the path to the clips and the"
                        f" decoding backend. Last: {row['clip_id']}: {error}"
                    ) from error
            yield sample

    def draws_at(self, epoch: int, positions: Iterable[int]) -> Iterator[Draw]:
        """Yields the draws at ascending positions in an epoch's order over *all* rows. Their undecoded rows are not read yet.

        That order is the same in every process and worker, whatever their number. With random access, the other rows are never
        read; a streamed dataset is read from its beginning, undecoded.
        """
        if isinstance(self.order, RowOrder) and not self.order.streamed:
            return self.order.draws_at(epoch, positions)
        return select_positions(self._warn_of_more_rows(self.order.draws(epoch)), positions)

    def _warn_of_more_rows(self, draws: Iterator[Draw]) -> Iterator[Draw]:
        """Yields all draws; warns if there are more than `num_rows`."""
        for number, draw in enumerate(draws):
            if number == self.num_rows:
                logger.warning("num_rows=%d, but there are more rows; training never uses them", self.num_rows)
            yield draw

    def _undecoded(self, epoch: int) -> Iterator[Mapping[str, Any]]:
        """Yields this worker's rows of an epoch, in order."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        order = self.order
        if not isinstance(order, RowOrder) or not order.streamed or order.balance is not None:
            yield from (draw.row() for draw in islice(order.draws(epoch), first, None, step))
        else:
            rows = with_epoch(self.rows, epoch)
            # In a worker, iterating over the dataset yields that worker's shards.
            if self.shuffle_buffer:
                generator = torch.Generator().manual_seed(stable_hash("order", self.seed, epoch, first))
                rows = shuffled(rows, self.shuffle_buffer, generator)
            yield from rows


def row_seed(seed: int, epoch: int, row: Mapping[str, Any]) -> int:
    """Returns the seed of all randomness of a row in an epoch."""
    copy = [row["copy"]] if row.get("copy") else []  # number of a repetition within the epoch
    return stable_hash(seed, epoch, row["clip_id"], row.get("start"), row.get("end"), *copy)
