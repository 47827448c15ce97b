"""A torch stream of clips that shuffles and splits undecoded rows and decodes last, in the DataLoader's workers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..models.media_avfusion import MediaError

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
            list) whose items are rows: dictionaries with clip_id, video {bytes, path}, start, end and label columns.
        transform: (row, generator) -> sample; a `ClipTransform`.
        seed: of the order and of everything random in a sample.
        shuffle_buffer: 0 keeps the order of `rows`. A streamed dataset is shuffled by shards and by a buffer of this
            many undecoded rows; with random access any positive number means a full shuffle. Every epoch has its own
            order.
        on_error: "skip" leaves out a clip that does not decode, logs its id and counts it in `skipped`; "stop" raises.
        num_rows: number of rows, where a streamed dataset's is known, so that `len` works and epochs can be counted.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset | datasets.Dataset | Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any], torch.Generator], dict[str, Any]],
        *,
        seed: int = 0,
        shuffle_buffer: int = 0,
        on_error: str = "skip",
        num_rows: int | None = None,
    ):
        import datasets

        if on_error not in ("skip", "stop"):
            raise ValueError(f"on_error must be 'skip' or 'stop', got {on_error!r}")
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer must not be negative, got {shuffle_buffer}")
        self._streamed = isinstance(rows, datasets.IterableDataset)
        if not self._streamed and not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise TypeError(
                "rows must be a datasets.IterableDataset, a datasets.Dataset or a sequence of rows, got"
                f" {type(rows).__name__}"
            )
        if not self._streamed and num_rows is not None and num_rows != len(rows):
            raise ValueError(f"num_rows={num_rows}, but rows holds {len(rows)}")
        if self._streamed and shuffle_buffer:
            # Of datasets' own shuffling only that of the shards: its buffer cannot be resumed exactly, and reading several
            # shards at once, its default, ends every epoch with a sleep of 5 s (datasets 5.2).
            rows = rows.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        self.rows = rows
        self.transform = transform
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.on_error = on_error
        self.num_rows = num_rows if self._streamed else len(rows)
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
    def skipped(self) -> int:
        """Clips left out so far because they did not decode, over all workers and epochs."""
        return int(self._skipped.sum())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch
        for sample in self.decoded(self._undecoded(epoch), epoch):
            if sample is not None:
                yield sample

    def decoded(self, rows: Iterable[Mapping[str, Any]], epoch: int) -> Iterator[dict[str, Any] | None]:
        """The samples of rows in an epoch; None for a row that does not decode, after it was logged and counted.

        Raises:
            MediaError: a row does not decode, with on_error="stop". RuntimeError: nothing decodes any more.
        """
        worker = get_worker_info()
        number = worker.id if worker is not None else 0
        in_a_row = 0
        for row in rows:
            try:
                sample = self.transform(row, row_generator(self.seed, epoch, row))
            except MediaError as error:
                if self.on_error == "stop":
                    raise
                self._skipped[number] += 1
                in_a_row += 1
                logger.warning("skipped clip %s: %s", row["clip_id"], error)
                if in_a_row == GIVE_UP_AFTER:
                    raise RuntimeError(
                        f"{GIVE_UP_AFTER} clips in a row did not decode; is the path to the clips, or the backend, right? "
                        f"Last: {row['clip_id']}: {error}"
                    ) from error
                yield None
                continue
            in_a_row = 0
            # For the collator: the batch's randomness comes from its rows, but is not what the rows drew themselves.
            sample["seed"] = _hash("batch", row_seed(self.seed, epoch, row))
            yield sample

    def rows_at(self, epoch: int, places: Iterable[int]) -> Iterator[Mapping[str, Any]]:
        """The undecoded rows at these places, which must rise, of an epoch's order over *all* rows.

        That order is the same in every process and worker, whatever their number. With random access nothing else is
        read; a streamed dataset is read from its beginning, undecoded, past the rows that are not asked for.
        """
        if not self._streamed:
            order = self._order(epoch)
            for place in places:
                if place >= len(order):
                    return
                yield self.rows[order[place]]
            return
        self.rows.set_epoch(epoch)
        rows = _whole(self.rows)
        if self.shuffle_buffer:
            generator = torch.Generator().manual_seed(_hash("order", self.seed, epoch, 0))
            rows = _shuffled(rows, self.shuffle_buffer, generator)
        places = iter(places)
        place = next(places, None)
        for number, row in enumerate(rows):
            if place is None:
                return
            if number == self.num_rows:
                logger.warning("num_rows=%d, but there are more rows; in training those never come up", self.num_rows)
            if number == place:
                yield row
                place = next(places, None)

    def _undecoded(self, epoch: int) -> Iterator[Mapping[str, Any]]:
        """This worker's rows of an epoch, in order."""
        if self._streamed:
            self.rows.set_epoch(epoch)
            # In a worker, the dataset gives that worker's shards.
            if self.shuffle_buffer:
                worker = get_worker_info()
                seed = _hash("order", self.seed, epoch, worker.id if worker is not None else 0)
                yield from _shuffled(self.rows, self.shuffle_buffer, torch.Generator().manual_seed(seed))
            else:
                yield from self.rows
            return
        order = self._order(epoch)
        worker = get_worker_info()
        for index in order if worker is None else order[worker.id :: worker.num_workers]:
            yield self.rows[index]

    def _order(self, epoch: int) -> Sequence[int]:
        """Row numbers in the order of an epoch; for rows with random access."""
        if not self.shuffle_buffer:
            return range(len(self.rows))
        generator = torch.Generator().manual_seed(_hash("order", self.seed, epoch))
        return torch.randperm(len(self.rows), generator=generator).tolist()


def _whole(rows: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """All rows, in a worker too, where a streamed dataset's own `__iter__` gives only that worker's shards."""
    if get_worker_info() is not None:
        import fsspec.asyn

        fsspec.asyn.reset_lock()  # as `__iter__` does in a worker: the lock may have been held when it was forked
    for batch in rows.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


def _shuffled(rows: Iterable[Any], size: int, generator: torch.Generator) -> Iterator[Any]:
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


def _hash(*parts: Any) -> int:
    """63 bits; Python's own hash differs from process to process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def row_seed(seed: int, epoch: int, row: Mapping[str, Any]) -> int:
    """The seed of everything random that happens to a row in an epoch."""
    return _hash(seed, epoch, row["clip_id"], row.get("start"), row.get("end"))


def row_generator(seed: int, epoch: int, row: Mapping[str, Any]) -> torch.Generator:
    return torch.Generator().manual_seed(row_seed(seed, epoch, row))
