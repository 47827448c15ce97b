"""Loading the rows of one split of a benchmark or a folder."""

import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
from rendering import render_clip

from hf_avfusion.data.benchmarks import splits
from hf_avfusion.data.benchmarks.reading import read_once
from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.data.synthetic.sounding_shapes import render


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    render(folder, num_train=3, num_validation=0, num_test=2, num_proc=1, progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    for name in ("train/ring/a.mp4", "train/cross/b.mp4", "validation/ring/c.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(render_clip(num_frames=5))
    return folder


def test_a_benchmark(shards):
    of = load_rows("sounding_shapes", "train", source=shards)
    record = BENCHMARKS["sounding_shapes"]
    assert (of.name, of.title, of.split, of.source, of.record) == (
        "sounding_shapes", record.title, "train", shards, record
    )  # fmt: skip
    assert (of.num_rows, of.coverage["present"], of.coverage["expected"]) == (3, 3, record.splits["train"])
    assert isinstance(of.rows, datasets.IterableDataset)
    assert len(list(of.rows)) == 3


def test_hub_repository_rows_have_an_expected_number(monkeypatch):
    monkeypatch.setattr(splits, "load_with_coverage", lambda *arguments, **options: (iter([]), None))
    of = load_rows("esc50", source="org/esc50", variant="fold2")
    assert (of.num_rows, of.coverage) == (None, {"present": None, "expected": 400, "vanished": None})
    assert (of.variant, of.record) == ("fold2", BENCHMARKS["esc50"].variant("fold2"))


@pytest.mark.parametrize("allowed", [False, True])
def test_allow_urls_reaches_the_rows_of_benchmarks_and_folders(monkeypatch, folder, allowed):
    monkeypatch.setattr(splits, "load_with_coverage", lambda *arguments, **options: (iter([]), None))
    of_benchmark = load_rows("esc50", source="org/esc50", allow_urls=allowed)
    assert (of_benchmark.allow_urls, of_benchmark.division) == (allowed, None)
    assert load_rows(str(folder), allow_urls=allowed).allow_urls == allowed


def test_default_is_the_evaluation_split(shards, folder, tmp_path):
    assert load_rows("sounding_shapes", source=shards).split == "test"
    assert load_rows(str(folder)).split == "validation"
    with pytest.raises(FileNotFoundError, match="eval-"):  # AudioSet has no test split
        load_rows("audioset", source=str(tmp_path))


@pytest.mark.parametrize("flag", ["--split", "--eval_split"])
def test_unknown_split_raises(shards, flag):
    with pytest.raises(ValueError, match=f"{flag} evl: SoundingShapes has no such split; its splits are: train, valid"):
        load_rows("sounding_shapes", "evl", source=shards, flag=flag)


@pytest.mark.parametrize("labels", [True, False])
def test_a_folder_of_clips(folder, labels):
    of = load_rows(str(folder), "train", labels=labels)
    assert (of.title, of.num_rows, of.record) == (folder.name, 2, None)
    assert of.coverage == {"present": 2, "expected": None, "vanished": None}
    assert ("label" in of.rows.features) == labels


@pytest.mark.parametrize("given", [{"source": "x"}, {"variant": "x"}])
def test_source_and_variant_raise_for_a_folder(folder, given):
    name = next(iter(given))
    with pytest.raises(
        ValueError, match=rf"{name}= \(--{name}\): allowed only for the benchmarks vggsound, .* is not one of them"
    ):
        load_rows(str(folder), **given)


def test_missing_path_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file, a folder nor the name of a benchmark"):
        load_rows(str(tmp_path / "gone"))


READS: Counter[str] = Counter()  # files and folders that were opened


@pytest.fixture(scope="module")
def count_reads():
    def count(event, arguments):
        if event in ("open", "os.scandir") and isinstance(arguments[0], str | Path):
            READS[str(arguments[0])] += 1

    sys.addaudithook(count)


@pytest.mark.parametrize(("data", "labels"), [("mine", True), ("mine", False), ("table", True), ("esc50", True)])
def test_both_splits_read_a_folder_once(tmp_path, count_reads, data, labels):
    clips = tmp_path / "clips" / "ring"
    clips.mkdir(parents=True)
    for name in ("1-100032-A-0.wav", "2-100032-A-0.wav"):
        (clips / name).write_bytes(b"")
    where, table = {"labels": labels}, tmp_path / "table.csv"
    place = {"mine": clips.parent, "table": table, "esc50": "esc50"}[data]
    if data == "esc50":
        lines, where = ["filename,fold,target,category,esc10,src_file,take"], {"source": str(tmp_path)}
        lines += [f"{n}-100032-A-0.wav,{n},0,dog,True,100032,A" for n in (1, 2)]
        (tmp_path / "esc50.csv").write_text("\n".join(lines) + "\n")
    else:
        table.write_text("file,label\n" + "".join(f"{path},ring\n" for path in clips.iterdir()))

    def count(*splits):
        READS.clear()
        read = read_once()
        found = [load_rows(str(place), split, read=read, **where) for split in splits]
        assert [each.num_rows for each in found] == [1] * len(splits)
        return READS[str(clips)], READS[str(table)]

    assert count("test", "train") == count("test") != (0, 0)
    once = count("test")
    READS.clear()
    load_rows(str(place), **where)
    assert (READS[str(clips)], READS[str(table)]) == once
