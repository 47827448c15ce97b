"""Processes whose streams may end at different batches take the same number of steps, and weigh every clip alike."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import find_batch_size, gather

from .clip_loader import ClipLoader


class Ranks:
    """What the processes of a run tell each other about their batches: counts and, rarely, a clip. With one process
    nothing is sent.
    """

    def __init__(self, rank: int, world_size: int):
        self.rank = rank
        self.world_size = world_size
        self._group = None

    def all(self, value: Any) -> list[Any]:
        """`value` of every process, by rank. Every process must call."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._cpu())
        return values

    def level(self, batches: list[Any], number: int, tell: Any = None) -> tuple[list[Any], list[list[int]], list[Any]]:
        """Makes `batches` (of one step; at most `number`) as many in every process, or none in all of them.

        Returns them, filled up to `number` with a batch of one clip that must not count; the clips that do count,
        [world_size][number], 0 for what was filled in; and what each process wanted to `tell`.
        """
        rows = [find_batch_size(batch) for batch in batches] + [0] * (number - len(batches))
        rows, told = zip(*self.all((rows, tell)))
        if not any(map(any, rows)):
            return [], rows, told
        if all(map(all, rows)):
            return batches, rows, told
        # Somebody's first batch; a process that has none could not make one up: shapes are the data's.
        source = next(rank for rank in range(self.world_size) if rows[rank][0])
        filler = [_first_clip(batches[0]) if self.rank == source else None]
        if self.world_size > 1:
            dist.broadcast_object_list(filler, src=source, group=self._cpu())
        return batches + filler * (number - len(batches)), rows, told

    def _cpu(self) -> dist.ProcessGroup:
        # Of its own, so that counts, which are on the CPU, do not wait for what the accelerator is doing.
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        return self._group


def loss_weights(rows: list[list[int]], rank: int) -> list[float]:
    """Factors of one process's losses, each a mean over its batch, so that the mean over batches and processes, which
    training takes, is the mean over all clips. Exactly 1.0 where all batches are equally long.
    """
    total = sum(map(sum, rows))
    batches = len(rows) * len(rows[0])
    return [own * batches / total for own in rows[rank]]


class LevelBatches:
    """The batches of a `ClipLoader` for evaluation by several processes: as many in each, and a `gather` that gives the
    real clips only, in the order of the stream.
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
        """Clips of this process's current batch that count."""
        return self._rows[self._ranks.rank]

    @property
    def most_rows(self) -> int:
        """Clips of the longest current batch of any process."""
        return max(self._rows)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            batch = next(batches, None)
            level, rows, _ = self._ranks.level([] if batch is None else [batch], 1)
            if not level:
                return
            self._rows = [of_rank[0] for of_rank in rows]
            yield level[0]

    def gather(self, values: Any) -> Any:
        """Tensors [rows of this process, ...] -> [rows of all, ...]; also in tuples, lists and dictionaries."""
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
