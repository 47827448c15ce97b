"""Makes batches of a `ClipStream` for one of several processes; its state allows exact resuming within an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, takewhile
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .batch_memory import SharedBatchMemory, WorkerSlots
from .clip_stream import ClipStream, row_seed
from .interleaving import InterleavedRows
from .orders import Draw

# Counters of clips that did not decode, that are repeated within their epoch, and that an epoch leaves out. The last two
# are 0 if every row appears once per epoch.
COUNTED = ("skipped", "repeated", "left_out")


class ClipLoader:
    """Iterates over the batches of one process, one epoch of the stream per iteration.

    The order of an epoch's undecoded rows is the same in all processes. With G = batch_size * world_size, rows k*G to
    (k+1)*G are batch k of all processes together. This process takes every world_size-th of them, and its worker
    k mod num_workers decodes batch k. So the batches do not depend on the number of workers, and the batches of all
    processes together do not depend on how G is divided among processes. Every row is decoded exactly once. The last
    batch has the remaining rows; there, processes may differ by one row or have none.

    Every worker of every process reads a streamed dataset completely, undecoded. If reading is slow (a remote store and
    many processes), keep the dataset on local disks, or use a `datasets.Dataset`, which reads only the needed rows.

    A row that does not decode is replaced by the next row of the same process and worker, whose batches end earlier for
    it. From there on, the batches depend on how the rows are divided.

    Each batch carries the number of rows that its worker has read so far. So `state_dict` describes exactly the batches
    that were returned, not those that workers have prepared ahead. A loader that loads the state continues there in its
    next iteration and decodes nothing twice; it reads a streamed dataset again up to there, undecoded.

    The memory of a batch is reused when nothing in this process refers to it any more (`batch_memory`). Clone tensors
    that you send to a third process.

    Args:
        stream: the same stream in every process; it must not be split over processes already.
        batch_size: clips per process.
        collate_fn: samples -> batch, called in the worker.
        rank, world_size: number of this process, and number of processes.
        num_workers: worker processes; 0 decodes in this process.
        drop_last: drop the last batch of the epoch if it is incomplete.
        options: further options of `torch.utils.data.DataLoader`, such as pin_memory or prefetch_factor.

    Raises:
        ValueError: a size is not positive, or the dataset is already split by node.
    """

    def __init__(
        self,
        stream: ClipStream,
        batch_size: int,
        collate_fn: Callable[[list[dict[str, Any]]], Any],
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        drop_last: bool = False,
        **options: Any,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size), got rank={rank}, world_size={world_size}")
        if getattr(stream.rows, "_distributed", None) is not None or (
            isinstance(stream.rows, InterleavedRows) and stream.rows.split_by_node
        ):
            raise ValueError(
                "the rows are already split by split_dataset_by_node, and the loader would split them again; pass the whole"
                " dataset in every process"
            )
        self.dataset = stream
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._lanes = _Lanes(stream, batch_size, collate_fn, rank, world_size, max(1, num_workers), drop_last)
        # Without this generator, the DataLoader would draw from torch's global one, which the model uses.
        self._loader = DataLoader(
            self._lanes,
            batch_size=None,
            collate_fn=_identity,
            num_workers=num_workers,
            generator=torch.Generator(),
            **options,
        )
        self._counts_before = [0] * len(COUNTED)  # of the epochs before this one
        self._begin(stream.epoch)
        self._loaded = False

    def __len__(self) -> int:
        """Batches per epoch, the same in all processes; fewer if rows do not decode."""
        rows = len(self.dataset)
        together = self.batch_size * self.world_size
        return rows // together if self.drop_last else -(-rows // together)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.dataset.epoch
        if self._loaded and epoch != self._epoch:
            raise ValueError(
                f"the loaded state belongs to epoch {self._epoch}, but the stream is at epoch {epoch}; call"
                f" set_epoch({self._epoch}) on the stream"
            )
        if not self._loaded:
            self._counts_before = list(self.counts.values())
            self._begin(epoch)
        self._loaded = False
        self._loader.generator.manual_seed(row_seed(self.dataset.seed, epoch, {"clip_id": "workers"}))
        self._lanes.start[:-1] = torch.tensor(self._read)
        self._lanes.start[-1] = self._next_lane
        if self.num_workers and not (self._lanes.shared and self._loader.persistent_workers):
            self._lanes.shared = SharedBatchMemory(self.num_workers)  # for the workers that start now
        counts = [list(counts) for counts in self._counts]
        return self._track(iter(self._loader), counts, self._lanes.shared)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._read = [0] * self._lanes.number
        self._counts = [[0] * len(COUNTED) for _ in range(self._lanes.number)]  # of each lane in this epoch
        self._next_lane = 0

    def _track(
        self, batches: Iterator[_LaneBatch], counts_before: list[list[int]], shared: SharedBatchMemory | None
    ) -> Iterator[Any]:
        """Yields the batches and updates the position and the counters."""
        for lane, read, counts, batch in batches:
            self._read[lane] = read
            self._counts[lane] = [before + count for before, count in zip(counts_before[lane], counts)]
            if batch is not None:
                # A DataLoader takes one batch of each worker in turn and skips workers that have ended.
                self._next_lane = (lane + 1) % self._lanes.number
                if shared is not None:
                    shared.free_unused()
                yield batch

    @property
    def counts(self) -> dict[str, int]:
        """Counts of this process over all epochs, up to the last returned batch.

        "skipped": clips that did not decode. "repeated": clips that appeared before in their epoch. "left_out": rows that
        did not appear in their epoch.
        """
        sums = (before + sum(of_lanes) for before, of_lanes in zip(self._counts_before, zip(*self._counts)))
        return dict(zip(COUNTED, sums))

    @property
    def skipped(self) -> int:
        """Clips of this process that did not decode, over all epochs, up to the last returned batch."""
        return self.counts["skipped"]

    def state_dict(self) -> dict[str, Any]:
        """The position of this process after the last returned batch, as JSON values."""
        return {
            "epoch": self._epoch,
            "rows_read": list(self._read),  # of each worker
            "next_worker": self._next_lane,
            **{f"rows_{name}": list(of_lanes) for name, of_lanes in zip(COUNTED, zip(*self._counts))},
            **{f"rows_{name}_before": before for name, before in zip(COUNTED, self._counts_before)},
            "layout": self._layout(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration, which must be of the same epoch, continue from `state`.

        Raises:
            ValueError: the state belongs to a loader that divides the rows differently, or to other clips.
        """
        theirs, ours = state["layout"], self._layout()
        their_clips, our_clips = theirs.get("clips"), ours.pop("clips")
        changed = [
            f"{name} was {theirs.get(name)!r} and is {ours[name]!r}" for name in ours if theirs.get(name) != ours[name]
        ]
        if changed:
            raise ValueError(
                "Resuming in the middle of an epoch needs the same division of the rows, but"
                f" {'; '.join(changed)}. Restore these values, or resume from a checkpoint at the end of an epoch."
            )
        if "clips" in theirs and their_clips != our_clips:
            raise ValueError(
                "Resuming in the middle of an epoch needs the same clips in the same order, but the clips have changed (their"
                " number has not). Restore them, or resume from a checkpoint at the end of an epoch."
            )
        self._epoch = state["epoch"]
        self._read = list(state["rows_read"])
        self._counts = [list(of_lane) for of_lane in zip(*(state[f"rows_{name}"] for name in COUNTED))]
        self._next_lane = state["next_worker"]
        self._counts_before = [state[f"rows_{name}_before"] for name in COUNTED]
        self._loaded = True

    def _layout(self) -> dict[str, Any]:
        """All settings that the division of the rows depends on."""
        stream = self.dataset
        return {
            "world_size": self.world_size,
            "rank": self.rank,
            "workers": self._lanes.number,  # 1 for num_workers=0, too
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "seed": stream.seed,
            "shuffle_buffer": stream.shuffle_buffer,
            "num_rows": stream.num_rows,
            "rows": stream.order.layout(),
            "clips": stream.order.clips_hash,
        }


# (lane, rows read, counters since the start, batch). The last tuple of a lane has None instead of a batch, since it may count
# rows after the last batch.
_LaneBatch = tuple[int, int, list[int], Any]


class _Lanes(IterableDataset):
    """The batches of one process, divided into lanes. A lane is the part of the rows that one worker reads."""

    def __init__(self, stream, batch_size, collate_fn, rank, world_size, number, drop_last):
        self.stream = stream
        self.batch_size = batch_size
        self.collate_fn = collate_fn
        self.rank, self.world_size = rank, world_size
        self.number = number
        self.drop_last = drop_last
        # The number of rows that each lane has read, and the next lane. Shared with workers that outlive an epoch.
        self.start = torch.zeros(number + 1, dtype=torch.int64).share_memory_()
        self.shared: SharedBatchMemory | None = None  # only with workers
        self._memory: WorkerSlots | None = None  # of a worker

    def __iter__(self) -> Iterator[_LaneBatch]:
        # A DataLoader always starts with worker 0, so worker 0 gets the next lane.
        worker = get_worker_info()
        number = worker.id if worker is not None else 0
        lane = (number + int(self.start[-1])) % self.number
        if self._memory is None and worker is not None:
            self._memory = self.shared.slots(number)
        for _, read, counts, batch in self._batches(lane, int(self.start[lane]), self.stream.epoch):
            yield lane, read, counts, batch if worker is None else self._memory.place(batch)

    def _batches(self, lane: int, read: int, epoch: int) -> Iterator[_LaneBatch]:
        samples, counts = [], [0] * len(COUNTED)
        draws = self.stream.draws_at(epoch, self._positions(lane, read))
        for sample in self.stream.decode(_read_and_count(draws, counts), epoch):
            read += 1
            if sample is None:
                counts[0] += 1
                continue
            samples.append(sample)
            if len(samples) == self.batch_size:
                yield lane, read, list(counts), self.collate_fn(samples)
                samples = []
        if samples and not self.drop_last:
            yield lane, read, list(counts), self.collate_fn(samples)
        yield lane, read, list(counts), None

    def _positions(self, lane: int, read: int) -> Iterator[int]:
        """Positions of this lane's rows in the order of all rows, without the first `read` ones."""
        together = self.batch_size * self.world_size
        turns = ((lane + self.number * (n // self.batch_size), n % self.batch_size) for n in count(read))
        positions = (batch * together + self.rank + self.world_size * row for batch, row in turns)
        rows = self.stream.num_rows
        if self.drop_last and rows is not None:
            return takewhile(lambda position: position < rows // together * together, positions)
        return positions


def _read_and_count(draws: Iterator[Draw], counts: list[int]) -> Iterator[Mapping[str, Any]]:
    """Reads the rows one by one and adds repeated and left-out rows to `counts`."""
    for draw in draws:
        counts[1] += draw.copy > 0
        counts[2] += draw.left_out
        yield draw.row()


def _identity(item: Any) -> Any:
    return item
