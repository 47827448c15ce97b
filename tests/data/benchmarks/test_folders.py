"""Folders of clips: every layout gives the same rows, and errors name the file and line."""

import errno
import logging
import os
import sys
from pathlib import Path

import datasets
import pytest

from hf_avfusion.data.benchmarks.folders import find_evaluation_split, load_folder, load_unlabelled, media_files


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not decoded here")
    return path


def classes(root, counts, suffix="mp4"):
    for name, count in counts.items():
        for number in range(count):
            touch(root / name / f"{number:02d}.{suffix}")


def make_unreadable(monkeypatch, folder):
    """Makes a folder unreadable, also for root."""
    scan = os.scandir

    def refuse(path="."):
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


def ids(rows):
    return list(rows["clip_id"])


def test_class_folders_are_divided_once_and_by_class(tmp_path):
    classes(tmp_path, {"dog": 10, "cat": 5, "bird": 2})
    train, test = load_folder(tmp_path, "train"), load_folder(tmp_path, "test")
    assert set(ids(train)).isdisjoint(ids(test))
    assert len(train) + len(test) == 17
    assert train.features["label"].names == test.features["label"].names == ["bird", "cat", "dog"]
    assert isinstance(train.features["video"], datasets.Video)
    held = [row["clip_id"].split("/")[0] for row in test]
    assert {name: held.count(name) for name in ("bird", "cat", "dog")} == {"bird": 1, "cat": 1, "dog": 2}
    for row in test:
        assert row["video"]["bytes"] is None
        assert row["video"]["path"] == str(tmp_path / row["clip_id"])
        assert train.features["label"].int2str(row["label"]) == row["clip_id"].split("/")[0]
        assert row["start"] is None
        assert row["end"] is None
    assert ids(load_folder(tmp_path, "test")) == ids(test)
    assert ids(load_folder(tmp_path, "validation")) == ids(test)
    assert any(ids(load_folder(tmp_path, "test", seed=seed)) != ids(test) for seed in (1, 2, 3))
    assert len(load_folder(tmp_path, "test", holdout=0.5)) == 8


def test_split_folders(tmp_path):
    classes(tmp_path / "train", {"dog": 2, "cat": 1})
    classes(tmp_path / "val", {"dog": 1})
    assert ids(load_folder(tmp_path, "validation")) == ["val/dog/00.mp4"]
    assert load_folder(tmp_path, "validation").features["label"].names == ["cat", "dog"]
    assert len(load_folder(tmp_path)) == 3
    with pytest.raises(ValueError, match=r"no split 'test'; its splits are: train, validation"):
        load_folder(tmp_path, "test")
    with pytest.raises(ValueError, match="split must be one of"):
        load_folder(tmp_path, "all")
    classes(tmp_path / "val", {"cow": 1})
    with pytest.raises(ValueError, match=r"the classes \['cow'\] of the split 'validation' have no clips in 'train'"):
        load_folder(tmp_path, "validation")


def test_segments_of_a_file_stay_in_one_split(tmp_path):
    lines = ["file,label,start,end"]
    for number in range(10):
        touch(tmp_path / "clips" / f"{number}.mkv")
        lines += [f"clips/{number}.mkv,{'ab'[number % 2]},0,2.5", f"clips/{number}.mkv,{'ab'[number % 2]},2.5,"]
    table = tmp_path / "list.csv"
    table.write_text("\n".join(lines) + "\n")
    train, test = load_folder(table), load_folder(tmp_path, "test")
    assert len(train) == 16
    assert len(test) == 4
    assert {row["video"]["path"] for row in train}.isdisjoint({row["video"]["path"] for row in test})
    first = train[0]
    assert (first["clip_id"], first["start"], first["end"]) == ("clips/0.mkv@0-2.5", 0.0, 2.5)
    assert (train[1]["clip_id"], train[1]["start"], train[1]["end"]) == ("clips/0.mkv@2.5-end", 2.5, None)


def test_one_csv_per_split_or_a_split_column(tmp_path):
    for name in ("a", "b", "c"):
        touch(tmp_path / f"{name}.mp4")
    (tmp_path / "train.csv").write_text("file, label\na.mp4, x\nb.mp4, y\n")
    (tmp_path / "test.csv").write_text("file,label\nc.mp4,y\n")
    assert ids(load_folder(tmp_path, "train")) == ["a.mp4", "b.mp4"]
    assert load_folder(tmp_path, "test")[0]["label"] == 1
    one = tmp_path / "one" / "all.csv"
    for name in ("a", "b", "c"):
        touch(tmp_path / "one" / f"{name}.mp4")
    one.write_text("file,label,split\na.mp4,x,train\nb.mp4,x,eval\nc.mp4,x,training\n")
    assert ids(load_folder(one)) == ["a.mp4", "c.mp4"]
    assert ids(load_folder(tmp_path / "one", "test")) == ["b.mp4"]
    (tmp_path / "other.csv").write_text("file,label\na.mp4,x\n")
    with pytest.raises(ValueError, match="several CSV files"):
        load_folder(tmp_path)


def test_clip_ids_do_not_leak_absolute_paths(tmp_path):
    for name in ("home/films/a/1.mp4", "home/films/b/1.mp4", "lists/near.mp4"):
        touch(tmp_path / name)
    films = tmp_path / "home" / "films"
    table = tmp_path / "lists" / "train.csv"
    table.write_text(
        f"file,label,start,split\n{films}/a/1.mp4,x,,train\n{films}/b/1.mp4,x,2,train\nnear.mp4,x,,train\n"
    )
    rows = load_folder(table)
    assert ids(rows) == ["films/a/1.mp4", "films/b/1.mp4@2-end", "near.mp4"]
    assert [row["video"]["path"] for row in rows] == [
        f"{films}/a/1.mp4",
        f"{films}/b/1.mp4",
        f"{table.parent}/near.mp4",
    ]
    table.write_text(f"file,label\n{films}/a/1.mp4,x\n{films}/a/1.mp4,x\n")
    with pytest.raises(ValueError, match=r"rows 1 and 2 list the same clip a/1\.mp4"):
        load_folder(table)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("name,label\na.mp4,x\n", ValueError, r"list.csv:1: the header"),
        ("", ValueError, r"list.csv:1: the header"),
        ("file,label\n", ValueError, "lists no clips"),
        ("file,label,label\na.mp4,x,y\n", ValueError, r"list.csv:1: the header names a column twice"),
        ("file,label\na.mp4,x\nb.mp4,x\n", FileNotFoundError, r"list.csv:3: no such clip: .*b.mp4"),
        ("file,label\na.mp4,\n", ValueError, r"list.csv:2: the label of a.mp4 is empty"),
        ("file,label\n,x\n", ValueError, r"list.csv:2: the column 'file' is empty"),
        ("file,label\na.mp4\n", ValueError, r"list.csv:2: .*as many fields"),
        ("file,label\na.mp4,x,3\n", ValueError, r"list.csv:2: .*as many fields"),
        (
            "file,label,start,end\na.mp4,x,1s,2\n",
            ValueError,
            r"list.csv:2: start must be a number of seconds, got '1s'",
        ),
        ("file,label,start,end\na.mp4,x,3,2\n", ValueError, r"list.csv:2: end \(2.0 s\) must be after start"),
        ("file,label,start,end\na.mp4,x,nan,2\n", ValueError, r"list.csv:2: start"),
        ("file,label\na.mp4,x\na.mp4,y\n", ValueError, "rows 1 and 2 list the same clip a.mp4"),
        ("file,label\na.mp4,x\0y\n", ValueError, r"list.csv:2: the column 'label' holds a NUL character, 'x\\x00y'"),
        ("file,label\na\0.mp4,x\n", ValueError, r"list.csv:2: the column 'file' holds a NUL character"),
        ("file,label\0\na.mp4,x\n", ValueError, r"list.csv:1"),
        ("file,label,split\na.mp4,x,holdout\n", ValueError, r"list.csv:2: unknown split 'holdout'"),
    ],
)
def test_csv_errors_name_file_and_line(tmp_path, text, error, message):
    touch(tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(error, match=message):
        load_folder(tmp_path / "list.csv")


def test_binary_csv_raises(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00\x81binary")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        load_folder(tmp_path)


def test_empty_folders_missing_folders_and_other_files(tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match="neither a file, a folder nor the name of a benchmark"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither CSV files nor class folders"):
        load_folder(tmp_path)
    classes(tmp_path, {"dog": 2})
    touch(tmp_path / "dog" / "notes.txt")
    with caplog.at_level(logging.WARNING):
        assert len(load_folder(tmp_path, "train")) == 1
    assert "skipped 1 files without a media suffix" in caplog.text
    assert "dog/notes.txt" in caplog.text
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"cat contains no clips"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match="holdout"):
        load_folder(tmp_path, holdout=1.0)


def test_numeric_class_names_are_sorted_by_value(tmp_path):
    classes(tmp_path, {str(number): 2 for number in range(12)})
    rows = load_folder(tmp_path)
    assert rows.features["label"].names == [str(number) for number in range(12)]
    assert all(row["clip_id"].split("/")[0] == str(row["label"]) for row in rows)
    classes(tmp_path, {"none": 2})
    assert load_folder(tmp_path).features["label"].names[:4] == ["0", "1", "10", "11"]


@pytest.mark.parametrize("load", [load_folder, load_unlabelled])
def test_mixing_split_folders_with_others_raises(tmp_path, load):
    classes(tmp_path / "train", {"dog": 2, "cat": 2})
    classes(tmp_path / "bus", {"dog": 2})
    assert len(load(tmp_path))  # train and bus may be two classes
    classes(tmp_path / "test", {"dog": 1, "cat": 1})
    with pytest.raises(ValueError, match=r"mixes folders of splits \(test, train\) with other folders \(bus\); move"):
        load(tmp_path)
    (tmp_path / "bus").rename(tmp_path / "training")
    with pytest.raises(ValueError, match=r"several folders for one split \(test, train, training\)"):
        load(tmp_path)


def test_parent_of_the_class_folders_is_not_a_class(tmp_path):
    classes(tmp_path / "videos", {"dog": 2, "cat": 2})
    with pytest.raises(ValueError, match=r"its only class folder, 'videos', contains only folders .*pass .*/videos$"):
        load_folder(tmp_path)
    touch(tmp_path / "videos" / "one.mp4")
    assert load_folder(tmp_path).features["label"].names == ["videos"]


@pytest.mark.parametrize("load", [load_folder, load_unlabelled])
def test_unreadable_folder_raises(tmp_path, load, monkeypatch):
    classes(tmp_path, {"dog": 2, "cat": 2, "cat/more": 2})
    make_unreadable(monkeypatch, tmp_path / "cat" / "more")
    with pytest.raises(PermissionError, match="more"):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_folder, load_unlabelled])
@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_names_must_be_utf8(tmp_path, load):
    classes(tmp_path, {"dog": 2, "cat": 2})
    os.rename(tmp_path / "cat", os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"caf\\xe9/00.mp4': the file name is not UTF-8; rename it"):
        load(tmp_path)


def test_links_are_followed_and_loose_clips_logged_once(tmp_path, caplog):
    data = tmp_path / "data"
    classes(data, {"dog": 2, "cat": 2})
    touch(data / "loose.MP4")
    touch(tmp_path / "elsewhere" / "deep" / "far.mkv")
    (data / "dog" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "round").symlink_to(
        tmp_path / "elsewhere", target_is_directory=True
    )  # an endless loop of links
    (data / "cat" / "one.MP4").symlink_to(data / "dog" / "00.mp4")
    with caplog.at_level(logging.WARNING):
        found = ids(load_folder(data, "train")) + ids(load_folder(data, "test"))
    assert sorted(found) == [
        "cat/00.mp4", "cat/01.mp4", "cat/one.MP4", "dog/00.mp4", "dog/01.mp4", "dog/linked/deep/far.mkv",
    ]  # fmt: skip
    assert caplog.text.count("skipped 1 files outside the class folders: loose.MP4") == 1
    (data / "cat" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4 is a link to .*nowhere\.mp4, which does not exist"):
        load_folder(data)
    (tmp_path / "flat").mkdir()
    touch(tmp_path / "flat" / "one.mp4")
    with pytest.raises(ValueError, match=r"1 of its clips are in no class folder"):
        load_folder(tmp_path / "flat")


def test_class_with_one_file_stays_in_train(tmp_path, caplog):
    classes(tmp_path, {"dog": 4, "cat": 1})
    with caplog.at_level(logging.WARNING):
        assert "cat/00.mp4" in ids(load_folder(tmp_path, "train"))
    assert "class 'cat' has a single file" in caplog.text
    classes(tmp_path / "singles", {"dog": 1, "cat": 1})
    with pytest.raises(ValueError, match=r"singles: no class has more than one clip.*'test'"):
        load_folder(tmp_path / "singles", "test")
    assert len(load_folder(tmp_path / "singles")) == 2


# ---- without labels ----


def test_unlabelled_clips_are_divided_once(tmp_path, caplog):
    classes(tmp_path, {"a/deep": 10, "b": 9})
    touch(tmp_path / "loose.mp4")
    touch(tmp_path / "b" / "notes.txt")
    with caplog.at_level(logging.WARNING):
        train, test = load_unlabelled(tmp_path, "train", holdout=0.25), load_unlabelled(tmp_path, "test", holdout=0.25)
    assert "b/notes.txt" in caplog.text
    assert train.column_names == ["clip_id", "video", "start", "end"]
    assert (len(train), len(test)) == (15, 5)
    assert set(ids(train)).isdisjoint(ids(test))
    assert "loose.mp4" in {*ids(train), *ids(test)}
    assert ids(load_unlabelled(tmp_path, "validation", holdout=0.25)) == ids(test)
    assert ids(load_unlabelled(tmp_path, "test", holdout=0.25, seed=1)) != ids(test)
    assert test[0]["video"] == {"bytes": None, "path": str(tmp_path / test[0]["clip_id"])}


def test_load_unlabelled_reads_split_folders_and_csv_files(tmp_path):
    classes(tmp_path / "folders", {"train": 3, "test": 1})
    assert ids(load_unlabelled(tmp_path / "folders", "test")) == ["test/00.mp4"]
    assert len(load_unlabelled(tmp_path / "folders")) == 3
    with pytest.raises(ValueError, match="has no split 'validation'; its splits are: test, train"):
        load_unlabelled(tmp_path / "folders", "validation")
    table = tmp_path / "list.csv"
    table.write_text("file,label,split\nfolders/train/00.mp4,x,train\nfolders/test/00.mp4,x,test\n")
    rows = load_unlabelled(table, "test")
    assert (rows.column_names, ids(rows)) == (["clip_id", "video", "start", "end"], ["folders/test/00.mp4"])


@pytest.mark.parametrize("labels", [True, False])
def test_evaluation_split_of_a_folder(tmp_path, labels):
    for splits, chosen in (
        ("train", "test"),  # missing: reading it raises
        ("train val", "validation"),
        ("train val test", "test"),
        ("training evaluation", "test"),
        ("cat dog", "test"),  # made by division
    ):
        folder = tmp_path / splits.replace(" ", "-")
        for split in splits.split():
            classes(folder / split, {"cow": 2, "emu": 2})
        assert find_evaluation_split(folder, labels=labels) == chosen
    table = tmp_path / "list.csv"
    table.write_text("file,label,split\ncat-dog/cat/cow/00.mp4,x,train\ncat-dog/dog/cow/00.mp4,x,dev\n")
    assert find_evaluation_split(table, labels=labels) == "validation"
    with pytest.raises(
        ValueError,
        match=r"no split 'test'; its splits are: train; choose one with split= \(--split; for training, --eval",
    ):
        (load_folder if labels else load_unlabelled)(tmp_path / "train", "test")
    with pytest.raises(FileNotFoundError, match="nope is neither a file, a folder nor the name of a benchmark"):
        find_evaluation_split(tmp_path / "nope", labels=labels)


def test_load_unlabelled_needs_clips(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file, a folder nor the name of a benchmark"):
        load_unlabelled(tmp_path / "gone")
    with pytest.raises(ValueError, match="contains no clips"):
        load_unlabelled(tmp_path)
    touch(tmp_path / "one.mp4")
    with pytest.raises(ValueError, match=r"a single clip, .*one\.mp4"):
        load_unlabelled(tmp_path)
    with pytest.raises(ValueError, match="split must be one of"):
        load_unlabelled(tmp_path, "tests")


def test_media_files_skips_duplicates_and_hidden_files(tmp_path):
    one, two = touch(tmp_path / "a" / "one.mkv"), touch(tmp_path / "b" / "two.MP4")
    touch(tmp_path / "a" / "._one.mkv")
    touch(tmp_path / "a" / "notes.txt")
    assert media_files([str(two), str(tmp_path)]) == [two, one]
    assert media_files(["gone.mp4"]) == [Path("gone.mp4")]  # reported later, with the other unreadable files


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ('"{},dog', '"{}",dog', r"list.csv:27: .* Check the quotes"),
        ('"{},dog', '{}",dog', r"list.csv:27: the column 'file' holds 23 lines, starting with '3.mp4,dog'"),
        ('{},"do\ng"', "{},dog", r"the column 'label' holds 2 lines, starting with 'do'"),
    ],
)
def test_stray_quotes_do_not_lose_rows(tmp_path, line, other, message):
    clips = [touch(tmp_path / f"{number}.mp4").name for number in range(40)]
    lines = [f"{name},dog" for name in clips]
    lines[3], lines[25] = line.format(clips[3]), other.format(clips[25])
    (tmp_path / "list.csv").write_text("\n".join(["file,label", *lines]))
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path)


def test_a_stray_quote_in_the_header_does_not_lose_rows(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text('file,label,"notes\na.wav,x,\nb.wav,x,"\nc.wav,y,1\nd.wav,y,2\n')
    with pytest.raises(ValueError, match=r"list.csv:1: a column holds 3 lines.*check the quotes"):
        load_folder(table)


@pytest.mark.parametrize(
    ("header", "wrong", "right"),
    [
        ("file,label,Start,End", "Start", "start"),
        ("file,label,start,stop", "stop", "end"),
        ("file,label,start_time,end_time", "start_time", "start"),
        ("file,label,Split", "Split", "split"),
    ],
)
def test_optional_columns_by_another_name_are_refused(tmp_path, header, wrong, right):
    table = tmp_path / "list.csv"
    table.write_text(f"{header}\na.wav,x{',1' * (header.count(',') - 1)}\n")
    with pytest.raises(ValueError, match=f"list.csv:1: the column '{wrong}' is not read; rename it to '{right}'"):
        load_folder(table)


def test_an_unclosed_quote_at_the_end_is_refused(tmp_path):
    clips = [touch(tmp_path / f"{number}.mp4").name for number in range(40)]
    lines = [f"{name},dog" for name in clips]
    lines[3] = f'{clips[3]},"dog'
    (tmp_path / "list.csv").write_text("\n".join(["file,label", *lines]))
    with pytest.raises(ValueError, match=r"list.csv:41: .*unexpected end of data.*quotes"):
        load_folder(tmp_path)


def test_absurd_times_and_names_of_several_lines_are_refused(tmp_path):
    touch(tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("file,label,start\na.mp4,dog,1e308\n")
    with pytest.raises(ValueError, match=r"list.csv:2: start must be .* at most 1,000,000,000, got '1e308'"):
        load_folder(tmp_path)
    classes(tmp_path / "folder", {"dog\nand cat": 2, "bird": 2})
    with pytest.raises(ValueError, match="the name of a class folder holds 2 lines"):
        load_folder(tmp_path / "folder")
