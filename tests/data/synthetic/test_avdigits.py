"""AVDigits: each speaker and image is in one split, clips contain the speech, and rows load like any benchmark's."""

import re
import wave
from collections import defaultdict

import numpy as np
import pytest

from hf_avfusion.data.benchmarks.loading import coverage, load_benchmark, row_features
from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.data.synthetic import avdigits
from hf_avfusion.media.reader import probe, read_clip

RATE = 8000


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Tones instead of speech: digit d of speaker s at 300 + 100 d + 7 s Hz, with different lengths."""
    folder = tmp_path_factory.mktemp("speech")
    for digit in range(10):
        for place, speaker in enumerate(("ann", "bob", "cy_d")):
            for number in range(2):
                samples = np.arange(RATE // 4 + 100 * digit + 37 * number)
                tone = np.sin(2 * np.pi * (300 + 100 * digit + 7 * place) * samples / RATE)
                with wave.open(str(folder / f"{digit}_{speaker}_{number}.wav"), "wb") as file:
                    file.setparams((1, 2, RATE, 0, "NONE", ""))
                    file.writeframes((tone * 12000).astype("<i2").tobytes())
    return folder


@pytest.fixture(scope="module")
def shards(speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    avdigits.render(speech, folder, side=32, progress=False)
    return folder


def images(rows):
    return [int(re.search(r"image(\d+)", row["clip_id"])[1]) for row in rows]


def test_speakers_and_images_are_disjoint(shards):
    splits = {split: list(load_benchmark("avdigits", split, source=shards)) for split in ("train", "test")}
    assert {row["speaker"] for row in splits["train"]} == {"ann", "bob"}
    assert {row["speaker"] for row in splits["test"]} == {"cy_d"}
    assert len(splits["train"]) == 40 == coverage("avdigits", "train", shards).present
    assert len(splits["test"]) == 20
    drawn = {split: images(rows) for split, rows in splits.items()}
    assert not set(drawn["train"]) & set(drawn["test"])
    assert all(len(set(numbers)) == len(numbers) for numbers in drawn.values())


def test_every_image_of_a_digit_is_in_one_split(tmp_path):
    """With as many recordings as images: 178 show a zero, of which a third is for testing."""
    for speaker, count in (("ann", 119), ("bob", 59)):
        for number in range(count):
            with wave.open(str(tmp_path / f"0_{speaker}_{number}.wav"), "wb") as file:
                file.setparams((1, 2, RATE, 0, "NONE", ""))
                file.writeframes(bytes(RATE // 10))
    avdigits.render(tmp_path, tmp_path / "shards", side=8, progress=False)
    splits = (images(load_benchmark("avdigits", split, source=tmp_path / "shards")) for split in ("train", "test"))
    train, test = splits
    assert (len(set(train)), len(set(test)), len({*train, *test})) == (119, 59, 178)


def test_clips_contain_matching_speech_and_images(shards):
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = load_benchmark("avdigits", "test", source=shards)
    assert rows.features == row_features(BENCHMARKS["avdigits"])
    seen = defaultdict(int)
    for row, number in zip(rows, images(rows)):
        assert row["clip_id"].startswith(f"{row['label']}_cy_d_")
        assert digits.target[number] == row["label"]
        info = probe(row["video"]["bytes"])
        assert (info.width, info.height, info.sampling_rate) == (32, 32, RATE)
        clip = read_clip(row["video"]["bytes"], frame_times=[0.0, row["end"]], audio_window=(0.0, row["end"]))
        assert clip.waveform.shape[-1] == round(row["end"] * RATE)
        spectrum = np.abs(np.fft.rfft(clip.waveform[0].numpy()))
        pitch = spectrum.argmax() * RATE / clip.waveform.shape[-1]
        assert abs(pitch - (300 + 100 * row["label"] + 14)) < 6
        wanted = avdigits.resize_digit(digits.images[number], 32).astype(float)
        for frame in clip.frames:
            shown = frame.permute(1, 2, 0).numpy().astype(float)
            assert np.corrcoef(shown.ravel(), wanted.ravel())[0, 1] > 0.98
        seen[row["label"]] += 1
    assert seen == dict.fromkeys(range(10), 2)


def test_seed_fixes_the_pairs(speech, shards, tmp_path):
    avdigits.render(speech, tmp_path / "same", side=32, progress=False)
    options = ["--side", "32", "--seed", "1", "--test_speakers", "ann", "bob"]
    avdigits.main(["--speech", str(speech), "--output", str(tmp_path / "other"), *options])
    rows = {name: list(load_benchmark("avdigits", "train", source=name)) for name in (shards, tmp_path / "same")}
    assert rows[shards] == rows[tmp_path / "same"]
    other = list(load_benchmark("avdigits", "train", source=tmp_path / "other"))
    assert {row["speaker"] for row in other} == {"cy_d"}
    assert set(images(other)) != set(images(rows[shards]))


def test_suffix_of_recordings_is_case_insensitive(tmp_path):
    for name in ("b/1_ann_0.WAV", "a/1_ann_0.wav", "a/0_bob_3.Wav", "a/._0_bob_3.wav", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [recording.path.relative_to(tmp_path).as_posix() for recording in avdigits.find_recordings(tmp_path)]
    assert found == ["a/0_bob_3.Wav", "b/1_ann_0.WAV", "a/1_ann_0.wav"]


def test_invalid_inputs_raise(speech, shards, tmp_path, capsys):
    with pytest.raises(FileExistsError, match="already contains parquet shards"):
        avdigits.render(speech, shards)
    with pytest.raises(ValueError, match="test_speakers must be some, not all, of ann, bob, cy_d; got eve"):
        avdigits.render(speech, tmp_path, test_speakers=["eve"])
    with pytest.raises(ValueError, match="side must be even"):
        avdigits.render(speech, tmp_path, side=33)
    with pytest.raises(FileNotFoundError, match="contains no spoken digits"):
        avdigits.render(tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit):
        avdigits.main(["--speech", str(tmp_path / "gone"), "--output", str(tmp_path / "out")])
    (tmp_path / "file").write_bytes(b"")
    assert f"speech (--speech) {tmp_path / 'gone'} does not exist; pass a folder with rec" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"speech \(--speech\) .*file is a file; pass a folder"):
        avdigits.render(tmp_path / "file", tmp_path / "out")
    (tmp_path / "seven.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a name like 7_jackson_32.wav"):
        avdigits.render(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="render it with"):
        load_benchmark("avdigits", "train", source=tmp_path)


def test_real_speech(shared, tmp_path):
    recordings = avdigits.find_recordings(shared / "fsdd")
    assert len(recordings) == 480
    assert avdigits.split_speakers(recordings) == ("theo", "yweweler")
    for recording in recordings[::40]:
        (tmp_path / "speech").mkdir(exist_ok=True)
        (tmp_path / "speech" / recording.path.name).write_bytes(recording.path.read_bytes())
    avdigits.render(tmp_path / "speech", tmp_path / "shards", progress=False)
    rows = [row for split in ("train", "test") for row in load_benchmark("avdigits", split, source=tmp_path / "shards")]
    assert len(rows) == 12
    for row in rows:
        original = read_clip(tmp_path / "speech" / f"{row['clip_id'].split('-')[0]}.wav", audio_window=(0.0, 9.0))
        clip = read_clip(row["video"]["bytes"], audio_window=(0.0, row["end"]))
        assert clip.waveform.shape == original.waveform.shape
        assert np.corrcoef(clip.waveform[0].numpy(), original.waveform[0].numpy())[0, 1] > 0.9
