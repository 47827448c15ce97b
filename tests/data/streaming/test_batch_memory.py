"""Reusable batch memory: memory that something still refers to is never overwritten."""

import pickle
import random
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.batch_memory import MIN_SLOT_BYTES, SLOTS, SharedBatchMemory
from hf_avfusion.data.streaming.clip_loader import ClipLoader
from hf_avfusion.data.streaming.clip_stream import ClipStream

LONG = MIN_SLOT_BYTES // 4  # floats


def numbers(batch):
    return [values[0].item() for values in batch]


def send(batch):
    """Sends a batch from one process to another."""
    return pickle.loads(ForkingPickler.dumps(batch))


class Pair:
    """A worker's slots and the receiver in one process."""

    def __init__(self):
        self.shared = SharedBatchMemory(1)
        self.slots = self.shared.slots(0)

    def transfer(self, *size, value=0.0):
        """Returns the receiver's batch."""
        self.shared.free_unused()
        return send(self.slots.place(torch.full(size, value)))


def test_a_slot_is_reused_when_nothing_refers_to_it():
    pair = Pair()
    batch = pair.transfer(2, LONG, value=1)
    place, row = batch.data_ptr(), batch[1]
    del batch
    assert pair.transfer(2, LONG).data_ptr() != place  # a view still exists
    array = row.numpy()
    del row
    assert pair.transfer(2, LONG).data_ptr() != place  # the numpy array still exists
    assert (array == 1).all()
    del array
    places = {pair.transfer(2, LONG).data_ptr() for _ in range(3)}
    assert len(places) == 1
    assert pair.transfer(1, LONG).data_ptr() in places  # the last batch of an epoch is smaller
    assert pair.transfer(5, LONG).data_ptr() not in places


def test_any_output_of_a_collator_is_placed():
    """Nested batches, tensors with strides, small tensors and other objects."""
    pair = Pair()
    made = {
        "x": [torch.full((LONG,), 2.0), (torch.ones(3, dtype=torch.bfloat16), "name")],
        "y": torch.arange(2 * LONG),
        "small": [torch.tensor(4), torch.zeros(0), torch.arange(6).view(2, 3).t(), torch.arange(999)],
        "odd": torch.arange(3 * LONG).view(3, LONG).t()[7:, 1:],
    }
    sent = ForkingPickler.dumps(pair.slots.place(made))
    assert len(sent) < 1 << 13  # larger messages could fill the pipe, and workers would outlive a killed parent
    placed = pickle.loads(sent)
    assert placed["x"][1][1] == "name"
    for of in (lambda b: b["x"][0], lambda b: b["x"][1][0], lambda b: b["y"], lambda b: b["odd"]):
        assert torch.equal(of(placed), of(made))
        assert of(placed).dtype == of(made).dtype
    for here, there in zip(made["small"], placed["small"]):
        assert torch.equal(here, there)
        assert here.dtype == there.dtype
    assert int(pair.shared._taken.sum()) == 3


def test_a_slot_is_sent_once():
    pair = Pair()
    first = pair.transfer(2, LONG, value=1)
    there = first.data_ptr()
    del first
    pair.shared.free_unused()
    placed = pair.slots.place(torch.full((2, LONG), 2.0))
    assert len(ForkingPickler.dumps(placed)) < 500
    again = send(placed)
    assert again.data_ptr() == there
    assert (again == 2).all()


def test_more_batches_than_slots():
    pair = Pair()
    kept = [pair.transfer(2, LONG, value=number) for number in range(SLOTS)]
    more = pair.transfer(2, LONG, value=-1)  # in new shared memory
    assert (more == -1).all()
    assert numbers([batch[0] for batch in kept]) == list(range(SLOTS))


def number_rows(row, generator=None):
    """Replaces a transform: the frames of a clip are filled with its number."""
    pixels = torch.full((LONG,), float(row["clip_id"]))
    return {"clip_id": row["clip_id"], "has_video": True, "has_audio": False, "pixel_values": pixels}


@pytest.mark.slow
def test_spawned_workers():
    """Workers are spawned on systems without fork."""
    rows = [{"clip_id": str(number)} for number in range(20)]
    loader = ClipLoader(ClipStream(rows, number_rows), 3, AVCollator(), num_workers=2, multiprocessing_context="spawn")
    assert [numbers(batch["pixel_values"]) for batch in loader] == [
        [*range(n, min(n + 3, 20))] for n in range(0, 20, 3)
    ]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_kept_batches_do_not_change(seed, persistent):
    """The consumer keeps whole batches, rows or arrays of them for a random time, over several epochs."""
    rows = [{"clip_id": str(number)} for number in range(121)]
    stream = ClipStream(rows, number_rows)
    loader = ClipLoader(stream, 3, AVCollator(), num_workers=2, persistent_workers=persistent)
    dice, kept = random.Random(seed), []
    for epoch in range(2):
        loader.dataset.set_epoch(epoch)
        for number, batch in enumerate(loader):
            pixels = batch["pixel_values"]
            assert numbers(pixels) == [*range(3 * number, min(3 * number + 3, 121))]
            keep = dice.choice([None, pixels, pixels[:1], pixels.numpy()])
            if keep is not None:
                kept.append((3 * number, keep))
            dice.shuffle(kept)
            del kept[dice.randrange(1, 12) :]
            for value, held in kept:
                assert numbers(held) == [*range(value, value + len(held))]
                assert held[-1, -1] == held[-1, 0]
        assert number == 40
    batch = pixels = keep = held = None
    kept.clear()
    loader._lanes.shared.free_unused()
    assert loader._lanes.shared._taken.sum().item() == 0


@pytest.mark.parametrize("persistent", [False, True])
def test_leaving_an_epoch_early_frees_all_slots(persistent):
    rows = [{"clip_id": str(number)} for number in range(40)]
    stream = ClipStream(rows, number_rows)
    loader = ClipLoader(stream, 2, AVCollator(), num_workers=2, persistent_workers=persistent)
    for epoch in range(SLOTS):
        stream.set_epoch(epoch)
        for number, batch in enumerate(loader):
            assert numbers(batch["pixel_values"]) == [2 * number, 2 * number + 1]
            if number == 3:
                break
    stream.set_epoch(SLOTS)
    assert sum(len(batch["pixel_values"]) for batch in loader) == 40
    del batch
    loader._lanes.shared.free_unused()
    assert loader._lanes.shared._taken.sum().item() == 0
