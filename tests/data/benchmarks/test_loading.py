"""Benchmarks: complete records, frozen label files, and the same rows from parquet, tar, raw clips and the Hub."""

import errno
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pytest
import torch
from rendering import render_clip

import hf_avfusion.data
from hf_avfusion.data.benchmarks import describe
from hf_avfusion.data.benchmarks.annotations import PARSERS
from hf_avfusion.data.benchmarks.loading import (
    BENCHMARKS,
    coverage,
    evaluation_split,
    get_record,
    load_benchmark,
    row_features,
)
from hf_avfusion.data.benchmarks.records import LABELS, read_labels

ROOT = Path(__file__).resolve().parents[3]
KEYS = [
    *("vggsound", "audioset", "kinetics400", "kinetics_sounds", "epic_kitchens_100", "moments_in_time", "ave"),
    *("avsbench_s4", "music_avqa", "ucf101", "esc50", "charades", "sounding_shapes", "avdigits", "esc10"),
]
RECORDS = [record.variant(name) for record in BENCHMARKS.values() for name in (record.variants or [None])]


# ---- records


def test_there_are_fifteen_benchmarks():
    assert type(BENCHMARKS) is dict
    assert list(BENCHMARKS) == KEYS
    assert hf_avfusion.data.BENCHMARKS is hf_avfusion.BENCHMARKS is BENCHMARKS
    code = "import hf_avfusion; print(len(hf_avfusion.data.BENCHMARKS))"  # in a process that has imported nothing else
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "15"
    with pytest.raises(AttributeError, match="no attribute 'BENCHMARK'"):
        hf_avfusion.data.BENCHMARK  # noqa: B018


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.name}-{record.labels}")
def test_records_are_complete_and_consistent(record):
    for field in ("title", "task", "metric", "license", "citation", "obtain"):
        assert getattr(record, field), field
    assert set(record.columns.values()) <= {"class", "classes", "images", "text", "integer"}
    assert set(record.label_columns) <= set(record.columns)
    assert all(repository.note and not repository.verified for repository in record.hub_ids)
    if record.name == "sounding_shapes":
        return
    for column, kind in record.columns.items():
        assert (column in record.labels) == (kind in ("class", "classes"))
    assert list(row_features(record))[:4] == ["clip_id", "video", "start", "end"]
    if record.name != "avdigits":
        assert record.sources
        assert record.parser in PARSERS
        assert set(record.annotations) == set(record.splits)
        assert record.annotation_columns


def test_first_variant_is_the_record_itself():
    for record in BENCHMARKS.values():
        if record.variants:
            assert record.variant(next(iter(record.variants))) == record
    assert get_record("audioset", "mini") == get_record("audioset", "balanced")
    with pytest.raises(ValueError, match="no variant '33'; its variants are: 32, 31, 31_ogmge"):
        load_benchmark("kinetics_sounds", "train", variant="33")
    with pytest.raises(ValueError, match="variants are: none"):
        load_benchmark("ave", "train", variant="weak")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.name}-{record.labels}")
def test_every_benchmark_has_a_training_and_an_evaluation_split(record):
    assert next(iter(record.splits)) == "train"
    chosen = evaluation_split(record)
    assert chosen != "train"
    assert chosen == "test" or "test" not in record.splits
    assert chosen in record.splits
    for split in record.splits:
        assert evaluation_split(record, split) == split
    message = f"--eval_split nope: {record.title} has no such split; its splits are: {', '.join(record.splits)}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluation_split(record, "nope", flag="--eval_split")


def test_evaluation_split_without_a_test_split():
    chosen = {name: evaluation_split(record) for name, record in BENCHMARKS.items()}
    assert {name: split for name, split in chosen.items() if split != "test"} == {
        "audioset": "eval",
        "kinetics400": "validation",
        "kinetics_sounds": "validation",
        "epic_kitchens_100": "validation",
        "moments_in_time": "validation",
    }
    assert evaluation_split(get_record("kinetics_sounds", "31")) == "validation"
    assert evaluation_split(get_record("kinetics_sounds", "31_ogmge")) == "test"
    with pytest.raises(ValueError, match="--split test: AudioSet has no such split; its splits are: train, eval"):
        evaluation_split(BENCHMARKS["audioset"], "test")


# Number of names and the start of the SHA-256 of each file: a model's head depends on the order, so it never changes.
FROZEN = {
    "audioset": (527, "83e2e4fd16cb"),
    "audioset_mids": (527, "1204eb85b61f"),
    "avdigits": (10, "7427877c40fb"),
    "ave": (28, "8d9d0f47efed"),
    "ave_events": (29, "4bca96f55259"),
    "avsbench_s4": (23, "3c4cdc2bf8e9"),
    "charades": (157, "2679d5ccdf82"),
    "epic_kitchens_100_noun": (300, "a5b54318ea39"),
    "epic_kitchens_100_verb": (97, "68cd621ba8e7"),
    "esc10": (10, "c742f38ac98f"),
    "esc50": (50, "bd4cdb8c9bad"),
    "kinetics400": (400, "e9f2806fe910"),
    "kinetics_sounds_31": (31, "845b4a5a69c2"),
    "kinetics_sounds_32": (32, "0e757cddcc3a"),
    "kinetics_sounds_ogmge": (31, "5acff32e8229"),
    "moments_in_time_v1": (339, "119e2be7d59e"),
    "moments_in_time_v2": (305, "f7db62c87c30"),
    "music_avqa_answers": (42, "b6d7663a076f"),
    "music_avqa_question_types": (9, "562537be693e"),
    "music_avqa_words": (93, "2e52607c2e00"),
    "ucf101": (101, "fabeefc51625"),
    "vggsound": (309, "45c537f971c8"),
    "vggsound_stat_order": (309, "e3bd3fabd4d6"),
}


def test_label_files_are_frozen():
    found = {}
    for file in LABELS.glob("*.txt"):
        names = read_labels(file.stem)
        assert len(set(names)) == len(names)
        assert all(name and name == name.strip() for name in names)
        found[file.stem] = (len(names), hashlib.sha256(file.read_bytes()).hexdigest()[:12])
    assert found == FROZEN


def test_words_of_music_avqa_start_with_the_padding():
    """The words of questions, in the order of first appearance in avqa-train.json; a model's embeddings depend on it."""
    words = read_labels("music_avqa_words")
    assert len(words) == 93
    assert words[:4] == ("<pad>", "How", "many", "instruments")
    assert words[-2:] == ("heard", "throughout")
    assert {"How", "Which", "right", "rightest", "acoustic_guitar", "voiceover"} < set(words)


@pytest.mark.parametrize(
    ("file", "facts", "key"),
    [
        ("vggsound", "vggsound", "classes"),
        ("vggsound_stat_order", "vggsound", "classes_stat_csv_order"),
        ("audioset", "audioset", "classes"),
        ("audioset_mids", "audioset", "mids"),
        ("kinetics400", "kinetics400", "classes"),
        ("kinetics_sounds_32", "kinetics_sounds", "classes_32"),
        ("kinetics_sounds_31", "kinetics_sounds", "classes_31"),
        ("epic_kitchens_100_verb", "epic_kitchens_100", "verbs"),
        ("epic_kitchens_100_noun", "epic_kitchens_100", "nouns"),
        ("moments_in_time_v1", "moments_in_time", "classes_v1_339"),
        ("moments_in_time_v2", "moments_in_time", "classes_v2_305"),
        ("ave", "ave", "classes"),
        ("avsbench_s4", "avsbench_s4", "classes"),
        ("music_avqa_answers", "music_avqa", "classes"),
        ("ucf101", "ucf101", "classes"),
        ("esc50", "esc50", "classes"),
        ("charades", "charades", "classes"),
    ],
)
def test_labels_match_the_gathered_facts(shared, file, facts, key):
    assert list(read_labels(file)) == json.loads((shared / f"benchmarks/{facts}.json").read_text())[key]


def test_describe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    describe.main([])
    text = capsys.readouterr().out
    assert all(name in text for name in KEYS)
    for name in KEYS:
        describe.main([name])
        assert BENCHMARKS[name].title in capsys.readouterr().out
    describe.main(["kinetics_sounds", "--variant", "31", "--labels"])
    text = capsys.readouterr().out
    assert "variant 31" in text
    assert "class of 31" in text
    assert "30  writing" not in text
    assert f"30  {read_labels('kinetics_sounds_31')[30]}" in text
    assert "no index order is published" in text
    describe.main(["vggsound"])
    assert "not verified" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        describe.main(["kinetics_sounds", "--variant", "33"])
    assert "no variant '33'" in capsys.readouterr().err


def test_describe_prints_every_field(capsys, monkeypatch):
    """The page contains every field of a record and of its variants."""
    monkeypatch.setenv("COLUMNS", "2000")
    for record in BENCHMARKS.values():
        for variant in (None, *record.variants):
            describe.describe(record, variant)
            page = capsys.readouterr().out
            shown = record.variant(variant)
            texts = [shown.title, shown.name, shown.task, shown.metric, shown.license, shown.citation, shown.obtain]
            texts += [*shown.columns, *shown.label_columns, *shown.splits, *shown.annotations.values(), *shown.variants]
            texts += [*shown.annotation_columns, *shown.sources, *shown.notes, *shown.uncertain, *shown.options]
            texts += [text for hub in shown.hub_ids for text in (hub.id, hub.note)]
            texts += [f"{count:,}" for count in shown.splits.values() if count is not None]
            texts += [f"of {len(shown.label_names(column))}" for column in shown.labels]
            missing = [text for text in texts if text not in page]
            assert not missing, (record.name, variant)
            assert (f"prepare_benchmark.py {shown.name}" in page) == bool(shown.parser)


# ---- raw clips


@pytest.fixture(scope="module")
def clip():
    return render_clip(num_frames=5, fps=5.0, audio="chirp", seconds=1.0)


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_raw_clips_with_vanished_clips(tmp_path, clip, caplog):
    put(tmp_path / "clips/a/abc_000030.mp4", clip)
    put(tmp_path / "sound/abc_000030.wav", b"a sound of the same name is not taken")
    (tmp_path / "vggsound.csv").write_text("abc,30,air horn,test\ngone,1,airplane,test\nother,0,air horn,train\n")
    with caplog.at_level(logging.WARNING):
        rows = list(load_benchmark("vggsound", "test", source=tmp_path))
    assert len(rows) == 1
    assert rows[0]["clip_id"] == "abc_000030"
    assert rows[0]["video"] == {"bytes": None, "path": str(tmp_path / "clips/a/abc_000030.mp4")}
    assert rows[0]["start"] is None
    assert rows[0]["label"] == 1
    assert "found 1 of 2 annotated clips (expected 15446); 1 vanished: gone_000001" in caplog.text
    found = coverage("vggsound", "test", tmp_path)
    assert (found.annotated, found.present, found.vanished, found.expected) == (2, 1, ("gone_000001",), 15446)
    dataset = load_benchmark("vggsound", "test", streaming=False, source=tmp_path, variant="stat_order")
    assert len(dataset) == 1
    assert dataset.features["label"].int2str(dataset[0]["label"]) == "air horn"
    with pytest.raises(FileNotFoundError, match=r"none of the 1 clips.*name the clips like other_000000, other"):
        load_benchmark("vggsound", "train", source=tmp_path)


def test_unreadable_folder_of_clips_is_logged(tmp_path, clip, caplog, monkeypatch):
    put(tmp_path / "a/abc_000030.mp4", clip)
    put(tmp_path / "shut/def_000030.mp4", clip)
    (tmp_path / "vggsound.csv").write_text("abc,30,air horn,test\ndef,30,airplane,test\n")
    scan = os.scandir

    def refuse(path="."):  # makes it unreadable, also for root
        if Path(path) == tmp_path / "shut":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert coverage("vggsound", "test", tmp_path).vanished == ("def_000030",)
    assert "shut cannot be read (Permission denied); its clips count as vanished" in caplog.text


def test_whole_videos_need_the_trimmed_argument(tmp_path, clip):
    put(tmp_path / "abc.mp4", clip)
    (tmp_path / "list.csv").write_text("abc,3,air horn,test\n")
    where = {"source": tmp_path, "annotations": tmp_path / "list.csv"}
    with pytest.raises(
        ValueError, match=r"may be the trimmed clip \(3 to 13 s\) or the whole video; pass trimmed=True"
    ):
        load_benchmark("vggsound", "test", **where)
    (row,) = load_benchmark("vggsound", "test", trimmed=False, **where)
    assert (row["start"], row["end"]) == (3.0, 13.0)
    (row,) = load_benchmark("vggsound", "test", trimmed=True, **where)
    assert (row["start"], row["end"]) == (None, None)
    put(tmp_path / "again/abc.webm", clip)
    with pytest.raises(ValueError, match="has two files"):
        load_benchmark("vggsound", "test", trimmed=True, **where)


def test_long_kitchen_videos(tmp_path, clip):
    put(tmp_path / "P01/videos/P01_11.MP4", clip)
    official = Path(__file__).parent / "annotations"
    rows = list(load_benchmark("epic_kitchens_100", "validation", source=tmp_path, annotations=official))
    assert [row["clip_id"] for row in rows][:2] == ["P01_11_0", "P01_11_1"]
    assert rows[1]["start"] == pytest.approx(1.56)
    assert rows[1]["end"] == pytest.approx(2.45)
    assert (rows[1]["verb"], rows[1]["noun"], rows[1]["narration"]) == (1, 2, "put down plate")


def test_masks_and_events(tmp_path, clip, caplog):
    put(tmp_path / "v1_0.mp4", clip)
    put(tmp_path / "v2_0.mp4", clip)
    for second in (10, 2, 1):
        put(tmp_path / f"gt_masks/val/cat_meowing/v1_0/v1_0_{second}.png", b"png")
    (tmp_path / "s4_meta_data.csv").write_text(
        "name,uid,category,split\nv1_0,a,cat_meowing,val\nv2_0,b,cat_meowing,val\n"
    )
    (row,) = load_benchmark("avsbench_s4", "validation", source=tmp_path)
    assert [Path(mask["path"]).name for mask in row["masks"]] == ["v1_0_1.png", "v1_0_2.png", "v1_0_10.png"]
    assert coverage("avsbench_s4", "validation", tmp_path).vanished == ("v2_0",)  # no masks
    put(tmp_path / "AVE/c---zaDCTaE.mp4", clip)
    official = Path(__file__).parent / "annotations"
    rows = load_benchmark("ave", "train", source=tmp_path, annotations=official)
    assert rows.features["events"].feature.names[28] == "Background"
    assert [row["events"] for row in rows] == [[0] * 10]


def test_missing_and_ambiguous_annotation_files(tmp_path, clip):
    put(tmp_path / "x.mp4", clip)
    with pytest.raises(
        FileNotFoundError, match=r"neither shards \(train-\*\.parquet.*annotation file trainSet.txt of AVE"
    ):
        load_benchmark("ave", "train", source=tmp_path)
    for folder in ("a", "b"):
        put(tmp_path / folder / "trainSet.txt", b"Bark&x&good&0&4\n")
    with pytest.raises(FileNotFoundError, match=r"contains several files trainSet.txt"):
        load_benchmark("ave", "train", source=tmp_path)
    assert len(list(load_benchmark("ave", "train", source=tmp_path, annotations=tmp_path / "a"))) == 1


def test_esc10_clips_are_the_first_five_seconds(shared):
    """A file of 7.24 s is cut after 5 s; the processor pads one of 3.64 s like any short clip."""
    from hf_avfusion import MBTProcessor
    from hf_avfusion.media.reader import read_clip

    rows = load_benchmark("esc10", "test", streaming=False, source=shared / "esc10")
    assert len(rows) == 80
    processor = MBTProcessor(num_frames=2, audio_seconds=5.0)
    by_id = {row["clip_id"]: row for row in rows}
    by_id |= {row["clip_id"]: row for row in load_benchmark("esc10", "train", source=shared / "esc10")}
    assert len(by_id) == 400
    for name, length in (("1-17808-B-12", 5.0), ("1-100032-A-0", 5.0), ("4-164661-B-12", 3.6440625)):
        row = by_id[name]
        (clip,) = processor.load_clip(row["video"], start=row["start"], end=row["end"])
        first = read_clip(row["video"]["path"], audio_window=(0.0, length)).waveform
        assert clip.waveform.shape[-1] == 5 * 16000
        assert torch.equal(clip.waveform[:, : first.shape[-1]], first)


# ---- shards


def rows_of_ave(clip, count=5):
    return [
        {
            "clip_id": f"clip{number}",
            "video": {"bytes": clip + bytes([number]), "path": f"clip{number}.mp4"},
            "start": None,
            "end": 1.0,
            "label": number,
            "events": [number] * 3 + [28] * 7,
        }
        for number in range(count)
    ]


def parquet(folder, rows, record=BENCHMARKS["ave"], split="test"):
    folder.mkdir(parents=True, exist_ok=True)
    dataset = datasets.Dataset.from_list(rows, features=row_features(record))
    dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return dataset


def tar(path, rows, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for row in rows:
            about = {key: value for key, value in row.items() if key not in ("video", "clip_id")} | changes
            members = {"mp4": row["video"]["bytes"], "json": json.dumps(about).encode()}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"./part/{row['clip_id']}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("streaming", [True, False])
def test_parquet_and_tar_give_the_same_rows(tmp_path, clip, streaming, caplog):
    expected = rows_of_ave(clip)
    parquet(tmp_path / "parquet/data", expected)
    names = read_labels("ave")
    by_name = [{**row, "label": names[row["label"]]} for row in expected]  # a label by its name, events by index
    tar(tmp_path / "tar/test-00000-of-00002.tar", by_name[:3])
    tar(tmp_path / "tar/test-00001-of-00002.tar", by_name[3:])
    with caplog.at_level(logging.WARNING):
        rows = load_benchmark("ave", "test", streaming, tmp_path / "parquet")
    assert "found 5 clips (expected 402)" in caplog.text
    assert list(rows) == expected
    rows = load_benchmark("ave", "test", streaming, tmp_path / "tar")
    assert isinstance(rows, datasets.IterableDataset if streaming else datasets.Dataset)
    assert rows.features == row_features(BENCHMARKS["ave"])
    found = list(rows)
    assert [row["clip_id"] for row in found] == [f"part/clip{number}" for number in range(5)]
    for row, original in zip(found, expected):
        assert row["video"]["bytes"] == original["video"]["bytes"]
        assert {key: row[key] for key in ("start", "end", "label", "events")} == {
            key: original[key] for key in ("start", "end", "label", "events")
        }
    if streaming:
        assert rows.num_shards == 2
    assert (
        coverage("ave", "test", tmp_path / "tar").present == coverage("ave", "test", tmp_path / "parquet").present == 5
    )


def test_tar_shards_with_masks_and_invalid_tar_shards(tmp_path, clip):
    rows = [{"clip_id": "a", "video": {"bytes": clip}, "label": 3}]
    tar(tmp_path / "test-0.tar", rows)
    with tarfile.open(tmp_path / "test-0.tar", "a") as archive:
        for second in (10, 2):
            member = tarfile.TarInfo(f"./part/a.masks.{second}.png")
            archive.addfile(member)
    (row,) = load_benchmark("avsbench_s4", "test", source=tmp_path)
    assert [mask["path"] for mask in row["masks"]] == ["part/a.masks.2.png", "part/a.masks.10.png"]
    for change, message in (
        ({"label": 23}, "23 is not one of the 23 names of label, nor an index"),
        ({"label": "cat"}, "'cat' is not one of"),
        ({"label": None}, "lacks label"),
    ):
        tar(tmp_path / "test-0.tar", rows, **change)
        with pytest.raises(ValueError, match=f"sample part/a.*{message}"):
            list(load_benchmark("avsbench_s4", "test", source=tmp_path))
    (tmp_path / "test-0.tar").write_bytes(b"no tar at all")
    with pytest.raises(ValueError, match="not a readable tar"):
        list(load_benchmark("avsbench_s4", "test", source=tmp_path))
    (tmp_path / "test-0.tar").rename(tmp_path / "test-00001-of-00002.tar")
    with pytest.raises(FileNotFoundError, match=r"missing \[0\]"):
        load_benchmark("avsbench_s4", "test", source=tmp_path)


def test_errors_name_truncated_shards(tmp_path, clip):
    rows = rows_of_ave(clip)
    tar(tmp_path / "tar/test-0.tar", rows)
    whole = (tmp_path / "tar/test-0.tar").read_bytes()
    with tarfile.open(tmp_path / "tar/test-0.tar") as archive:
        third = archive.getmembers()[4].offset  # where the third clip begins
    for length in (third, third + 100):
        (tmp_path / "tar/test-0.tar").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"test-0\.tar is truncated"):
            list(load_benchmark("ave", "test", source=tmp_path / "tar"))
        with pytest.raises(ValueError, match=r"test-0\.tar is truncated"):
            coverage("ave", "test", tmp_path / "tar")
    (tmp_path / "tar/test-0.tar").write_bytes(b"no tar at all")
    with pytest.raises(ValueError, match=r"test-0\.tar: not a readable tar"):
        coverage("ave", "test", tmp_path / "tar")
    parquet(tmp_path / "parquet", rows)
    shard = tmp_path / "parquet/test-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{shard.name} is not a complete parquet file"):
        load_benchmark("ave", "test", source=tmp_path / "parquet")


def test_shards_with_other_labels_or_columns_raise(tmp_path, clip):
    shapes = [{"clip_id": "a", "video": {"bytes": clip, "path": "a.mp4"}, "start": None, "end": None, "label": 30}]
    thirty_two = BENCHMARKS["kinetics_sounds"]
    parquet(tmp_path / "ks", shapes, thirty_two, "train")
    assert len(list(load_benchmark("kinetics_sounds", "train", source=tmp_path / "ks"))) == 1
    with pytest.raises(ValueError, match="the 32 names of label differ from the 31 names of Kinetics-Sounds"):
        load_benchmark("kinetics_sounds", "train", source=tmp_path / "ks", variant="31")
    with pytest.raises(ValueError, match="lacks the columns events of AVE"):
        load_benchmark("ave", "train", source=tmp_path / "ks")


@pytest.mark.slow
def test_hub_repositories_of_parquet_and_tar(shared, tmp_path, clip):
    """The local Hub in ../shared serves them; a separate process reads them, since HF_ENDPOINT is read at import."""
    sys.path.insert(0, str(shared / "tools/localhub"))
    try:
        from localhub import LocalHub
    finally:
        sys.path.pop(0)
    expected = rows_of_ave(clip)
    parquet(tmp_path / "parquet/data", expected)
    tar(tmp_path / "tar/data/test-00000-of-00001.tar", expected)
    code = (
        "import sys\n"
        "from huggingface_hub import HfApi\n"
        "from hf_avfusion.data import load_benchmark\n"
        "for kind in ('parquet', 'tar'):\n"
        "    name = f'org/ave-{kind}'\n"
        "    HfApi().create_repo(name, repo_type='dataset')\n"
        "    HfApi().upload_folder(folder_path=f'{sys.argv[1]}/{kind}', repo_id=name, repo_type='dataset')\n"
        "    rows = load_benchmark('ave', 'test', source=name)\n"
        "    assert rows.features['events'].feature.names[28] == 'Background', rows.features\n"
        "    found = list(rows)\n"
        "    assert [row['label'] for row in found] == [0, 1, 2, 3, 4], found\n"
        "    assert [row['video']['bytes'][-1] for row in found] == [0, 1, 2, 3, 4]\n"
        "    assert list(found[0]) == ['clip_id', 'video', 'start', 'end', 'label', 'events'], list(found[0])\n"
        "print('both read')"
    )
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    with LocalHub() as hub:
        environment = {**os.environ, **online, **hub.env(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            cwd=ROOT,
        )
    assert done.stdout.strip().endswith("both read"), done.stderr
