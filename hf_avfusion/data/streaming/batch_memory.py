"""Memory for batches that is used again, so that it is set up once and not for every batch.

New memory is memory that the kernel has to find, clear and map, page by page, and to take back: a tenth of the time of a small
clip where a worker gives a batch away in shared memory. So a worker has a few pieces (slots) that it uses again, each as soon
as nothing in the other process refers to what was in it, views of it included; and the other process is handed each slot once,
which takes half a millisecond, and is afterwards only told where in it a tensor lies. Whoever keeps batches, all of an epoch
even, keeps what he was given: then no slot is free and new memory is taken, as a `DataLoader` does.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

SLOTS = 16  # of a worker; a batch takes two, and by default three batches wait, are being made or are being used
SMALLEST = 1 << 16  # bytes; less is not worth a slot
# Bytes; up to here a tensor travels by value. Not more: what waits has to fit into the pipe between the processes, or workers
# whose parent was killed wait for ever to be rid of it, and outlive it.
BY_VALUE = 1 << 10
OF_NUMPY = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64}

_receivers: weakref.WeakValueDictionary[int, SharedBatches] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class SharedBatches:
    """Which slots of which worker are taken, known to both sides: the worker takes them, the receiver frees them.

    One object serves the workers of one run through a `DataLoader`, or, with persistent workers, of all its runs. They are
    started with a copy of it. What they give away becomes tensors where it is unpickled, in the process that made the object.
    """

    def __init__(self, num_workers: int):
        self._taken = torch.zeros(num_workers, SLOTS, dtype=torch.uint8).share_memory_()
        self._number = next(_numbers)
        _receivers[self._number] = self
        # The receiver's: all bytes of each slot, and what is perhaps still in use. A `DataLoader` that pins memory unpickles
        # in a thread of its own.
        self._lock = threading.Lock()
        self._bytes: dict[tuple[int, int], np.ndarray] = {}
        self._given: dict[tuple[int, int], list[weakref.ref]] = {}

    def slots(self, worker: int) -> WorkerSlots:
        """Those of a worker; called there."""
        return WorkerSlots(self._taken[worker], self._number, worker)

    def free_unused(self) -> None:
        """Gives back all slots that nothing in this process refers to any more."""
        with self._lock:
            for place, uses in list(self._given.items()):
                if all(use() is None for use in uses):
                    del self._given[place]
                    self._taken[place] = 0

    def _receive(self, worker: int, slot: int, storage: torch.UntypedStorage | None, nbytes: int) -> torch.Tensor:
        """The first bytes of a slot, uint8 [nbytes], which is taken for as long as anything refers to them."""
        with self._lock:
            if storage is not None:
                self._bytes[worker, slot] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            view = self._bytes[worker, slot][:nbytes]
            self._given.setdefault((worker, slot), []).append(weakref.ref(view))
        return torch.from_numpy(view)  # which keeps the view, not a copy of it

    def __getstate__(self) -> dict[str, Any]:
        return {"_taken": self._taken, "_number": self._number}  # a worker needs no more


class WorkerSlots:
    """The slots of the worker that this is called in. `taken`: uint8 [SLOTS], shared with the receiver."""

    def __init__(self, taken: torch.Tensor, receiver: int, worker: int):
        self._taken = taken.numpy()
        self._receiver, self._worker = receiver, worker
        self._storages: list[torch.UntypedStorage | None] = [None] * SLOTS
        self._handed: list[bool] = [False] * SLOTS  # the receiver has this storage
        self._making: set[int] = set()  # taken for the batch that is being made

    def empty(self, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor in shared memory: in the smallest free slot that holds it, else in new memory."""
        needed = math.prod(size) * dtype.itemsize
        free = [number for number in range(SLOTS) if not self._taken[number]]
        sizes = {number: self._storages[number].nbytes() for number in free if self._storages[number] is not None}
        fitting = [number for number in sizes if sizes[number] >= needed]
        if fitting:
            number = min(fitting, key=sizes.__getitem__)
            storage = self._storages[number]
        else:
            storage = torch.UntypedStorage._new_shared(needed, device="cpu")
            number = min(free, key=lambda number: sizes.get(number, 0), default=None)
            if number is not None:
                self._storages[number], self._handed[number] = storage, False
        if number is not None:
            self._taken[number] = 1
            self._making.add(number)
        return torch.empty(0, dtype=dtype).set_(storage, 0, size)

    def place(self, batch: Any) -> Any:
        """A batch ready to be given away, its large tensors in shared memory; unpickling makes tensors of all of them."""
        leaves, structure = tree_flatten(batch)
        given = set()
        for leaf, value in enumerate(leaves):
            if type(value) is not torch.Tensor or value.device.type != "cpu" or value.layout is not torch.strided:
                continue
            if value.nbytes < SMALLEST:
                if value.nbytes <= BY_VALUE and value.dtype in OF_NUMPY and not value.requires_grad:
                    leaves[leaf] = _Travelling(_from_array, value.numpy())
                continue
            if not value.is_shared():  # made by some step after the stacking
                value = leaves[leaf] = self.empty(tuple(value.shape), value.dtype).copy_(value)
            number = self._slot_of(value)
            if number is not None:
                given.add(number)
                leaves[leaf] = self._in_slot(number, value)
        # Whatever a collator did with the others, perhaps kept them: they are no slots any more.
        for number in self._making - given:
            self._storages[number] = None
            self._taken[number] = 0
        self._making = set()
        return tree_unflatten(leaves, structure)

    def _slot_of(self, value: torch.Tensor) -> int | None:
        place = value.untyped_storage().data_ptr()
        return next((number for number in self._making if self._storages[number].data_ptr() == place), None)

    def _in_slot(self, number: int, value: torch.Tensor) -> _Travelling:
        storage = None if self._handed[number] else self._storages[number]
        self._handed[number] = True
        where = (self._receiver, self._worker, number)
        return _Travelling(
            _from_slot, where, storage, value.dtype, tuple(value.shape), value.stride(), value.storage_offset()
        )


class _Travelling:
    """Arrives, when it is unpickled, as what `make(*arguments)` is there."""

    def __init__(self, make: Callable[..., torch.Tensor], *arguments: Any):
        self._make, self._arguments = make, arguments

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple]:
        return self._make, self._arguments


def _from_array(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def _from_slot(
    where: tuple[int, int, int],
    storage: torch.UntypedStorage | None,
    dtype: torch.dtype,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
) -> torch.Tensor:
    receiver, worker, slot = where
    length = offset + 1 + sum((count - 1) * step for count, step in zip(size, stride))
    flat = _receivers[receiver]._receive(worker, slot, storage, length * dtype.itemsize)
    return flat.view(dtype).as_strided(size, stride, offset)


class OwnPieces:
    """The same for a process that makes its batches itself, in memory of its own."""

    def __init__(self):
        # Pieces, and what was last made in each: alive as long as anything refers to a tensor of it.
        self._pieces: list[np.ndarray] = []
        self._used: list[weakref.ref] = []

    def empty(self, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor: in the smallest free piece that holds it, else in new memory."""
        needed = math.prod(size) * dtype.itemsize
        sizes = {place: self._pieces[place].nbytes for place, used in enumerate(self._used) if used() is None}
        fitting = [place for place in sizes if sizes[place] >= needed]
        if fitting:
            place = min(fitting, key=sizes.__getitem__)
            view = self._pieces[place][:needed]
            self._used[place] = weakref.ref(view)
        else:
            piece = np.empty(needed, dtype=np.uint8)
            view = piece[:]
            if sizes:  # too small for what comes now
                place = min(sizes, key=sizes.__getitem__)
                self._pieces[place], self._used[place] = piece, weakref.ref(view)
            elif len(self._pieces) < SLOTS:
                self._pieces.append(piece)
                self._used.append(weakref.ref(view))
        return torch.from_numpy(view).view(dtype).view(size)  # which keeps the view, not a copy of it

    def place(self, batch: Any) -> Any:
        """As that of a worker: here every batch is where it has to be."""
        return batch
