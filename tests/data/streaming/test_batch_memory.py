"""Reusable batch memory: memory that something still refers to is never overwritten."""

import pickle
import random
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.batch_memory import MIN_SLOT_BYTES, SLOTS, LocalBatchMemory, SharedBatchMemory
from hf_avfusion.data.streaming.clip_loader import ClipLoader
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.transforms import ClipTransform, DecodedClip

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
        """Returns the receiver's batch and the address of the worker's."""
        made = self.slots.empty(size, torch.float32).fill_(value)
        return send(self.slots.place(made)), made.data_ptr()

    def next_place(self, *size):
        """Returns the address of the next batch."""
        self.shared.free_unused()
        made = self.slots.empty(size, torch.float32)
        self.slots.place(made)
        return made.data_ptr()


def test_a_slot_is_reused_when_nothing_refers_to_it():
    pair = Pair()
    batch, place = pair.transfer(2, LONG, value=1)
    row = batch[1]
    del batch
    assert pair.next_place(2, LONG) != place  # a view still exists
    array = row.numpy()
    del row
    assert pair.next_place(2, LONG) != place  # the numpy array still exists
    assert (array == 1).all()
    del array
    assert pair.next_place(2, LONG) == place


def test_smaller_and_larger_batches_share_slots():
    pair = Pair()
    place = pair.transfer(4, LONG)[1]
    assert pair.next_place(3, LONG) == place  # the last batch of an epoch is smaller
    assert pair.next_place(5, LONG) != place


def test_any_output_of_a_collator_is_placed():
    """Nested batches, tensors made after stacking, small tensors and other objects; unsent slots are dropped."""
    pair = Pair()
    unused = pair.slots.empty((LONG,), torch.float32).fill_(5)
    odd = pair.slots.empty((3, LONG), torch.float32).copy_(torch.arange(3 * LONG).view(3, LONG)).t()[7:, 1:]
    made = {
        "x": [torch.full((LONG,), 2.0), (torch.ones(3, dtype=torch.bfloat16), "name")],
        "y": torch.arange(2 * LONG),
        "small": [torch.tensor(4), torch.zeros(0), torch.arange(6).view(2, 3).t(), torch.arange(999)],
        "odd": odd,
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
    others = [pair.slots.empty((LONG,), torch.float32) for _ in range(SLOTS)]
    assert all(other.data_ptr() != unused.data_ptr() for other in others)
    assert (unused == 5).all()


def test_a_slot_is_sent_once():
    pair = Pair()
    first, _ = pair.transfer(2, LONG, value=1)
    there = first.data_ptr()
    del first
    pair.shared.free_unused()
    placed = pair.slots.place(pair.slots.empty((2, LONG), torch.float32).fill_(2))
    assert len(ForkingPickler.dumps(placed)) < 500
    again = send(placed)
    assert again.data_ptr() == there
    assert (again == 2).all()


def test_two_tensors_in_one_slot():
    pair = Pair()
    whole = pair.slots.empty((2, LONG), torch.float32)
    place = whole.data_ptr()
    one, other = send(pair.slots.place([whole[0], whole[1]]))
    one.fill_(1)
    other.fill_(2)
    del one
    assert pair.next_place(2, LONG) != place
    assert (other == 2).all()
    del other
    assert pair.next_place(2, LONG) == place


def test_more_batches_than_slots():
    pair = Pair()
    kept = [pair.transfer(2, LONG, value=number)[0] for number in range(SLOTS)]
    placed = pair.slots.place(pair.slots.empty((2, LONG), torch.float32).fill_(-1))
    assert placed.is_shared()  # in new shared memory
    assert (send(placed) == -1).all()
    assert numbers([batch[0] for batch in kept]) == list(range(SLOTS))


def test_local_memory_is_reused_when_nothing_refers_to_it():
    pieces = LocalBatchMemory()
    batch = pieces.empty((2, LONG), torch.float32).fill_(1)
    place, row = batch.data_ptr(), batch[1]
    del batch
    assert pieces.empty((2, LONG), torch.float32).data_ptr() != place  # a view still exists
    array = row.numpy()
    del row
    assert pieces.empty((LONG,), torch.float32).data_ptr() != place  # the numpy array still exists
    assert (array == 1).all()
    del array
    assert pieces.empty((2, LONG // 2), torch.int64).data_ptr() == place
    kept = [pieces.empty((LONG,), torch.float32).fill_(number) for number in range(2 * SLOTS)]
    assert [batch[0].item() for batch in kept] == list(range(2 * SLOTS))


class Numbered(ClipTransform):
    """Replaces decoding: the frames of a clip are filled with its number."""

    def __init__(self):
        pass

    def decode(self, row, generator=None):
        return DecodedClip([], {"clip_id": row["clip_id"], "has_video": True, "has_audio": False})

    def prepare(self, decoded, empty=None):
        pixels = empty((len(decoded), LONG), torch.float32)
        for one, values in zip(decoded, pixels):
            one.sample["pixel_values"] = values.fill_(float(one.sample["clip_id"]))
        return [one.sample for one in decoded]


@pytest.mark.slow
def test_spawned_workers():
    """Workers are spawned on systems without fork."""
    rows = [{"clip_id": str(number)} for number in range(20)]
    loader = ClipLoader(ClipStream(rows, Numbered()), 3, AVCollator(), num_workers=2, multiprocessing_context="spawn")
    assert [numbers(batch["pixel_values"]) for batch in loader] == [
        [*range(n, min(n + 3, 20))] for n in range(0, 20, 3)
    ]


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
@pytest.mark.parametrize("seed", range(3))
def test_kept_batches_do_not_change(seed, options):
    """The consumer keeps whole batches, rows or arrays of them for a random time, over several epochs."""
    rows = [{"clip_id": str(number)} for number in range(121)]
    loader = ClipLoader(ClipStream(rows, Numbered()), 3, AVCollator(), **options)
    dice, kept, places = random.Random(seed), [], set()
    for epoch in range(2):
        loader.dataset.set_epoch(epoch)
        for number, batch in enumerate(loader):
            pixels = batch["pixel_values"]
            assert numbers(pixels) == [*range(3 * number, min(3 * number + 3, 121))]
            places.add(pixels.data_ptr())
            keep = dice.choice([None, pixels, pixels[:1], pixels.numpy()])
            if keep is not None:
                kept.append((3 * number, keep))
            dice.shuffle(kept)
            del kept[dice.randrange(1, 12) :]
            for value, held in kept:
                assert numbers(held) == [*range(value, value + len(held))]
                assert held[-1, -1] == held[-1, 0]
        assert number == 40
    if not options:
        assert len(places) <= SLOTS
        return
    batch = pixels = keep = held = None
    kept.clear()
    loader._lanes.shared.free_unused()
    assert loader._lanes.shared._taken.sum().item() == 0


@pytest.mark.parametrize("persistent", [False, True])
def test_leaving_an_epoch_early_frees_all_slots(persistent):
    rows = [{"clip_id": str(number)} for number in range(40)]
    stream = ClipStream(rows, Numbered())
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
