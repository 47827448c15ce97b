"""Interleaving: the sequence of `datasets`, labels merged by name, the right number of repetitions, exact resuming."""

import json
import logging
from collections import Counter

import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_avfusion.data import interleave
from hf_avfusion.data.streaming.clip_loader import ClipLoader
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.streaming.interleaving import STRATEGIES
from hf_avfusion.media.reader import MediaError

SIZES = (23, 11, 7)
WEIGHTS = [0.5, 0.3, 0.2]


class Reading:
    """Replaces decoding: records rows and random draws, and raises for broken rows."""

    def __init__(self, broken=()):
        self.broken = broken
        self.given = []

    def __call__(self, row, generator):
        self.given.append(row["clip_id"])
        if row["clip_id"] in self.broken:
            raise MediaError(row["clip_id"], "broken on purpose")
        return {"clip_id": row["clip_id"], "draw": int(generator.initial_seed())}


def source(letter, size, kind="rows"):
    rows = [{"clip_id": f"{letter}{n}", "video": {"bytes": bytes([n]), "path": None}} for n in range(size)]
    if kind == "rows":
        return rows
    made = datasets.Dataset.from_list(rows)
    return made.to_iterable_dataset(num_shards=min(3, size)) if kind == "streamed" else made


def mixture(kind="rows", probabilities=WEIGHTS, stopping_strategy="first_exhausted", sizes=SIZES, known=True, seed=5):
    sources = [source(letter, size, kind) for letter, size in zip("abc", sizes)]
    return interleave(
        sources, probabilities=probabilities, seed=seed, stopping_strategy=stopping_strategy,
        num_rows=sizes if known else None,
    )  # fmt: skip


def loader(batch_size=3, shuffle_buffer=8, broken=(), stream_seed=1, rank=0, world_size=1, num_workers=0, **options):
    stream = ClipStream(mixture(**options), Reading(broken), seed=stream_seed, shuffle_buffer=shuffle_buffer)
    return ClipLoader(stream, batch_size, list, rank=rank, world_size=world_size, num_workers=num_workers)


def ids(batches):
    return [sample["clip_id"] for batch in batches for sample in batch]


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    probabilities=st.sampled_from([None, "some"]),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 99),
)
def test_sequence_matches_datasets(sizes, probabilities, strategy, seed):
    """Unshuffled rows have the order of `datasets.interleave_datasets` and the computed number."""
    if probabilities:
        probabilities = [(n + 1) / sum(range(len(sizes) + 1)) for n in range(len(sizes))]
    streams = [source(letter, size, "streamed") for letter, size in zip("abcd", sizes)]
    theirs = datasets.interleave_datasets(streams, probabilities=probabilities, seed=seed, stopping_strategy=strategy)
    lists = [source(letter, size) for letter, size in zip("abcd", sizes)]
    ours = interleave(lists, probabilities=probabilities, seed=seed, stopping_strategy=strategy)
    order = [draw.row()["clip_id"] for draw in ours.draws(0)]
    assert order == [row["clip_id"] for row in theirs]
    assert len(order) == ours.num_rows
    assert sum(draw.left_out for draw in ours.draws(0)) == sum(sizes) - len(set(order))
    assert Counter(draw.copy > 0 for draw in ours.draws(0))[False] == len(set(order))


@pytest.mark.parametrize("kind", ["rows", "dataset", "streamed"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_epoch(kind, strategy):
    made = loader(kind=kind, stopping_strategy=strategy)
    epochs = []
    for epoch in (0, 1, 0):
        made.dataset.set_epoch(epoch)
        epochs.append(ids(made))
    assert epochs[0] == epochs[2] != epochs[1]
    assert [name[0] for name in epochs[0]] == [name[0] for name in epochs[1]]  # the sequence of sources is the same
    assert len(epochs[0]) == len(made.dataset)
    everything = {f"{letter}{n}" for letter, size in zip("abc", SIZES) for n in range(size)}
    times = Counter(epochs[0])
    if strategy == "first_exhausted":
        assert max(times.values()) == 1
        assert set(epochs[0]) != set(epochs[1])  # different rows are left out
    elif strategy == "all_exhausted":
        assert set(times) == everything
        assert max(times.values()) > 1
    else:
        assert set(times) == everything
        assert max(times.values()) == 1
    assert made.counts == {
        "skipped": 0,
        "repeated": sum(len(names) - len(set(names)) for names in epochs),
        "left_out": sum(len(everything - set(names)) for names in epochs),
    }


def test_a_repeated_row_has_its_own_draws():
    samples = [sample for batch in loader(stopping_strategy="all_exhausted") for sample in batch]
    seeds = {}
    for sample in samples:
        seeds.setdefault(sample["clip_id"], []).append(sample["draw"])
    assert all(len(set(draws)) == len(draws) for draws in seeds.values())
    assert max(map(len, seeds.values())) > 1


@pytest.mark.parametrize("kind", ["rows", "streamed"])
def test_ranks_and_workers_divide_the_rows(kind):
    options = {"kind": kind, "stopping_strategy": "all_exhausted"}
    alone = list(loader(batch_size=6, **options))
    flat = [(sample["clip_id"], sample["draw"]) for batch in alone for sample in batch]
    assert list(loader(batch_size=6, num_workers=2, **options)) == alone
    parts = [loader(batch_size=3, rank=rank, world_size=2, num_workers=rank, **options) for rank in (0, 1)]
    divided = [(sample["clip_id"], sample["draw"]) for part in parts for batch in part for sample in batch]
    assert sorted(divided) == sorted(flat)
    counts = [part.counts for part in parts]
    whole = loader(batch_size=6, **options)
    list(whole)
    assert {name: counts[0][name] + counts[1][name] for name in counts[0]} == whole.counts


@pytest.mark.parametrize(("kind", "workers", "world_size"), [("rows", 0, 1), ("streamed", 0, 2), ("rows", 2, 2)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resuming_anywhere(kind, workers, world_size, strategy):
    options = {
        "kind": kind, "stopping_strategy": strategy, "num_workers": workers, "rank": world_size - 1,
        "world_size": world_size, "broken": ("a3", "b1", "b2", "c0"),
    }  # fmt: skip
    whole = loader(**options)
    whole.dataset.set_epoch(1)
    batches, states, counts = [], [], []
    for batch in whole:
        batches.append(batch)
        states.append(json.loads(json.dumps(whole.state_dict())))
        counts.append(len(whole.dataset.transform.given))
    for stop in range(1, len(batches) + 1, 1 if workers == 0 else 5):
        again = loader(**options)
        again.load_state_dict(states[stop - 1])
        again.dataset.set_epoch(1)
        assert list(again) == batches[stop:]
        assert again.counts == whole.counts
        if workers == 0:
            assert again.dataset.transform.given == whole.dataset.transform.given[counts[stop - 1] :]


def test_state_of_another_mixture_raises():
    made = loader()
    next(iter(made))
    state = json.loads(json.dumps(made.state_dict()))
    for options in (
        {"probabilities": [0.4, 0.4, 0.2]},
        {"stopping_strategy": "all_exhausted_without_replacement"},
        {"seed": 6},
        {"sizes": (23, 12, 7)},
        {"num_workers": 2},
        {"world_size": 2},
    ):
        with pytest.raises(ValueError, match=r"needs the same division of the rows"):
            loader(**options).load_state_dict(state)
    loader().load_state_dict(state)


def test_length_and_rows_split_by_node():
    unknown = ClipStream(mixture("streamed", known=False), Reading())
    with pytest.raises(TypeError, match="unknown"):
        len(unknown)
    assert len(list(unknown)) == len(ClipStream(mixture(), Reading()))
    parts = [split_dataset_by_node(source(letter, 6, "streamed"), rank=0, world_size=2) for letter in "ab"]
    with pytest.raises(ValueError, match="split_dataset_by_node"):
        ClipLoader(ClipStream(interleave(parts), Reading()), 2, list)


# ---- labels


def labelled(names, labels, column="label", several=False):
    label = datasets.ClassLabel(names=names)
    features = datasets.Features(
        {"clip_id": datasets.Value("string"), column: datasets.List(label) if several else label}
    )
    rows = {"clip_id": [f"{names[0]}-{n}" for n in range(len(labels))], column: labels}
    return datasets.Dataset.from_dict(rows, features=features)


def named(mixed, column="label"):
    feature = mixed.features[column]
    feature = getattr(feature, "feature", feature)
    for draw in mixed.draws(0):
        value = draw.row()[column]
        yield [feature.int2str(label) for label in value] if isinstance(value, list) else feature.int2str(value)


@pytest.mark.parametrize("streamed", [False, True])
def test_labels_are_merged_by_name(streamed, caplog):
    one, two = labelled(["cat", "dog"], [0, 1, 1]), labelled(["owl", "dog", "cat"], [0, 1, 2])
    if streamed:
        one, two = one.to_iterable_dataset(), two.to_iterable_dataset()
    with caplog.at_level(logging.WARNING):
        mixed = interleave([one, two])
    assert mixed.features["label"].names == ["cat", "dog", "owl"]
    assert list(named(mixed)) == ["cat", "owl", "dog", "dog", "dog"]
    assert "different lists of 'label' (2, 3 names); merged them to 3 names, 2 of which are in all" in caplog.text
    wanted = interleave([one, two], names={"label": ["ant", "owl", "dog", "cat"]})
    assert list(named(wanted)) == list(named(mixed))
    assert wanted.features["label"].names[0] == "ant"


def test_several_labels_and_equal_lists(caplog):
    one = labelled(["cat", "dog"], [[0], [0, 1]], "labels", several=True)
    two = labelled(["dog", "cat"], [[0, 1], []], "labels", several=True)
    assert list(named(interleave([one, two]), "labels")) == [["cat"], ["dog", "cat"], ["cat", "dog"]]
    caplog.clear()
    same = interleave([one, one])
    assert caplog.text == ""
    assert same.features == one.features


def test_incompatible_sources_raise():
    one = labelled(["cat", "dog"], [0, 1])
    for other, message in (
        (
            labelled(["cat"], [0], "sound"),
            r"must have the same columns, but only one of them has label, sound; .*rename_column",
        ),
        (
            labelled(["cat"], [[0]], several=True),
            r"'label' is ClassLabel in source 0 and a list of ClassLabel in source 1",
        ),
        (labelled(["Cat", "dog"], [0]), r"'cat' and 'Cat' of 'label' differ only in spelling"),
        ([{"clip_id": "x", "label": 0}], r"some sources have no features"),
        (one.select([]), r"the sources \[1\] have no rows"),
    ):
        with pytest.raises(ValueError, match=message):
            interleave([one, other])
    with pytest.raises(
        ValueError, match=r"source 1 has 1 classes of 'label' that names\['label'\] lacks, such as 'owl'"
    ):
        interleave([one, labelled(["owl"], [0])], names={"label": ["cat", "dog"]})
    with pytest.raises(ValueError, match=r"names has the keys clip_id, which are not columns of class labels"):
        interleave([one, one], names={"clip_id": ["a"]})
    with pytest.raises(ValueError, match=r"must have the same columns, but only one of them has label"):
        interleave([[{"clip_id": "x", "label": 0}], [{"clip_id": "y"}]])


def test_invalid_arguments_raise():
    rows = source("a", 3)
    for options, message in (
        ({"probabilities": [0.5, 0.6]}, "sum to 1"),
        ({"probabilities": [1.0]}, "2 positive numbers"),
        ({"probabilities": [1.0, 0.0]}, "positive"),
        ({"stopping_strategy": "never"}, "must be one of first_exhausted"),
        ({"num_rows": [3]}, "each of 2 sources"),
        ({"num_rows": [3, 4]}, "num_rows=4 for 3 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            interleave([rows, rows], **options)
    with pytest.raises(ValueError, match="two or more"):
        interleave([rows])
    with pytest.raises(ValueError, match="to interleave"):
        ClipStream(interleave([rows, rows]), print, num_rows=6)
