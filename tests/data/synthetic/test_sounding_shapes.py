"""SoundingShapes: seeds, balance, annotations, encoding, and reading its shards."""

import io
import json
from collections import Counter

import av
import datasets
import numpy as np
import pytest
from PIL import Image

from hf_avfusion.data.benchmarks.loading import load_benchmark
from hf_avfusion.data.benchmarks.shards import count_rows, find_shards
from hf_avfusion.data.synthetic.sounding_scenes import (
    QUESTION_TYPES,
    SHAPES,
    SOUNDS,
    SceneSettings,
    _timbre,
    caption,
    draw_frames,
    envelope,
    events,
    make_question,
    masks,
    pixel_coverage,
    sample_scene,
    synthesise,
)
from hf_avfusion.data.synthetic.sounding_shapes import (
    RenderSettings,
    clip_classes,
    encode,
    features,
    main,
    make_scene,
    render,
    render_clip,
)

BUSY = SceneSettings(num_classes=4, duration=4, distractors=2)


def decode(data):
    with av.open(io.BytesIO(data)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(io.BytesIO(data)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, sound


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    render(folder, num_train=40, num_validation=16, num_test=16, num_proc=2, rows_per_shard=16, progress=False, seed=3)
    return folder


# ---- labels


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_every_pair_of_classes_is_equally_frequent(classes):
    settings = SceneSettings(num_classes=classes)
    pairs = Counter(clip_classes(settings, 7, "train", index) for index in range(3 * classes**2))
    assert len(pairs) == classes**2
    assert set(pairs.values()) == {3}


def test_xor_label_is_uniform_given_either_class():
    """Given only the shape or only the sound, all labels are exactly equally likely, so accuracy stays at chance."""
    settings = SceneSettings(rule="xor", num_classes=4)
    table = np.zeros((2, 4, 4), dtype=int)
    for index in range(160):
        shape, sound = clip_classes(settings, 0, "train", index)
        label = settings.label(shape, sound)
        table[0, shape, label] += 1
        table[1, sound, label] += 1
    assert (table == 10).all()


def test_pair_label_determines_both_classes():
    settings = SceneSettings(rule="pair", num_classes=3)
    labels = {(shape, sound): settings.label(shape, sound) for shape in range(3) for sound in range(3)}
    assert sorted(labels.values()) == list(range(9))
    assert settings.label_names[labels[2, 1]] == f"{SHAPES[2]} {SOUNDS[1]}"


def test_frames_do_not_depend_on_the_sound_nor_audio_on_the_shape():
    settings = SceneSettings(num_classes=4)
    scenes = [
        [sample_scene(settings, shape, sound, np.random.default_rng(5)) for sound in range(4)] for shape in range(4)
    ]
    assert len({draw_frames(scene).tobytes() for scene in scenes[1]}) == 1
    assert len({synthesise(scene).tobytes() for scene in scenes[1]}) == 4
    assert len({synthesise(row[2]).tobytes() for row in scenes}) == 1
    assert len({draw_frames(row[2]).tobytes() for row in scenes}) == 4


# ---- seeds


def test_clip_depends_only_on_seed_split_and_number():
    settings = RenderSettings(SceneSettings(), seed=1)
    assert render_clip(settings, "train", 5) == render_clip(settings, "train", 5)
    others = [render_clip(settings, "train", 6), render_clip(settings, "test", 5)]
    others.append(render_clip(RenderSettings(SceneSettings(), seed=2), "train", 5))
    for other in others:
        assert other["video"]["bytes"] != render_clip(settings, "train", 5)["video"]["bytes"]


def test_no_clip_is_repeated_within_or_across_splits(rendered):
    seen = set()
    for split, count in (("train", 40), ("validation", 16), ("test", 16)):
        rows = list(load_benchmark("sounding_shapes", split, source=rendered))
        assert len(rows) == count == count_rows(rendered, split)
        seen |= {row["video"]["bytes"] for row in rows}
    assert len(seen) == 72


# ---- annotations


@pytest.mark.parametrize("index", range(6))
def test_mask_covers_exactly_the_sounding_shape(index):
    scene = make_scene(BUSY, 0, "train", index)
    frames, found = draw_frames(scene), masks(scene)
    for second in range(BUSY.duration):
        obj = scene.sounding_object(second)
        if obj is None:
            assert not found[second].any()
            continue
        number = int((second + 0.5) * BUSY.frame_rate)
        frame = frames[number]
        color = np.round(255 * np.array(obj.color))
        # Apart from the antialiased rim, the pixels in the mask, and no others, have the shape's colour.
        whole = pixel_coverage(obj, np.array([number / BUSY.frame_rate]), BUSY)[0] == 1
        off = np.abs(frame[found[second] & whole] - color).max(axis=-1)
        assert np.median(off) <= 1
        assert (off <= 1).mean() > 0.9  # the rim of a shape in front
        same_color = (np.abs(frame - color) <= 1).all(axis=-1)
        assert not (same_color & ~found[second]).any()
        assert found[second].sum() > (150 if obj is scene.dominating else 25)


@pytest.mark.parametrize("index", range(6))
def test_events_match_the_encoded_audio(index):
    """After AAC encoding, background seconds are silent and all others are loud."""
    settings = RenderSettings(SceneSettings(duration=4))
    row = render_clip(settings, "train", index)
    _, sound = decode(row["video"]["bytes"])
    background = len(settings.scene.event_names) - 1
    for second, event in enumerate(row["events"]):
        # Without the borders, which the codec's blocks of 64 ms blur.
        level = sound[int((second + 0.1) * 16000) : int((second + 0.9) * 16000)].std()
        assert (level > 0.02) if event != background else (level < 0.004)
        if event != background:
            assert event == row["shape"] * 4 + row["sound"]


def test_dominating_shape_sounds_at_least_half_of_the_time():
    for index in range(50):
        scene = make_scene(BUSY, 0, "train", index)
        assert scene.dominating.sounding.sum() >= 2
        assert sum(obj.sounding for obj in scene.objects).max() <= 1  # one at a time


def test_shape_pulses_with_its_sound():
    scene = make_scene(SceneSettings(frame_rate=25.0), 0, "train", 1)
    obj = scene.dominating
    times = np.arange(50) / 25
    area = pixel_coverage(obj, times, scene.settings).sum(axis=(1, 2))
    assert np.corrcoef(np.sqrt(area), envelope(obj, times))[0, 1] > 0.99


def test_shapes_stay_in_the_frame_and_differ():
    settings = SceneSettings(num_classes=8)
    areas = []
    for shape in range(8):
        scene = sample_scene(settings, shape, 0, np.random.default_rng(11))
        times = np.arange(25) / 12.5
        cover = pixel_coverage(scene.dominating, times, settings)
        assert cover[:, [0, -1], :].max() == 0
        assert cover[:, :, [0, -1]].max() == 0
        areas.append(cover[0])
    for first in range(8):
        for second in range(first):
            # Different outlines: many pixels of the union belong to only one shape.
            differ = np.abs(areas[first] - areas[second]).sum() / np.maximum(areas[first], areas[second]).sum()
            assert differ > 0.15, (SHAPES[first], SHAPES[second])


@pytest.mark.parametrize("sound", SOUNDS)
def test_sounds_are_steady_and_do_not_clip(sound):
    times = np.arange(32000) / 16000
    wave = _timbre(sound, times, np.random.default_rng(0))
    assert wave.std() == pytest.approx(1.0, rel=0.05)
    assert np.abs(wave).max() < 5.0  # LEVELS leaves 14 dB


def test_questions_have_the_right_answers():
    seen = set()
    for index in range(150):
        scene = make_scene(BUSY, 0, "train", index)
        kind, question, answer = make_question(scene, np.random.default_rng(index))
        seen.add(kind)
        assert answer in BUSY.answer_names
        heard = [event for event in events(scene) if event != 16]
        if kind == "audio counting":
            assert int(answer) == len(heard)
        elif kind == "audio existential":
            present = any(SOUNDS[event % 4] in question.split() for event in heard)
            assert answer == ("yes" if present else "no")
        elif kind == "visual counting":
            assert answer == "3"
        elif kind == "visual recognition":
            assert answer == SHAPES[scene.dominating.shape]
        elif kind == "audio-visual recognition":
            assert SHAPES[scene.dominating.shape] in question
            assert answer == SOUNDS[scene.dominating.sound]
        elif kind == "audio-visual temporal":
            event = events(scene)[int(question.split()[-1].rstrip("?")) - 1]
            assert answer == ("nothing" if event == 16 else SHAPES[event // 4])
        elif kind == "audio-visual location":
            second = int(np.flatnonzero(scene.dominating.sounding)[0])
            columns = np.nonzero(masks(scene)[second])[1]
            if abs(columns.mean() - 32) > 3:
                assert answer == ("left" if columns.mean() < 32 else "right")
    assert seen == set(QUESTION_TYPES)


def test_caption_names_shapes_and_sounds():
    scene = make_scene(BUSY, 0, "train", 0)
    text = caption(scene)
    for obj in scene.objects:
        assert f"{obj.color_name} {SHAPES[obj.shape]}" in text.lower()


# ---- encoding


@pytest.mark.parametrize(("width", "height", "frame_rate"), [(64, 64, 12.5), (96, 48, 25.0)])
def test_encoded_clip_matches_the_scene(width, height, frame_rate):
    settings = SceneSettings(width=width, height=height, frame_rate=frame_rate)
    scene = make_scene(settings, 0, "test", 0)
    data = encode(draw_frames(scene), synthesise(scene), frame_rate, 16000)
    frames, sound = decode(data)
    assert frames.shape == (settings.num_frames, height, width, 3)
    assert np.abs(frames.astype(int) - draw_frames(scene)).mean() < 6
    original = synthesise(scene)
    noise = sound[: len(original)] - original
    assert 10 * np.log10((original**2).mean() / (noise**2).mean()) > 15  # dB; also shows that the codec adds no delay
    with av.open(io.BytesIO(data)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert float(container.streams.video[0].average_rate) == frame_rate


# ---- shards


def test_shards_stream_back_with_their_features(rendered):
    settings = SceneSettings()
    rows = load_benchmark("sounding_shapes", "train", source=rendered)
    assert isinstance(rows, datasets.IterableDataset)
    assert rows.features == features(settings)
    assert rows.features["label"].names == settings.label_names
    expected = render_clip(RenderSettings(settings, seed=3), "train", 17)
    row = list(rows)[17]
    assert row == expected
    assert datasets.load_dataset(
        "parquet", data_files=str(find_shards(rendered, "test")[0]), split="train"
    ).features == (features(settings))
    mask = np.asarray(Image.open(io.BytesIO(row["masks"][0]["bytes"])))
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) <= {0, 255}


def test_interrupted_rendering_is_completed(rendered):
    shard = find_shards(rendered, "train")[1]
    whole, others = shard.read_bytes(), find_shards(rendered, "train")[0]
    stamp = others.stat().st_mtime_ns
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing \[1\]"):
        load_benchmark("sounding_shapes", "train", source=rendered)
    render(
        rendered, num_train=40, num_validation=16, num_test=16, num_proc=1, rows_per_shard=16, progress=False, seed=3
    )
    assert shard.read_bytes() == whole
    assert others.stat().st_mtime_ns == stamp


def test_other_settings_in_one_folder_raise_unless_overwritten(tmp_path):
    few = {"num_train": 4, "num_validation": 0, "num_test": 0, "num_proc": 1, "progress": False}
    render(tmp_path, seed=0, **few)
    with pytest.raises(FileExistsError, match="other settings"):
        render(tmp_path, seed=1, **few)
    render(tmp_path, seed=1, overwrite=True, **few)
    assert json.loads((tmp_path / "sounding_shapes.json").read_text())["seed"] == 1
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "x.parquet").write_bytes(b"")
    with pytest.raises(FileExistsError, match="not a SoundingShapes rendering"):
        render(foreign, **few)


def test_command_line(tmp_path, capsys):
    options = "--rule pair --num_classes 3 --num_train 3 --num_validation 0 --num_test 2 --num_proc 1 --distractors 1"
    main(["--output", str(tmp_path), *options.split()])
    assert "train: 1 shard(s)" in capsys.readouterr().out
    rows = load_benchmark("sounding_shapes", "test", source=tmp_path, streaming=False)
    assert len(rows) == 2
    assert len(rows.features["label"].names) == 9
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--num_classes", "9"])
    assert "num_classes must lie in 2..8, got 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rule": "and"}, "rule"),
        ({"width": 65}, "width"),
        ({"duration": 1.5}, "duration"),
        ({"frame_rate": 0}, "frame_rate"),
        ({"sampling_rate": 11025}, "sampling_rate"),
        ({"distractors": 4}, "distractors"),
        ({"num_train": -1}, "num_train"),
        ({"num_proc": 0}, "num_proc"),
        ({"crf": 60}, "crf"),
    ],
)
def test_invalid_settings_raise_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        render(tmp_path / "new", progress=False, **wrong)
    assert not (tmp_path / "new").exists()


def test_unknown_benchmark_split_and_source_raise(tmp_path):
    with pytest.raises(ValueError, match=r"unknown benchmark 'shapes'.*sounding_shapes"):
        load_benchmark("shapes", "train")
    with pytest.raises(ValueError, match=r"no split 'dev'.*train, validation, test"):
        load_benchmark("sounding_shapes", "dev")
    with pytest.raises(ValueError, match="render it with"):
        load_benchmark("sounding_shapes", "train")
    with pytest.raises(FileNotFoundError, match="no parquet shards"):
        load_benchmark("sounding_shapes", "train", source=tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        load_benchmark("sounding_shapes", "train", source=tmp_path / "nowhere" / "else")


def test_a_stopped_command_explains_how_to_continue(tmp_path, monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_avfusion.data.synthetic.sounding_shapes.render", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path)])
    assert stopped.value.code == 130
    assert "repeat the command to continue" in capsys.readouterr().err


def test_unusable_folders_are_errors_without_a_traceback(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sounding_shapes.json").write_text("{")
    for name, message in (("file", "file"), ("file/below", "file/below"), ("damaged", "other settings")):
        with pytest.raises(SystemExit):
            main(["--output", str(tmp_path / name), "--num_train", "1"])
        assert message in capsys.readouterr().err
