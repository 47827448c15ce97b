"""MUSIC-AVQA's shards: a video is stored once, and read as a row for each of its questions."""

import json

import pyarrow.parquet as pq
import pytest
from rendering import render_clip

from hf_avfusion.data.benchmarks.loading import coverage, load_benchmark, load_with_coverage
from hf_avfusion.data.benchmarks.question_rows import video_of
from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.data.preparing.shards import prepare_benchmark
from hf_avfusion.data.streaming.clip_loader import ClipLoader
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.tasks import TASKS

QUESTIONS = [  # video, question, answer, type
    ("00000001", "Is the piano always playing?", "yes", ["Audio-Visual", "Existential"]),
    ("00000002", "How many instruments are sounding in the video?", "two", ["Audio-Visual", "Counting"]),
    ("00000001", "Where is the flute?", "left", ["Visual", "Location"]),
    ("00000003", "Where is the flute?", "right", ["Visual", "Location"]),  # this video has vanished
    ("00000001", "How many types of musical instruments sound in the video?", "one", ["Audio", "Counting"]),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for number in (1, 2):
        (folder / f"0000000{number}.mp4").write_bytes(render_clip(num_frames=20 + number, seconds=1.0, size=(32, 32)))
    rows = [
        {
            "video_id": video, "question_id": number, "type": json.dumps(kind), "question_content": question,
            "templ_values": "[]", "question_deleted": 0, "anser": answer,
        }
        for number, (video, question, answer, kind) in enumerate(QUESTIONS)
    ]  # fmt: skip
    (folder / "avqa-val.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def shards(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    reports = prepare_benchmark("music_avqa", clips, folder, splits=["validation"], num_proc=1, progress=False)
    assert str(reports["validation"]) == "validation: 2 of 3 annotated clips are present, 1 vanished, 0 do not decode"
    assert reports["validation"].vanished == ("00000003",)
    return folder


def test_a_video_is_stored_once(shards):
    (shard,) = (shards / "data").glob("validation-*.parquet")
    table = pq.read_table(shard)
    assert table["clip_id"].to_pylist() == ["00000001", "00000002"]
    assert table["question_id"].to_pylist() == [["0", "2", "4"], ["1"]]
    assert table["question"].to_pylist()[0][1] == "Where is the flute?"


def test_a_row_is_read_for_each_question(shards, clips):
    raw = {row["clip_id"]: row for row in load_benchmark("music_avqa", "validation", source=clips)}
    rows, found = load_with_coverage("music_avqa", "validation", source=shards)
    assert rows.features == load_benchmark("music_avqa", "validation", source=clips).features
    made = {row["clip_id"]: row for row in rows}
    assert list(made) == ["00000001-0", "00000001-2", "00000001-4", "00000002-1"]
    assert made.keys() == raw.keys()
    for clip_id, row in made.items():
        for column in BENCHMARKS["music_avqa"].columns:
            assert row[column] == raw[clip_id][column]
        assert row["video"]["path"] == f"{video_of(clip_id)}.mp4"
    first, second = (made[f"00000001-{number}"]["video"]["bytes"] for number in (0, 2))
    assert first is second  # not copied
    assert found.present == 4
    assert coverage("music_avqa", "validation", shards).present == 4
    with pytest.raises(ValueError, match="would copy the video: pass streaming=True"):
        load_benchmark("music_avqa", "validation", source=shards, streaming=False)


def test_every_question_is_one_sample_of_an_epoch(shards):
    split = load_rows("music_avqa", "validation", source=str(shards))
    assert split.num_rows == 4
    assert list(split.read_column("question")) == [QUESTIONS[number][1] for number in (0, 2, 4, 1)]

    def transform(row, generator):
        return {"clip_id": row["clip_id"], "answer": row["answer"]}

    stream = ClipStream(split.rows, transform, num_rows=split.num_rows, shuffle_buffer=10)
    assert sorted(sample["clip_id"] for sample in stream) == ["00000001-0", "00000001-2", "00000001-4", "00000002-1"]
    loader = ClipLoader(stream, 2, lambda samples: [sample["clip_id"] for sample in samples])
    assert len(loader) == 2
    drawn = [clip_id for batch in loader for clip_id in batch]
    assert len({*drawn}) == len(drawn) == 4
    words = TASKS["question_answering"].processor_fields(split)
    assert (len(words["vocab"]), words["max_question_length"]) == (93, 14)
