"""Preparing shards: rows, resuming, processes, and consistent reports."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from rendering import read_numbers, render_clip, truncated

from hf_avfusion.data.benchmarks.folders import find_splits, load_folder
from hf_avfusion.data.benchmarks.loading import BENCHMARKS, get_record, load_benchmark
from hf_avfusion.data.benchmarks.records import read_labels
from hf_avfusion.data.benchmarks.shards import count_rows
from hf_avfusion.data.preparing import shards as preparing
from hf_avfusion.data.preparing.coverage import read_reports
from hf_avfusion.data.preparing.settings import ClipSettings
from hf_avfusion.data.preparing.shards import prepare_benchmark, prepare_folder
from hf_avfusion.media.reader import probe, read_clip

ROOT = Path(__file__).resolve().parents[3]
REAL = Path(__file__).parents[1] / "benchmarks" / "annotations"
SMALL = ClipSettings(trim=True, short_side=32, fps=10)
QUIET = {"num_proc": 1, "progress": False}
CLASSES = ("air horn", "airplane")


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def video():
    """A clip of 3 s, with 25 numbered frames and 10 clicks per second."""
    return render_clip(num_frames=75, fps=25, audio="clicks")


@pytest.fixture(scope="module")
def clips(video, tmp_path_factory):
    """VGGSound with 14 videos: 3 is not a media file, 5 has vanished, 8 is truncated, 10 ends before its clip starts."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(14):
        data = {3: b"no video at all", 8: truncated(video, 0.5), 10: render_clip(num_frames=10, fps=25)}.get(
            number, video
        )
        if number != 5:
            put(folder / f"{number % 2}/v{number}.mp4", data)
    rows = [f"v{number},1,{CLASSES[number % 2]},{'test' if number < 12 else 'train'}" for number in range(14)]
    (folder / "vggsound.csv").write_text("\n".join(rows) + "\n")
    return folder


def prepare(clips, output, **options):
    return prepare_benchmark(
        "vggsound", clips, output, **{"trimmed": False, "settings": SMALL, "rows_per_shard": 4, **QUIET, **options}
    )


def contents(folder):
    """Returns path -> bytes of all files that a preparation writes."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != preparing.LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def prepared(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return folder, prepare(clips, folder)


def test_rows_are_trimmed_with_video_and_audio_in_sync(prepared):
    folder, _ = prepared
    rows = list(load_benchmark("vggsound", "test", source=folder))
    assert [row["clip_id"] for row in rows] == [f"v{n}_000001" for n in (0, 1, 2, 4, 6, 7, 9, 11)]
    for row in rows:
        assert (row["start"], row["end"]) == (0.0, 2.0)  # trimmed from 1 s on, in a file of 3 s
        name = row["clip_id"].partition("_")[0]
        assert row["video"]["path"] == f"{name}.mp4"
        assert CLASSES[int(name[1:]) % 2] == read_labels("vggsound")[row["label"]]
    clip = read_clip(rows[0]["video"]["bytes"], frame_times=[0.0, 0.5, 1.9], audio_window=(0.0, 5.0))
    assert read_numbers(clip.frames) == [25, 37, 72]
    assert clip.info.duration == pytest.approx(2.0, abs=1e-3)
    assert clip.info.height == clip.info.width == 32
    loud = (clip.waveform[0].abs() > 0.4 * clip.waveform.abs().max()).nonzero()[:, 0]
    assert loud[0] == 0
    assert (loud % 1600 <= 1).all()


def test_shards_stream_with_their_label_names(prepared):
    folder, _ = prepared
    shards = sorted(path.name for path in (folder / "data").iterdir())
    assert shards == [
        *(f"test-0000{k}-of-00003.parquet" for k in range(3)), "train-00000-of-00001.parquet",
    ]  # fmt: skip
    rows = datasets.load_dataset(str(folder), split="test", streaming=True)
    assert rows.num_shards == 3
    assert rows.features["label"].names == list(read_labels("vggsound"))
    assert isinstance(rows.features["video"], datasets.Video)
    assert rows.features["video"].decode is False
    assert [row["clip_id"] for row in rows] == [
        row["clip_id"] for row in load_benchmark("vggsound", "test", False, folder)
    ]
    assert count_rows(folder, "test") == 8
    footer = pq.read_metadata(folder / "data" / shards[0])
    assert max(footer.row_group(k).num_rows for k in range(footer.num_row_groups)) <= preparing.ROW_GROUP
    assert str(folder).encode() not in (folder / "data" / shards[0]).read_bytes()  # no local paths


def test_report_counts_every_clip_once(prepared):
    folder, reports = prepared
    test = reports["test"]
    assert str(test) == ("test: 8 of 12 annotated clips are present (officially 15,446), 1 vanished, 3 do not decode")
    assert test.vanished == ("v5_000001",)
    reasons = {clip: (file, reason) for clip, file, reason in test.undecodable}
    assert reasons["v3_000001"] == (
        "1/v3.mp4", "cannot be opened as a media file: Invalid data found when processing input",
    )  # fmt: skip
    assert set(reasons) == {"v3_000001", "v8_000001", "v10_000001"}
    assert "1.0 to 11.0 s of a file that is 0.4" in reasons["v10_000001"][1]
    assert not any("on_decode_error" in reason or str(folder) in reason for _, reason in reasons.values())
    assert test.classes["label"]["air horn"] == {"annotated": 6, "present": 4, "vanished": 0, "undecodable": 2}
    assert test.classes["label"]["airplane"] == {"annotated": 6, "present": 4, "vanished": 1, "undecodable": 1}
    assert {entry[0] for entry in test.notes} == {f"v{n}_000001" for n in (0, 1, 2, 4, 6, 7, 9, 11)}
    assert test.notes[0][2] == "the file ends at 3.00 s, the annotated clip at 11.00 s"
    assert read_reports(folder) == reports
    with (folder / "coverage.csv").open() as file:
        lines = [row for row in csv.DictReader(file) if row["annotated"] != "0"]
    assert lines[1] == {
        "split": "train", "column": "label", "class": "airplane", "annotated": "1", "present": "1", "vanished": "0",
        "undecodable": "0",
    }  # fmt: skip
    assert sum(int(row["annotated"]) for row in lines) == 14
    page = (folder / "coverage.md").read_text()
    assert "| test | 15,446 | 12 | 8 | 1 | 3 |" in page
    assert "2 of 309 classes lack clips, 307 have none" in page
    assert "| v3_000001 | 1/v3.mp4 | cannot be opened" in page
    assert "`v5_000001`" in page


def test_two_processes_give_the_same_bytes_as_one(clips, prepared, tmp_path):
    prepare(clips, tmp_path / "two", num_proc=2)
    assert contents(tmp_path / "two") == contents(prepared[0])


def test_resuming_keeps_complete_shards(clips, prepared, tmp_path):
    reference = contents(prepared[0])
    prepare(clips, tmp_path, splits=["test"])  # the other split is prepared later
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    (tmp_path / "data/test-00001-of-00003.parquet").unlink()
    put(tmp_path / "data/test-00001-of-00003.parquet.partial", b"what a stopped run leaves")
    reports = prepare(clips, tmp_path)
    assert contents(tmp_path).keys() == reference.keys()
    shards = [name for name in reference if name.endswith(".parquet")]
    assert {name: contents(tmp_path)[name] for name in shards} == {name: reference[name] for name in shards}
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    assert {name for name in stamps if stamps[name] != now[name]} == {"test-00001-of-00003.parquet"}
    assert reports == prepared[1]


def test_other_settings_or_clips_raise(clips, video, prepared, tmp_path):
    prepare(clips, tmp_path, splits=["train"])
    before = contents(tmp_path)
    with pytest.raises(
        FileExistsError, match=r"prepared with other settings or clips: short_side was 32 and is 48\. .*overwrite=True"
    ):
        prepare(clips, tmp_path, splits=["train"], settings=ClipSettings(trim=True, short_side=48, fps=10))
    with pytest.raises(FileExistsError, match="rows_per_shard was 4 and is 1"):
        prepare(clips, tmp_path, splits=["train"], rows_per_shard=1)
    put(tmp_path / "more/vggsound.csv", b"v1,1,air horn,train\n")
    put(tmp_path / "more/v1.mp4", video)
    with pytest.raises(FileExistsError, match=r"the clips of train have changed \(2 before, 1 now\)"):
        prepare(tmp_path / "more", tmp_path, splits=["train"])
    assert contents(tmp_path).items() >= before.items()
    prepare(clips, tmp_path, splits=["train"], rows_per_shard=1, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    prepare(clips, tmp_path, splits=["test"], rows_per_shard=1)
    prepare(tmp_path / "more", tmp_path, splits=["train"], rows_per_shard=1, overwrite=True)  # other clips of one split
    assert {split: report.present for split, report in read_reports(tmp_path).items()} == {"test": 8, "train": 1}
    prepare(clips, tmp_path, splits=["train"], overwrite=True)  # other settings: the old shards are deleted
    assert read_reports(tmp_path).keys() == {"train"}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    put(tmp_path / "foreign/data/train-00000-of-00001.parquet", b"")
    with pytest.raises(FileExistsError, match="not prepared here"):
        prepare(clips, tmp_path / "foreign")


KILLED = """
import os, signal, sys
from hf_avfusion.data.preparing import shards as preparing
from hf_avfusion.data.preparing.settings import ClipSettings
write, count = preparing._write_group, 0
def write_some(*arguments):
    global count
    write(*arguments)
    count += 1
    if count == 5:  # two shards are complete, the third is incomplete
        print(*(process.pid for process in preparing.multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
preparing.ROW_GROUP = 2
preparing._write_group = write_some
preparing.prepare_benchmark("vggsound", sys.argv[1], sys.argv[2], splits=["test"], trimmed=False, rows_per_shard=3,
    settings=ClipSettings(trim=True, short_side=32, fps=10), num_proc=2, progress=False)
"""


@pytest.mark.slow
def test_resuming_after_a_kill_gives_the_same_bytes(clips, tmp_path, monkeypatch):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(clips), str(tmp_path / "killed")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    children = [int(word) for word in done.stdout.split()]
    assert len(children) == 2
    for _ in range(600):  # its processes end soon after it
        if not any(Path(f"/proc/{child}").exists() and not _is_zombie(child) for child in children):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"the processes {children} of the killed run are still there")
    left = sorted(path.name for path in (tmp_path / "killed/data").iterdir())
    assert left == [*(f"test-0000{k}-of-00004.parquet" for k in range(2)), "test-00002-of-00004.parquet.partial"]
    stamps = {name: (tmp_path / "killed/data" / name).stat().st_mtime_ns for name in left[:2]}
    monkeypatch.setattr(preparing, "ROW_GROUP", 2)
    for folder in ("killed", "whole"):
        prepare(clips, tmp_path / folder, splits=["test"], rows_per_shard=3)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {name: (tmp_path / "killed/data" / name).stat().st_mtime_ns for name in stamps} == stamps


def _is_zombie(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_clips_do_not_change_without_settings(video, tmp_path):
    """Files are copied, and start and end do not change."""
    put(tmp_path / "raw/abc_000001.mp4", video)
    put(tmp_path / "raw/x.mp4", video)
    put(tmp_path / "raw/broken.mp4", truncated(video, 0.9))
    (tmp_path / "raw/list.csv").write_text("abc,1,air horn,test\nx,2,airplane,test\nbroken,0,airplane,test\n")
    where = {"annotations": tmp_path / "raw/list.csv", "trimmed": False}
    for name, settings in (("as they are", ClipSettings()), ("cut", ClipSettings(trim=True))):
        reports = prepare_benchmark(
            "vggsound", tmp_path / "raw", tmp_path / name, splits=["test"], settings=settings, **where, **QUIET
        )
        assert [clip for clip, *_ in reports["test"].undecodable] == ["broken_000000"]
    raw = list(load_benchmark("vggsound", "test", source=tmp_path / "raw", **where))
    same = list(load_benchmark("vggsound", "test", source=tmp_path / "as they are"))
    assert [(row["clip_id"], row["start"], row["end"], row["label"]) for row in same] == [
        (row["clip_id"], row["start"], row["end"], row["label"]) for row in raw[:2]
    ]
    assert [row["video"] for row in same] == [{"bytes": video, "path": name} for name in ("abc_000001.mp4", "x.mp4")]
    cut = list(load_benchmark("vggsound", "test", source=tmp_path / "cut"))
    assert cut[0] == same[0]  # the file is the clip, so it is not trimmed
    assert (cut[1]["start"], cut[1]["end"]) == (0.0, 1.0)
    assert probe(cut[1]["video"]["bytes"]).duration == pytest.approx(1.0, abs=1e-3)
    unseen = prepare_benchmark(
        "vggsound",
        tmp_path / "raw",
        tmp_path / "u",
        splits=["test"],
        settings=ClipSettings(check=False),
        **where,
        **QUIET,
    )
    assert unseen["test"].present == 3


MIDS = read_labels("audioset_mids")
AUDIOSET = '--PJ, 0.000, 2.000, "/m/09x0r,/t/dd00088"\n'
KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\nbowling,x_y,0,2,train,0\n"
KINETICS_VAL = KINETICS.replace("train,0", "val,0")
CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
EVERY = [  # name, variant, split, annotation file (text, or None: the real rows), clip, columns of the first row
    ("vggsound", None, "train", "abc,30,air horn,train\n", "abc_000030.mp4", {"label": 1}),
    ("audioset", None, "train", AUDIOSET, "--PJ_000000.mp4", {"labels": [0, MIDS.index("/t/dd00088")]}),
    ("audioset", "as500k", "train", AUDIOSET, "--PJ_000000.mp4", {"labels": [0, MIDS.index("/t/dd00088")]}),
    ("kinetics400", None, "train", KINETICS, "x_y_000000_000002.mp4", {"label": 31}),
    ("kinetics_sounds", "31", "validation", KINETICS_VAL, "x_y_000000_000002.mp4", {"label": 2}),
    ("kinetics_sounds", "31_ogmge", "test", None, "-3Mwkq-7TV4_2.mp4", {"label": 23}),
    ("epic_kitchens_100", None, "validation", None, "P01_11.MP4", {"verb": 0, "noun": 2, "narration": "take plate"}),
    ("moments_in_time", None, "train", "clapping/a-1.mp4,clapping,3,1\n", "clapping/a-1.mp4", {"label": 0}),
    ("ave", None, "train", None, "c---zaDCTaE.mp4", {"label": 0, "events": [0] * 10}),
    ("avsbench_s4", None, "validation", "name,uid,category,split\nv1,a,cat_meowing,val\n", "v1.mp4", {"label": 3}),
    ("music_avqa", None, "validation", None, "00000028.mp4", {"question": "Is the ukulele in the video always playing?"}),
    ("ucf101", "split2", "train", "Archery/v_Archery_g08_c01.avi 3\n", "v_Archery_g08_c01.avi", {"label": 2}),
    ("esc50", "fold1", "test", "filename,fold,target,category,esc10,src_file,take\n1-2-A-0.wav,1,0,dog,True,2,A\n",
     "1-2-A-0.wav", {"label": 0, "fold": 1}),
    ("esc10", "fold1", "test", None, "1-100032-A-0.flac", {"label": 0, "fold": 1}),
    ("charades", None, "test", CHARADES + "A,S,K,6,7,Y,s,o,d,c092 1.00 2.00;c147 0.00 2.60,3\n", "A.mp4", {"labels": [92, 147]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "variant", "split", "text", "clip", "columns"), EVERY, ids=lambda value: str(value)[:20]
)
def test_every_benchmark_with_an_annotation_file(name, variant, split, text, clip, columns, video, tmp_path):
    record = get_record(name, variant, split)
    official = record.annotations[split]
    put(tmp_path / "raw" / official, text.encode() if text else (REAL / official).read_bytes())
    sound = {"num_frames": 0, "audio_codec": "flac" if clip.endswith("flac") else "pcm_s16le", "seconds": 5.2}
    suffix = Path(clip).suffix[1:].lower()
    put(tmp_path / "raw/clips" / clip, render_clip(container=suffix, **sound) if suffix in ("wav", "flac") else video)
    for second in (1, 2):
        put(tmp_path / f"raw/gt_masks/val/cat_meowing/v1/v1_{second}.png", b"png%d" % second)
    where = {"variant": variant, "trimmed": None}
    for settings, output in ((ClipSettings(), "as they are"), (SMALL, "small")):
        reports = prepare_benchmark(
            name, tmp_path / "raw", tmp_path / output, splits=[split], settings=settings, **where, **QUIET
        )
        rows = load_benchmark(name, split, source=tmp_path / output, variant=variant)
        found = list(rows)
        raw = list(load_benchmark(name, split, source=tmp_path / "raw", **where))
        ids = [row["clip_id"] for row in found]
        assert ids == [row["clip_id"] for row in raw if row["clip_id"] in ids]
        assert reports[split].present == len(found) > 0
        assert reports[split].annotated == len(found) + len(reports[split].vanished) + len(reports[split].undecodable)
        by_id = {row["clip_id"]: row for row in raw}
        for row in found:
            for column in record.columns:
                if column == "masks":
                    assert row["masks"] == [{"bytes": b"png%d" % n, "path": f"v1_{n}.png"} for n in (1, 2)]
                else:
                    assert row[column] == by_id[row["clip_id"]][column]
        assert {key: found[0][key] for key in columns} == columns
        if output == "small" and raw[0]["end"] is not None:
            assert found[0]["start"] == 0.0
            length = probe(found[0]["video"]["bytes"]).duration
            assert found[0]["end"] == pytest.approx(length, abs=0.11)
            assert found[0]["end"] <= raw[0]["end"] - raw[0]["start"] + 1e-3


def test_benchmarks_that_exist_only_as_shards_raise(tmp_path):
    parsed = {name for name, *_ in EVERY}
    assert parsed | {"sounding_shapes", "avdigits"} == set(BENCHMARKS)
    with pytest.raises(FileNotFoundError, match=r"render it with `python -m hf_avfusion\.data\.avdigits"):
        prepare_benchmark("avdigits", tmp_path, tmp_path / "out", **QUIET)


def test_folder_of_clips(video, tmp_path, caplog):
    for name in ("cat", "dog"):
        for number in range(3):
            put(tmp_path / f"mine/{name}/{number}.mp4", video if number or name == "dog" else b"junk")
    wave = render_clip(num_frames=0, audio="ramp", container="wav", audio_codec="pcm_s16le", seconds=1.0)
    put(tmp_path / "mine/dog/bark.wav", wave)
    assert find_splits(tmp_path / "mine") == ("train", "test")
    settings = ClipSettings(short_side=32)
    reports = prepare_folder(tmp_path / "mine", tmp_path / "out", settings=settings, rows_per_shard=2, **QUIET)
    assert {split: report.annotated for split, report in reports.items()} == {"train": 5, "test": 2}
    assert sum(len(report.undecodable) for report in reports.values()) == 1
    lost = [counts["undecodable"] for report in reports.values() for counts in report.classes["label"].values()]
    assert sorted(lost) == [0, 0, 0, 1]
    assert find_splits(tmp_path / "out") == ("train", "test")
    for split in ("train", "test"):
        rows, raw = load_folder(tmp_path / "out", split), load_folder(tmp_path / "mine", split)
        assert rows.features["label"].names == ["cat", "dog"]
        whole = [row for row in raw if row["clip_id"] != "cat/0.mp4"]
        for key in ("clip_id", "label", "start", "end"):
            assert [row[key] for row in rows] == [row[key] for row in whole]
        assert all(row["video"]["bytes"] for row in rows)
        for row in rows:
            if row["clip_id"] == "dog/bark.wav":
                assert row["video"]["path"] == "bark.flac"
    with pytest.raises(ValueError, match=r"no split 'validation'; its splits are: test, train"):
        load_folder(tmp_path / "out", "validation")
    with pytest.raises(FileExistsError, match="seed was 0 and is 1"):
        prepare_folder(tmp_path / "mine", tmp_path / "out", seed=1, settings=settings, rows_per_shard=2, **QUIET)


def test_load_folder_refuses_shards_of_a_benchmark(video, tmp_path):
    put(tmp_path / "kitchen/P01_11.MP4", video)
    put(tmp_path / "kitchen/EPIC_100_validation.csv", (REAL / "EPIC_100_validation.csv").read_bytes())
    prepare_benchmark("epic_kitchens_100", tmp_path / "kitchen", tmp_path / "out", splits=["validation"], **QUIET)
    with pytest.raises(ValueError, match="must have the columns clip_id, video and label"):
        load_folder(tmp_path / "out", "validation")


def test_clip_that_vanishes_during_preparation_is_reported(clips, tmp_path, monkeypatch):
    find = preparing.find_clips

    def find_and_lose(*arguments):
        rows, *others = find(*arguments)
        rows[1]["video"]["path"] += ".gone"
        return rows, *others

    monkeypatch.setattr(preparing, "find_clips", find_and_lose)
    report = prepare(clips, tmp_path, splits=["train"])["train"]
    assert report.undecodable == (("v13_000001", "1/v13.mp4.gone", "cannot be opened: No such file or directory"),)


def test_too_little_disk_space_raises_first(clips, tmp_path, monkeypatch):
    free = preparing.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(OSError, match=r"would take .* GB free.*trim=True"):
        prepare(clips, tmp_path, settings=ClipSettings())


def test_only_one_preparation_per_folder(clips, tmp_path, monkeypatch):
    code = "import sys, filelock\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\nprint('held', flush=True)\ninput()"
    command = [sys.executable, "-c", code, str(tmp_path / preparing.LOCK)]
    monkeypatch.setattr(preparing, "LOCK_WAIT", 0.1)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FileExistsError, match="another process is preparing"):
            prepare(clips, tmp_path)
        other.stdin.write("\n")
    assert prepare(clips, tmp_path, splits=["train"])["train"].present == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other processes do not inherit the patch")
def test_a_dying_process_raises(clips, tmp_path, monkeypatch):
    def die(*arguments, **options):
        os._exit(1) if os.getpid() != parent else pytest.fail("the clip was prepared in this process")

    parent = os.getpid()
    monkeypatch.setattr(preparing, "reencode", die)
    with pytest.raises(RuntimeError, match="a process died while it prepared clips"):
        prepare(clips, tmp_path, num_proc=2)


def test_shard_without_decodable_clips_is_empty(video, tmp_path):
    for number in range(4):
        put(tmp_path / f"raw/v{number}_000000.mp4", b"junk" if number < 2 else video)
    put(tmp_path / "raw/vggsound.csv", b"".join(b"v%d,0,air horn,test\n" % number for number in range(4)))
    prepare_benchmark("vggsound", tmp_path / "raw", tmp_path / "out", splits=["test"], rows_per_shard=2, **QUIET)
    for streaming in (True, False):
        rows = load_benchmark("vggsound", "test", streaming, tmp_path / "out")
        assert [row["clip_id"] for row in rows] == ["v2_000000", "v3_000000"]
    assert count_rows(tmp_path / "out", "test") == 2


def test_large_clips_make_small_groups(video, tmp_path, monkeypatch):
    for number in range(4):
        put(tmp_path / f"raw/v{number}_000000.mp4", video)
    put(tmp_path / "raw/vggsound.csv", b"".join(b"v%d,0,air horn,test\n" % number for number in range(4)))
    monkeypatch.setattr(preparing, "MAX_GROUP_BYTES", 2.5 * len(video))
    prepare_benchmark("vggsound", tmp_path / "raw", tmp_path / "out", splits=["test"], **QUIET)
    footer = pq.read_metadata(tmp_path / "out/data/test-00000-of-00001.parquet")
    assert [footer.row_group(k).num_rows for k in range(footer.num_row_groups)] == [2, 2]
    monkeypatch.setattr(preparing, "MAX_CLIP_BYTES", len(video) - 1)
    report = prepare_benchmark("vggsound", tmp_path / "raw", tmp_path / "none", splits=["test"], **QUIET)["test"]
    assert report.present == 0
    assert "more than a parquet value can hold" in report.undecodable[0][2]


def test_invalid_arguments_raise(clips, tmp_path):
    with pytest.raises(ValueError, match="num_proc must be at least 1"):
        prepare(clips, tmp_path, num_proc=0)
    with pytest.raises(ValueError, match="has no split 'validation'"):
        prepare(clips, tmp_path, splits=["validation"])
    with pytest.raises(FileNotFoundError, match=r"annotation file trainSet.txt of AVE.*--splits"):
        prepare_benchmark("ave", clips, tmp_path, **QUIET)
    lists = tmp_path / "lists/trainSet.txt"
    put(lists, b"Bark&x&good&0&4\n")
    with pytest.raises(
        ValueError, match=r"is one file, but each of the splits train, validation, test .* testSet\.txt, trainSet"
    ):
        prepare_benchmark("ave", clips, tmp_path, annotations=lists, **QUIET)
    with pytest.raises(ValueError, match=r"file of another split; the file of 'test' is testSet\.txt"):
        prepare_benchmark("ave", clips, tmp_path, annotations=lists, splits=["test"], **QUIET)
    put(tmp_path / "mine/cat/a.mp4", b"")
    with pytest.raises(ValueError, match="is inside the folder of the clips"):
        prepare_folder(tmp_path / "mine", tmp_path / "mine/out", **QUIET)
    put(tmp_path / "shards/data/train-00000-of-00001.parquet", b"")
    with pytest.raises(ValueError, match="already contains parquet shards"):
        prepare_folder(tmp_path / "shards", tmp_path / "out", **QUIET)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        prepare(clips / "nowhere", tmp_path)
    put(tmp_path / "none/vggsound.csv", b"gone,1,air horn,test\n")
    with pytest.raises(FileNotFoundError, match=r"none of the 1 clips.*gone_000001"):
        prepare(tmp_path / "none", tmp_path / "out", splits=["test"])
