"""Batches handed over in memory that is used again: nothing that somebody still looks at is ever written to."""

import random

import pytest
import torch
from torch.utils.data import get_worker_info

from hf_avfusion.data.loading import ClipLoader
from hf_avfusion.data.shared_batches import SLOTS, SMALLEST, SharedBatches
from hf_avfusion.data.streaming import ClipStream

LONG = SMALLEST // 4  # floats


def numbers(batch):
    return [values[0].item() for values in batch]


class Pair:
    """Both sides in one process: a worker's slots, and the receiver, whose mapping of a batch a copy stands for."""

    def __init__(self):
        self.shared = SharedBatches(1)
        self.slots = self.shared.slots(0)

    def hand_over(self, *size, value=0.0):
        """The receiver's batch, and the place of the worker's."""
        placed, slots = self.slots.place(self.slots.empty(size, torch.float32).fill_(value))
        batch = placed.clone()
        self.shared.received(0, slots, batch)
        return batch, placed.data_ptr()

    def next_place(self, *size):
        """Where the next batch would lie."""
        self.shared.free_unused()
        made = self.slots.empty(size, torch.float32)
        self.slots.place(made)
        return made.data_ptr()


def test_a_slot_is_used_again_when_nothing_refers_to_it():
    pair = Pair()
    batch, place = pair.hand_over(2, LONG, value=1)
    row = batch[1]
    del batch
    assert pair.next_place(2, LONG) != place  # a view is still there
    array = row.numpy()
    del row
    assert pair.next_place(2, LONG) != place  # so is numpy's
    assert (array == 1).all()
    del array
    assert pair.next_place(2, LONG) == place


def test_smaller_and_larger_batches_share_slots():
    pair = Pair()
    place = pair.hand_over(4, LONG)[1]
    assert pair.next_place(3, LONG) == place  # the end of an epoch
    assert pair.next_place(5, LONG) != place


def test_whatever_a_collator_makes_is_placed():
    """Nested, made anew after stacking, small, or not of tensors; and slots that are not given away are none any more."""
    slots_of_worker = SharedBatches(1).slots(0)
    unused = slots_of_worker.empty((LONG,), torch.float32).fill_(5)
    made = {"x": [torch.full((LONG,), 2.0), (torch.ones(3), "name")], "y": torch.arange(2 * LONG)}
    placed, slots = slots_of_worker.place(made)
    assert placed["x"][0].is_shared()
    assert placed["y"].is_shared()
    assert placed["x"][1][0] is made["x"][1][0]  # not worth it
    assert placed["x"][1][1] == "name"
    assert (placed["x"][0] == 2).all()
    assert torch.equal(placed["y"], made["y"])
    assert len(set(slots.values())) == 2
    others = [slots_of_worker.empty((LONG,), torch.float32) for _ in range(SLOTS)]
    assert all(other.data_ptr() != unused.data_ptr() for other in others)
    assert (unused == 5).all()


def test_more_batches_than_slots():
    pair = Pair()
    kept = [pair.hand_over(2, LONG, value=number)[0] for number in range(SLOTS)]
    placed, slots = pair.slots.place(pair.slots.empty((2, LONG), torch.float32))
    assert placed.is_shared()
    assert slots == {}
    assert numbers(kept[3]) == [3, 3]


class Numbered:
    """Every clip is filled with its number; some samples are large, some too small for a slot."""

    def __call__(self, row, generator):
        number = int(row["clip_id"])
        return {"long": torch.full((LONG,), float(number)), "short": torch.full((4,), float(number))}


def stacked(samples):
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in ("long", "short")}
    return {**batch, "worker": get_worker_info().id if get_worker_info() is not None else None}


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_batches_that_are_kept_stay_as_they_were(seed, persistent):
    """The consumer keeps whole batches, rows or arrays of them for a random while, over several epochs."""
    rows = [{"clip_id": str(number)} for number in range(120)]
    loader = ClipLoader(ClipStream(rows, Numbered()), 3, stacked, num_workers=2, persistent_workers=persistent)
    dice, kept = random.Random(seed), []
    for epoch in range(2):
        loader.dataset.set_epoch(epoch)
        for number, batch in enumerate(loader):
            first = 3 * number
            assert numbers(batch["long"]) == numbers(batch["short"]) == [first, first + 1, first + 2]
            keep = dice.choice(["nothing", "batch", "row", "array"])
            if keep != "nothing":
                kept.append(
                    (first, {"batch": batch["long"], "row": batch["long"][:1], "array": batch["long"].numpy()}[keep])
                )
            dice.shuffle(kept)
            del kept[dice.randrange(1, 30) :]
            for value, held in kept:
                assert (held[0] == value).all()
    taken = loader._lanes.shared._taken.sum().item()
    assert taken <= 2 * SLOTS
    batch = held = None
    kept.clear()
    loader._lanes.shared.free_unused()
    assert loader._lanes.shared._taken.sum().item() == 0
