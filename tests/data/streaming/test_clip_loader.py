"""ClipLoader with workers, ranks and interruptions: every row appears once, and resuming gives the same batches."""

import gc
import json
import os

import datasets
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from rendering import render_clip

from hf_avfusion.data.streaming.clip_loader import ClipLoader
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.streaming.interleaving import interleave
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.media.reader import MediaError
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor

BROKEN = ("clip-3", "clip-4", "clip-17", "clip-36")


class Reading:
    """Replaces decoding: records its clips, and raises for broken ones."""

    def __init__(self, broken=()):
        self.broken = broken
        self.given = []

    def __call__(self, row, generator):
        self.given.append(row["clip_id"])
        if row["clip_id"] in self.broken:
            raise MediaError(row["clip_id"], "broken on purpose")
        return {"clip_id": row["clip_id"], "draw": torch.rand((), generator=generator).item()}


def rows(number=37):
    return [{"clip_id": f"clip-{n}", "video": {"bytes": bytes([n]), "path": None}} for n in range(number)]


def loader(batch_size=4, streamed=False, broken=(), number=37, num_rows=None, seed=3, shuffle_buffer=10, **options):
    given = rows(number)
    if streamed:
        given = datasets.Dataset.from_list(given).to_iterable_dataset(num_shards=5)
        num_rows = num_rows or number
    stream = ClipStream(given, Reading(broken), seed=seed, shuffle_buffer=shuffle_buffer, num_rows=num_rows)
    return ClipLoader(stream, batch_size, list, **options)


def ids(batches):
    return [[sample["clip_id"] for sample in batch] for batch in batches]


def flat(batches):
    return [name for batch in batches for name in batch]


ALL = sorted(row["clip_id"] for row in rows())
whole_way = pytest.mark.parametrize("streamed", [False, True])


@whole_way
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_workers(streamed, workers):
    alone, together = loader(streamed=streamed), loader(streamed=streamed, num_workers=workers)
    for epoch in (0, 1):
        for each in (alone, together):
            each.dataset.set_epoch(epoch)
        expected, got = list(alone), list(together)
        assert expected == got  # ids, order and random draws
        assert [len(batch) for batch in got] == [4] * 9 + [1]
        assert sorted(flat(ids(got))) == ALL
        assert flat(ids(got)) != ALL


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_share_the_epoch_of_a_streamed_dataset(monkeypatch, workers):
    """If two workers set the epoch at the same time, both add the difference."""
    expected = []
    for epoch in (1, 2):
        made = loader(streamed=True)
        made.dataset.set_epoch(epoch)
        expected.append(list(made))
    monkeypatch.setattr(
        datasets.IterableDataset, "set_epoch", lambda self, epoch: self._epoch.add_(2 * (epoch - self._epoch))
    )
    made = loader(streamed=True, num_workers=workers, **({"persistent_workers": True} if workers else {}))
    for epoch, batches in zip((1, 2), expected):
        made.dataset.set_epoch(epoch)
        assert list(made) == batches
    assert made.dataset.rows.epoch == 0  # the shared epoch is unchanged


@whole_way
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_divide_every_batch(streamed, world_size):
    """Batch k of all ranks together is batch k of one process with a larger batch; the last batch is divided, too."""
    one = ids(loader(world_size * 4, streamed))
    ranks = [ids(loader(4, streamed, rank=rank, world_size=world_size, num_workers=rank)) for rank in range(world_size)]
    for number, batch in enumerate(one):
        parts = [rank[number] if number < len(rank) else [] for rank in ranks]
        assert sorted(flat(parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(flat(flat(ranks))) == ALL
    made = loader(4, streamed, world_size=world_size)
    assert len(made) == len(one) == max(map(len, ranks))


@pytest.mark.parametrize(
    ("streamed", "workers", "world_size"),
    [(False, 0, 1), (True, 0, 1), (False, 0, 2), (False, 1, 1), (False, 2, 1), (False, 3, 1), (True, 2, 2)],
)
def test_resuming_anywhere(streamed, workers, world_size):
    """Some rows do not decode. The rest of the epoch is the same, and only the rest is decoded."""
    options = {
        "streamed": streamed, "broken": BROKEN, "num_workers": workers, "rank": world_size - 1, "world_size": world_size,
        "batch_size": 3,
    }  # fmt: skip
    whole = loader(**options)
    whole.dataset.set_epoch(2)
    batches, states, counts = [], [], []
    for batch in whole:
        batches.append(batch)
        states.append(json.loads(json.dumps(whole.state_dict())))
        counts.append(len(whole.dataset.transform.given))
    decoded, skipped = list(whole.dataset.transform.given), whole.skipped
    whole.dataset.set_epoch(3)
    next_epoch = list(whole)
    assert next_epoch != batches
    for stop in range(1, len(batches) + 1, 1 if workers == 0 else 4):
        again = loader(**options)
        again.load_state_dict(states[stop - 1])
        again.dataset.set_epoch(2)
        assert again.skipped == sum(states[stop - 1]["rows_skipped"])
        assert list(again) == batches[stop:]
        assert again.skipped == skipped
        if workers == 0:  # otherwise decoding happens in other processes
            assert again.dataset.transform.given == decoded[counts[stop - 1] :]
        again.dataset.set_epoch(3)  # starts at its beginning
        assert list(again) == next_epoch


def test_a_stream_without_decodable_rows_raises():
    """Also with small batches."""
    broken = [f"clip-{n}" for n in range(5, 200)]
    with pytest.raises(RuntimeError, match="100 clips in a row did not decode"):
        list(loader(broken=broken, number=200, batch_size=2, shuffle_buffer=0))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_that_do_not_decode_are_replaced_by_the_next(workers, world_size):
    loaders = [
        loader(rank=rank, world_size=world_size, num_workers=workers, broken=BROKEN) for rank in range(world_size)
    ]
    batches = [ids(each) for each in loaders]
    assert sorted(flat(flat(batches))) == sorted(set(ALL) - set(BROKEN))
    assert sum(each.skipped for each in loaders) == len(BROKEN)
    for each in batches:  # each worker has at most one incomplete batch at the end
        assert sum(len(batch) < 4 for batch in each) <= max(1, workers)
        assert len(each) <= len(loaders[0])
    again = [ids(each) for each in loaders]
    assert again == batches
    assert sum(each.skipped for each in loaders) == 2 * len(BROKEN)  # in both epochs


def test_persistent_workers_resume_and_restart():
    options = {"num_workers": 2, "persistent_workers": True, "broken": BROKEN}
    whole = loader(**options)
    batches, states = [], []
    for batch in whole:
        batches.append(batch)
        states.append(whole.state_dict())
    assert list(whole) == batches
    whole.load_state_dict(states[4])
    assert list(whole) == batches[5:]
    assert list(whole) == batches


@whole_way
def test_drop_last_drops_incomplete_batches(streamed):
    for workers, world_size, number in ((0, 1, 9), (2, 1, 9), (0, 2, 4)):
        loaders = [
            loader(4, streamed, rank=rank, world_size=world_size, num_workers=workers, drop_last=True)
            for rank in range(world_size)
        ]
        assert [[len(batch) for batch in each] for each in loaders] == [[4] * number] * world_size
        assert len(loaders[0]) == number


def test_state_of_another_division_raises():
    made = loader(num_workers=2)
    next(iter(made))
    state = made.state_dict()
    for options, name in (
        ({"num_workers": 1}, "workers was 2 and is 1"),
        ({"num_workers": 2, "world_size": 2}, "world_size was 1 and is 2"),
        ({"num_workers": 2, "batch_size": 5}, "batch_size was 4 and is 5"),
        ({"num_workers": 2, "seed": 4}, "seed was 3 and is 4"),
        ({"num_workers": 2, "shuffle_buffer": 0}, "shuffle_buffer was 10 and is 0"),
        ({"num_workers": 2, "number": 36}, "num_rows was 37 and is 36"),
        ({"num_workers": 2, "drop_last": True}, "drop_last was False and is True"),
    ):
        with pytest.raises(ValueError, match=name):
            loader(**options).load_state_dict(state)
    # num_workers=0 and num_workers=1 read the same rows in the same order.
    one = loader()
    batches = iter(one)
    next(batches)
    other = loader(num_workers=1)
    other.load_state_dict(one.state_dict())
    assert list(other) == list(batches)


def test_state_of_other_clips_raises():
    def made(names, mixed=False):
        given = datasets.Dataset.from_dict({"clip_id": names})
        if mixed:
            given = interleave([given, datasets.Dataset.from_dict({"clip_id": ["a", "b", "c", "d"]})], seed=0)
        return ClipLoader(ClipStream(given, Reading(), seed=3, shuffle_buffer=10), 2, list)

    names = [f"clip-{n}" for n in range(8)]
    for mixed in (False, True):
        stopped = made(names, mixed)
        batches = iter(stopped)
        next(batches)
        state = json.loads(json.dumps(stopped.state_dict()))
        for others in (names[::-1], [*names[:-1], "clip-9"]):
            with pytest.raises(ValueError, match="needs the same clips in the same order"):
                made(others, mixed).load_state_dict(state)
        again = made(names, mixed)
        again.load_state_dict(state)
        assert list(again) == list(batches)
        del state["layout"]["clips"]  # written by an older version without the hash
        made(names[::-1], mixed).load_state_dict(state)


def test_state_of_another_epoch_raises():
    made = loader()
    next(iter(made))
    state = made.state_dict()
    made = loader()
    made.load_state_dict(state)
    made.dataset.set_epoch(1)
    with pytest.raises(ValueError, match=r"belongs to epoch 0, but the stream is at epoch 1"):
        iter(made)


def test_rows_split_by_node_raise():
    whole = datasets.Dataset.from_list(rows()).to_iterable_dataset(num_shards=4)
    part = split_dataset_by_node(whole, rank=0, world_size=2)
    with pytest.raises(ValueError, match="split_dataset_by_node"):
        ClipLoader(ClipStream(part, Reading()), 4, list, rank=0, world_size=2)


def test_invalid_sizes_raise():
    with pytest.raises(ValueError, match="batch_size"):
        loader(0)
    with pytest.raises(ValueError, match="rank"):
        loader(rank=2, world_size=2)


def test_unknown_length_raises():
    given = datasets.Dataset.from_list(rows(10)).to_iterable_dataset()
    made = ClipLoader(ClipStream(given, Reading()), 4, list)
    with pytest.raises(TypeError, match="num_rows"):
        len(made)
    assert [len(batch) for batch in made] == [4, 4, 2]


def resident() -> float:
    """Returns the memory of this process in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_memory_does_not_grow_over_a_long_stream(tmp_path):
    """3,000 rows with real clips through a shuffle buffer. A prepared row holds 96 KiB of pixels, so one row kept in
    twelve would show, while the allocator's own steps of a few MiB (about 1 KiB a row) do not."""
    clip = render_clip(num_frames=4, size=(16, 16), audio=None)
    for shard in range(5):
        names = [f"clip-{shard}-{n}" for n in range(600)]
        table = {"clip_id": names, "video": [{"bytes": clip, "path": None}] * 600, "label": [1] * 600}
        datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / f"train-{shard}.parquet"), batch_size=100)
    processor = MBTProcessor(
        AVFusionVideoProcessor(size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64}),
        AVFusionFeatureExtractor.from_preset("mbt"), num_frames=2, span=0.16,
    )  # fmt: skip
    shards = sorted(map(str, tmp_path.glob("*.parquet")))
    streamed = datasets.load_dataset("parquet", data_files=shards, split="train", streaming=True)
    transform = ClipTransform(processor, mode="train", modalities=("video",))
    made = ClipLoader(ClipStream(streamed, transform, shuffle_buffer=100, num_rows=3000), 10, list)
    used, clips = [], 0
    for batch in made:
        clips += len(batch)
        if clips % 250 == 0:
            gc.collect()
            used.append(resident())
    assert clips == 3000
    assert made.skipped == 0
    settled = torch.tensor(used[4:], dtype=torch.float64)  # the first thousand rows fill the buffer and all caches
    number = torch.arange(len(settled), dtype=torch.float64) * 250
    slope = ((number - number.mean()) * (settled - settled.mean())).sum() / ((number - number.mean()) ** 2).sum()
    assert slope * 1024 < 8.0, f"{slope * 1024:.2f} KiB a row: {used}"
