"""Keeps processes in step whose streams end at different batches, and gives every clip the same weight."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import find_batch_size, gather

from .clip_loader import ClipLoader


class Ranks:
    """Exchanges objects and batch sizes between the processes of a run; with one process, nothing is sent."""

    def __init__(self, rank: int, world_size: int):
        self.rank = rank
        self.world_size = world_size
        self._group = None

    def all_gather(self, value: Any) -> list[Any]:
        """Returns `value` of every process, by rank. Every process must call it."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._cpu_group())
        return values

    def pad_batches(
        self, batches: list[Any], number: int, message: Any = None
    ) -> tuple[list[Any], list[list[int]], list[Any]]:
        """Pads the batches of one step so that every process has `number` of them, or none if no process has any.

        Every process must call it.

        Args:
            batches: at most `number` batches of this process.
            number: batches per step.
            message: an object for all other processes.

        Returns:
            the batches, padded with a batch of one clip, which must not count; the numbers of clips that count,
            [world_size][number], 0 for padding; and the messages of all processes.
        """
        rows = [find_batch_size(batch) for batch in batches] + [0] * (number - len(batches))
        rows, messages = zip(*self.all_gather((rows, message)))
        if not any(map(any, rows)):
            return [], rows, messages
        if all(map(all, rows)):
            return batches, rows, messages
        # The padding is a clip of the first process that has a batch, since only the data define the shapes.
        source = next(rank for rank in range(self.world_size) if rows[rank][0])
        filler = [_first_clip(batches[0]) if self.rank == source else None]
        if self.world_size > 1:
            dist.broadcast_object_list(filler, src=source, group=self._cpu_group())
        return batches + filler * (number - len(batches)), rows, messages

    def _cpu_group(self) -> dist.ProcessGroup:
        # A separate CPU group, so that exchanging counts does not wait for the accelerator.
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        return self._group


def loss_weights(rows: list[list[int]], rank: int) -> list[float]:
    """Returns weights for the mean losses of one process's batches, so that every clip has the same weight.

    Training averages over batches and processes; with these weights, the result is the mean over all clips. The weights are
    exactly 1.0 if all batches have the same size.
    """
    total = sum(map(sum, rows))
    batches = len(rows) * len(rows[0])
    return [own * batches / total for own in rows[rank]]


class PaddedBatches:
    """The batches of a `ClipLoader` for evaluation with several processes.

    All processes get the same number of batches. `gather` returns only the real clips, in the order of the stream.
    """

    def __init__(self, loader: ClipLoader, ranks: Ranks):
        self.loader = loader
        self.dataset = loader.dataset
        self._ranks = ranks
        self._rows: list[int] = []

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def own_rows(self) -> int:
        """Number of real clips in this process's current batch; 0 for padding."""
        return self._rows[self._ranks.rank]

    @property
    def most_rows(self) -> int:
        """Number of clips in the largest current batch of any process."""
        return max(self._rows)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            batch = next(batches, None)
            padded, rows, _ = self._ranks.pad_batches([] if batch is None else [batch], 1)
            if not padded:
                return
            self._rows = [of_rank[0] for of_rank in rows]
            yield padded[0]

    def gather(self, values: Any) -> Any:
        """Gathers tensors [clips of this process, ...] to [clips of all, ...], also in tuples, lists and dictionaries."""
        if isinstance(values, (tuple, list)):
            return type(values)(map(self.gather, values))
        if isinstance(values, Mapping):
            return type(values)({name: self.gather(value) for name, value in values.items()})
        longest = max(self._rows)
        if len(values) < longest:
            values = torch.cat([values, values[:1].expand(longest - len(values), *values.shape[1:])])
        together = gather(values.contiguous())
        each = together.reshape(len(self._rows), -1, *together.shape[1:])
        # Row n of the stream is row n // world_size of process n % world_size.
        in_order = [each[rank, row] for row in range(longest) for rank, own in enumerate(self._rows) if row < own]
        return torch.stack(in_order)


def _first_clip(batch: Any) -> Any:
    return {name: value[:1].clone() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
