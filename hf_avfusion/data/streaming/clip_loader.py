"""Batches of a `ClipStream` for one of several processes, with a state from which the same batches go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, takewhile
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .batch_memory import OwnPieces, SharedBatches, WorkerSlots
from .clip_stream import ClipStream, row_seed
from .interleaving import InterleavedRows
from .orders import Draw

# Counted besides the batches: clips that did not decode, that had come up before in their epoch, that an epoch left out.
# The last two are 0 where every row comes up once.
COUNTED = ("skipped", "repeated", "left_out")


class ClipLoader:
    """Iterates over the batches that one process trains or evaluates on, once through an epoch of the stream.

    The order of an epoch's undecoded rows is the same everywhere. With G = batch_size * world_size, rows k*G to (k+1)*G
    are batch k of all processes together; this process takes every world_size-th of them, and of its batches worker
    number k mod num_workers decodes batch k. So the batches do not depend on the number of workers, nor, all processes
    together, on how G is divided among processes; every row is decoded exactly once. The last batch is as long as the
    rows that are left; processes may differ by one row there, or have none. The price: a streamed dataset is read,
    undecoded, by every worker of every process, so where reading is slow (a remote store and many processes) keep it on
    local disks, or as a `datasets.Dataset`, which is read just where it is needed.

    A row that does not decode is replaced by the next of the same process and worker, whose batches end that much
    earlier. From there on batches do depend on how the rows were divided.

    Each batch comes with the number of rows that its worker has read up to it, so that `state_dict` describes exactly
    what was handed out, whatever the workers have prepared ahead. A loader that loaded it starts there in its next
    iteration and decodes nothing twice; a streamed dataset is read again up to there, undecoded.

    A batch's memory is used again for another one when nothing in this process refers to it any more (`shared_batches`): clone
    what you hand to a third process.

    Args:
        stream: every process needs the same one; it must not have been split over processes already.
        batch_size: clips per process.
        collate_fn: samples -> batch, in the worker.
        rank, world_size: this process among all.
        num_workers: worker processes; 0 decodes in this one.
        drop_last: leave out the last batch of the epoch if it is incomplete.
        options: further options of `torch.utils.data.DataLoader`, such as pin_memory or prefetch_factor.

    Raises:
        ValueError: for a size that is not positive, or a dataset that was already split by node.
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
                "these rows went through split_dataset_by_node, and would be split over processes once more: give the"
                " whole dataset in every process"
            )
        self.dataset = stream
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._lanes = _Lanes(stream, batch_size, collate_fn, rank, world_size, max(1, num_workers), drop_last)
        # Without a generator of its own, a DataLoader draws from torch's global one, which is the model's.
        self._loader = DataLoader(
            self._lanes,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            generator=torch.Generator(),
            **options,
        )
        self._before = [0] * len(COUNTED)  # in the epochs before this one
        self._begin(stream.epoch)
        self._loaded = False

    def __len__(self) -> int:
        """Batches of an epoch, the same for all processes; fewer come where rows do not decode."""
        rows = len(self.dataset)
        together = self.batch_size * self.world_size
        return rows // together if self.drop_last else -(-rows // together)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.dataset.epoch
        if self._loaded and epoch != self._epoch:
            raise ValueError(f"the state that was loaded belongs to epoch {self._epoch}, but the stream is at {epoch}")
        if not self._loaded:
            self._before = list(self.counts.values())
            self._begin(epoch)
        self._loaded = False
        self._loader.generator.manual_seed(row_seed(self.dataset.seed, epoch, {"clip_id": "workers"}))
        self._lanes.start[:-1] = torch.tensor(self._read)
        self._lanes.start[-1] = self._next_lane
        if self.num_workers and not (self._lanes.shared and self._loader.persistent_workers):
            self._lanes.shared = SharedBatches(self.num_workers)  # for the workers that start now
        counts = [list(counts) for counts in self._counts]
        return self._handed_out(iter(self._loader), counts, self._lanes.shared)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._read = [0] * self._lanes.number
        self._counts = [[0] * len(COUNTED) for _ in range(self._lanes.number)]  # of each lane in this epoch
        self._next_lane = 0

    def _handed_out(
        self, batches: Iterator[_Given], counts_before: list[list[int]], shared: SharedBatches | None
    ) -> Iterator[Any]:
        for lane, read, counts, batch in batches:
            self._read[lane] = read
            self._counts[lane] = [before + count for before, count in zip(counts_before[lane], counts)]
            if batch is not None:
                # A DataLoader takes one batch of each worker in turn and passes over workers that have ended.
                self._next_lane = (lane + 1) % self._lanes.number
                if shared is not None:
                    shared.free_unused()
                yield batch

    @property
    def counts(self) -> dict[str, int]:
        """Clips of this process in all epochs, up to the batch that was last handed out: "skipped", those that did not
        decode; "repeated", those that had come up before in their epoch; "left_out", rows that an epoch did without.
        """
        sums = (before + sum(of_lanes) for before, of_lanes in zip(self._before, zip(*self._counts)))
        return dict(zip(COUNTED, sums))

    @property
    def skipped(self) -> int:
        """Clips of this process that did not decode, in all epochs, up to the batch that was last handed out."""
        return self.counts["skipped"]

    def state_dict(self) -> dict[str, Any]:
        """Where this process is, as JSON can hold it: after the batch that was last handed out."""
        return {
            "epoch": self._epoch,
            "rows_read": list(self._read),  # of each worker
            "next_worker": self._next_lane,
            **{f"rows_{name}": list(of_lanes) for name, of_lanes in zip(COUNTED, zip(*self._counts))},
            **{f"rows_{name}_before": before for name, before in zip(COUNTED, self._before)},
            "layout": self._layout(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration, which must be of the same epoch, goes on from `state`.

        Raises:
            ValueError: the state is of a loader that divides rows in another way, so that its position means nothing
                here.
        """
        theirs, ours = state["layout"], self._layout()
        their_clips, our_clips = theirs.get("clips"), ours.pop("clips")
        changed = [
            f"{name} was {theirs.get(name)!r} and is {ours[name]!r}" for name in ours if theirs.get(name) != ours[name]
        ]
        if changed:
            raise ValueError(
                f"A stream stopped in the middle of an epoch goes on only as it was divided: {'; '.join(changed)}. Set these"
                " as they were, or resume from a checkpoint at the end of an epoch."
            )
        if "clips" in theirs and their_clips != our_clips:
            raise ValueError(
                "A stream stopped in the middle of an epoch goes on only with the same clips in the same order, but there are"
                " others now, as many as before. Put them back, or resume from a checkpoint at the end of an epoch."
            )
        self._epoch = state["epoch"]
        self._read = list(state["rows_read"])
        self._counts = [list(of_lane) for of_lane in zip(*(state[f"rows_{name}"] for name in COUNTED))]
        self._next_lane = state["next_worker"]
        self._before = [state[f"rows_{name}_before"] for name in COUNTED]
        self._loaded = True

    def _layout(self) -> dict[str, Any]:
        """All that decides which row comes where."""
        stream = self.dataset
        return {
            "world_size": self.world_size,
            "rank": self.rank,
            "workers": self._lanes.number,  # none or one: the same
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "seed": stream.seed,
            "shuffle_buffer": stream.shuffle_buffer,
            "num_rows": stream.num_rows,
            "rows": stream.order.layout(),
            "clips": stream.order.clips,
        }


# Lane, rows read, what was `COUNTED` since the start, batch; None for the batch in the last of a lane, which tells of rows after
# the last batch.
_Given = tuple[int, int, list[int], Any]


class _Lanes(IterableDataset):
    """What one worker of one process reads."""

    def __init__(self, stream, batch_size, collate_fn, rank, world_size, number, drop_last):
        self.stream = stream
        self.batch_size = batch_size
        self.collate_fn = collate_fn
        self.rank, self.world_size = rank, world_size
        self.number = number
        self.drop_last = drop_last
        # Rows that each lane has read, and the lane whose turn it is. Shared with workers that outlive an epoch.
        self.start = torch.zeros(number + 1, dtype=torch.int64).share_memory_()
        self.shared: SharedBatches | None = None  # with workers
        self._memory: WorkerSlots | OwnPieces | None = None  # of the process that makes batches

    def __iter__(self) -> Iterator[_Given]:
        # Worker 0 always hands out first, so it takes the lane whose turn it is.
        worker = get_worker_info()
        number = worker.id if worker is not None else 0
        lane = (number + int(self.start[-1])) % self.number
        if self._memory is None:
            self._memory = OwnPieces() if worker is None else self.shared.slots(number)
        batches = self._batches(lane, int(self.start[lane]), self.stream.epoch)
        for _, read, counts, batch in batches:
            placed = self._memory.place(batch)
            del batch
            yield lane, read, counts, placed
            del placed

    def _batches(self, lane: int, read: int, epoch: int) -> Iterator[_Given]:
        samples, counts = [], [0] * len(COUNTED)
        draws = self.stream.draws_at(epoch, self._places(lane, read))

        def missing() -> int:  # not more: what is read ahead would be counted with this batch
            return self.batch_size - len(samples)

        for sample in self.stream.decoded(_counted(draws, counts), epoch, missing, self._memory.empty):
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

    def _places(self, lane: int, read: int) -> Iterator[int]:
        """Where this lane's rows stand in the order of all rows, after the first `read` of them."""
        together = self.batch_size * self.world_size
        turns = ((lane + self.number * (n // self.batch_size), n % self.batch_size) for n in count(read))
        places = (batch * together + self.rank + self.world_size * row for batch, row in turns)
        rows = self.stream.num_rows
        if self.drop_last and rows is not None:
            return takewhile(lambda place: place < rows // together * together, places)
        return places


def _counted(draws: Iterator[Draw], counts: list[int]) -> Iterator[Mapping[str, Any]]:
    """The rows, read one by one as they are asked for; what they say besides is added to `counts`."""
    for draw in draws:
        counts[1] += draw.copy > 0
        counts[2] += draw.left_out
        yield draw.row()


def _as_it_is(item: Any) -> Any:
    return item
