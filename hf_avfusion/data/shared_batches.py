"""Memory for batches that is used again, so that it is set up once and not for every batch.

New memory is memory that the kernel has to find, clear and map, page by page, and to take back: a tenth of the time of a small
clip where a worker gives a batch away in shared memory. So a worker has a few pieces (slots) that it uses again, each as soon
as nothing in the other process refers to what was in it, views of it included. Whoever keeps batches, all of an epoch even,
keeps what he was given: then no slot is free and new memory is taken, as a `DataLoader` does.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten, tree_unflatten

SLOTS = 16  # of a worker; a batch takes two, and by default three batches wait, are being made or are being used
SMALLEST = 1 << 16  # bytes; less is not worth a slot


class SharedBatches:
    """Which slots of which worker are taken, known to both sides: the worker takes them, the receiver frees them.

    One object serves the workers of one run through a `DataLoader`, which are started with it. With persistent workers it
    serves all runs; what waits when such a run is left early is thrown away by the `DataLoader`, and its slots stay taken.
    """

    def __init__(self, num_workers: int):
        self._taken = torch.zeros(num_workers, SLOTS, dtype=torch.uint8).share_memory_()
        self._given: list[tuple[int, int, StorageWeakRef]] = []  # receiver: what is perhaps still in use

    def slots(self, worker: int) -> WorkerSlots:
        """Those of a worker; called there."""
        return WorkerSlots(self._taken[worker])

    def received(self, worker: int, slots: dict[int, int], batch: Any) -> None:
        """The receiver has a batch; `slots` are those of its leaves, as `WorkerSlots.place` told."""
        if slots:
            leaves, _ = tree_flatten(batch)
            for leaf, slot in slots.items():
                self._given.append((worker, slot, StorageWeakRef(leaves[leaf].untyped_storage())))

    def free_unused(self) -> None:
        """Gives back all slots that nothing in this process refers to any more."""
        still = []
        for worker, slot, storage in self._given:
            if storage.expired():
                self._taken[worker, slot] = 0
            else:
                still.append((worker, slot, storage))
        self._given = still

    def __getstate__(self) -> dict[str, Any]:
        return {"_taken": self._taken, "_given": []}


class WorkerSlots:
    """The slots of the worker that this is called in. `taken`: uint8 [SLOTS], shared with the receiver."""

    def __init__(self, taken: torch.Tensor):
        self._taken = taken.numpy()
        self._storages: list[torch.UntypedStorage | None] = [None] * SLOTS
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
                self._storages[number] = storage
        if number is not None:
            self._taken[number] = 1
            self._making.add(number)
        return torch.empty(0, dtype=dtype).set_(storage, 0, size)

    def place(self, batch: Any) -> tuple[Any, dict[int, int]]:
        """A batch ready to be given away, its large tensors in shared memory, and slots of its leaves (numbers of both)."""
        leaves, structure = tree_flatten(batch)
        slots = {}
        for leaf, value in enumerate(leaves):
            if torch.is_tensor(value) and value.device.type == "cpu" and value.nbytes >= SMALLEST:
                if not value.is_shared():  # made by some step after the stacking
                    value = leaves[leaf] = self.empty(tuple(value.shape), value.dtype).copy_(value)
                number = self._slot_of(value)
                if number is not None:
                    slots[leaf] = number
        # Whatever a collator did with the others, perhaps kept them: they are no slots any more.
        for number in self._making - set(slots.values()):
            self._storages[number] = None
            self._taken[number] = 0
        self._making = set()
        return tree_unflatten(leaves, structure), slots

    def _slot_of(self, value: torch.Tensor) -> int | None:
        place = value.untyped_storage().data_ptr()
        return next((number for number in self._making if self._storages[number].data_ptr() == place), None)


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

    def place(self, batch: Any) -> tuple[Any, dict[int, int]]:
        """As that of a worker: here every batch is where it has to be."""
        return batch, {}
