"""Balanced sampling: clips appear with PSLA's weights, epochs keep their length, resuming is exact, counters are right."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest

from hf_avfusion.data import LabelBalance, interleave
from hf_avfusion.data.benchmarks.shards import find_shards
from hf_avfusion.data.streaming.clip_loader import ClipLoader
from hf_avfusion.data.streaming.clip_stream import ClipStream

# 24 of class 0, 9 of class 1, 3 of class 2, one of these also of class 0
LABELS = [[0]] * 24 + [[1]] * 9 + [[2], [2], [0, 2]]
COUNTS = (25, 9, 3)
FEATURES = datasets.Features(
    {"clip_id": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["a", "b", "c", "d"]))}
)


def reading(row, generator):
    return {"clip_id": row["clip_id"], "draw": int(generator.initial_seed())}


def rows(kind="rows"):
    made = [{"clip_id": f"clip-{n}", "labels": labels} for n, labels in enumerate(LABELS)]
    if kind == "rows":
        return made
    made = datasets.Dataset.from_list(made, features=FEATURES)
    return made.to_iterable_dataset(num_shards=4) if kind == "streamed" else made


def loader(kind="rows", seed=1, batch_size=4, **options):
    given = rows(kind)
    stream = ClipStream(given, reading, seed=seed, shuffle_buffer=50, balance=LabelBalance.of(given, "labels"))
    return ClipLoader(stream, batch_size, list, **options)


def flat(batches):
    return [sample["clip_id"] for batch in batches for sample in batch]


@pytest.mark.parametrize("kind", ["rows", "dataset", "streamed"])
def test_factors_match_the_published_weights(kind):
    balance = LabelBalance.of(rows(kind), "labels")
    assert balance.counts == COUNTS + ((0,) if kind != "rows" else ())
    assert balance.num_rows == 36
    weights = np.array([sum(1000 / (COUNTS[label] + 0.01) for label in labels) for labels in LABELS])
    expected = 36 * weights / weights.sum()
    np.testing.assert_allclose([balance.factor({"labels": labels}) for labels in LABELS], expected)
    single = LabelBalance.of([{"label": n % 3} for n in range(9)], "label")
    assert [single.factor({"label": n}) for n in range(3)] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("kind", ["rows", "streamed"])
def test_epochs_keep_their_length_and_have_the_expected_shares(kind):
    made = loader(kind)
    balance = made.dataset.order.balance
    total, epochs = Counter(), 120
    for epoch in range(epochs):
        made.dataset.set_epoch(epoch)
        names = flat(made)
        assert len(names) == len(made.dataset) == 36
        total.update(names)
        for n, labels in enumerate(LABELS):
            expected = balance.factor({"labels": labels})
            assert int(expected) <= names.count(f"clip-{n}") <= int(expected) + 1
    # Systematic sampling: over epochs, each clip's mean approaches its factor, with a deviation of at most 1/2 per epoch.
    for n, labels in enumerate(LABELS):
        assert total[f"clip-{n}"] / epochs == pytest.approx(
            balance.factor({"labels": labels}), abs=5 * 0.5 / epochs**0.5
        )
    by_class = Counter()
    for name, times in total.items():
        for label in LABELS[int(name[5:])]:
            by_class[label] += times
    assert by_class[2] / by_class[1] == pytest.approx(1.0, abs=0.15)  # the rows have 3 and 9 clips
    assert by_class[0] / by_class[1] == pytest.approx(
        1.35, abs=0.15
    )  # the clip with both labels is drawn for its rare label


@pytest.mark.parametrize(("kind", "workers", "world_size"), [("rows", 0, 1), ("streamed", 0, 2), ("dataset", 2, 2)])
def test_resuming_anywhere(kind, workers, world_size):
    options = {"kind": kind, "num_workers": workers, "rank": world_size - 1, "world_size": world_size}
    whole = loader(**options)
    whole.dataset.set_epoch(3)
    batches, states = [], []
    for batch in whole:
        batches.append(batch)
        states.append(json.loads(json.dumps(whole.state_dict())))
    for stop in range(1, len(batches) + 1):
        again = loader(**options)
        again.load_state_dict(states[stop - 1])
        again.dataset.set_epoch(3)
        assert list(again) == batches[stop:]
        assert again.counts == whole.counts


@pytest.mark.parametrize("kind", ["rows", "streamed"])
def test_copies_have_their_own_draws_and_are_counted(kind):
    parts = [loader(kind, rank=rank, world_size=2, num_workers=rank) for rank in (0, 1)]
    samples = [sample for part in parts for batch in part for sample in batch]
    names = [sample["clip_id"] for sample in samples]
    assert len({(sample["clip_id"], sample["draw"]) for sample in samples}) == len(samples) == 36
    counts = [part.counts for part in parts]
    assert sum(count["repeated"] for count in counts) == 36 - len(set(names)) > 0
    assert sum(count["left_out"] for count in counts) == 36 - len(set(names))
    plain = list(ClipStream(rows(kind), reading, seed=1, shuffle_buffer=50, balance=LabelBalance.of(rows(), "labels")))
    assert sorted(sample["clip_id"] for sample in plain) == sorted(names)


def test_counting_labels_of_shards_reads_no_videos(tmp_path):
    made = rows("dataset")
    for number in range(2):
        made.shard(2, number).to_parquet(str(tmp_path / f"train-{number}.parquet"))
    counted = LabelBalance.of_shards(find_shards(tmp_path, "train"), "labels")
    assert counted.counts == COUNTS
    assert counted.num_rows == 36
    streamed = datasets.load_dataset(
        "parquet", data_files=[str(path) for path in find_shards(tmp_path, "train")], split="train", streaming=True
    )
    assert len(list(ClipStream(streamed, reading, shuffle_buffer=9, balance=counted))) == 36


def test_resuming_with_another_balance_raises():
    made = loader()
    next(iter(made))
    state = json.loads(json.dumps(made.state_dict()))
    unbalanced = ClipLoader(ClipStream(rows(), reading, seed=1, shuffle_buffer=50), 4, list)
    with pytest.raises(ValueError, match=r"rows was .*balanced.* and is None"):
        unbalanced.load_state_dict(state)


def test_invalid_arguments_raise():
    balance = LabelBalance.of(rows(), "labels")
    with pytest.raises(ValueError, match="set shuffle_buffer"):
        ClipStream(rows(), reading, balance=balance)
    with pytest.raises(ValueError, match="balance counts 36 rows, but there are 35"):
        ClipStream(rows()[1:], reading, shuffle_buffer=9, balance=balance)
    with pytest.raises(ValueError, match="balance cannot be combined with interleaved rows"):
        ClipStream(interleave([rows(), rows()]), reading, shuffle_buffer=9, balance=balance)
    with pytest.raises(ValueError, match=r"no column 'label' to balance; the columns are: clip_id, labels"):
        LabelBalance.of(rows("dataset"), "label")
    with pytest.raises(ValueError, match=r"must contain class numbers, got 'x'"):
        LabelBalance.count(["x"], "label")
    with pytest.raises(ValueError, match=r"contains the classes \[3\], but the balance counted 3 classes"):
        balance.factor({"labels": [3]})
    with pytest.raises(ValueError, match="counts must be"):
        LabelBalance("label", (0, 0), 3)
