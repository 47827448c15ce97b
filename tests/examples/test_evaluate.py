"""examples/evaluate.py: errors before the first evaluation, kept results, and event localisation for each second."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from rendering import render_clip

from hf_avfusion.data.benchmarks.loading import load_benchmark
from hf_avfusion.data.benchmarks.records import read_labels
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.models.avmae.configuration_avmae import AVMAEConfig
from hf_avfusion.models.avmae.modeling_avmae import AVMAEForAudioVisualClassification
from hf_avfusion.models.avmae.processing_avmae import AVMAEProcessor
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.tasks.event_localization import SegmentLabels

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "evaluate.py"
SIDE = {"height": 16, "width": 16}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("evaluate_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluate_example", module)  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def evaluate(script, monkeypatch):
    """Calls the script's `main` with arguments."""

    def run(*arguments):
        command = ["evaluate.py", *map(str, arguments), "--device", "cpu", "--workers", "0"]
        monkeypatch.setattr(sys, "argv", command)
        PartialState._reset_state()
        return script.main()

    return run


def save_checkpoint(folder, names=("cross", "ring"), seed=0, **options):
    """An MBT for two frames and 0.16 s of audio."""
    extractor = AVFusionFeatureExtractor.from_preset("mbt", num_mel_bins=16, spectrogram_length=16)
    videos = AVFusionVideoProcessor(size=SIDE, crop_size=SIDE)
    MBTProcessor(videos, extractor, num_frames=2, span=0.4).save_pretrained(folder)
    torch.manual_seed(seed)
    config = MBTConfig(
        **SIZES, fusion_layer=1, image_size=16, num_frames=2, num_mel_bins=16, spectrogram_length=16,
        id2label=dict(enumerate(names)), **options,
    )  # fmt: skip
    model = MBTForAudioVisualClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A user's own videos: one class without audio, one with."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("cross/a", "cross/b", "ring/a", "ring/b")):
        path = folder / "test" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(render_clip(num_frames=20 + number, size=(32, 32), audio=None if number < 2 else "chirp"))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def no_evaluation(script, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("an evaluation started")

    monkeypatch.setattr(script.runs, "evaluate_pass", fail)


def test_duplicate_checkpoint_fails_before_the_evaluation(evaluate, no_evaluation, checkpoint, clips, tmp_path, capsys):
    (tmp_path / "link").symlink_to(checkpoint)
    command = ["--checkpoint", checkpoint, "--runs", tmp_path / "link", "--benchmark", clips]
    assert evaluate(*command, "--output", tmp_path / "report") == 1
    assert "contain a duplicate, which would count as two runs" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_checkpoint_of_earlier_results_fails_before_the_evaluation(
    evaluate, script, checkpoint, clips, tmp_path, capsys, monkeypatch
):
    plain = ["--checkpoint", checkpoint, "--benchmark", clips, "--views", "1"]
    assert evaluate(*plain, "--output", tmp_path / "first", "--modalities", "av") == 0
    results = json.loads((tmp_path / "first" / "results.json").read_text())
    assert [(each["given"], each["clips"]) for each in results["evaluations"]] == [("av", 4)]

    # An evaluation with other windows is added to the first one.
    again = ["--runs", tmp_path / "first", "--output", tmp_path / "both"]
    assert evaluate(*plain[:-1], "2", "--modalities", "av", *again) == 0
    both = json.loads((tmp_path / "both" / "results.json").read_text())
    assert [(row["views"], row["n"]) for row in both["summary"]] == [(1, 1), (2, 1)]

    def fail(*arguments, **options):
        raise AssertionError("an evaluation started")

    monkeypatch.setattr(script.runs, "evaluate_pass", fail)
    # These windows are not random, so another seed does not make another run.
    assert evaluate(*plain, "--seed", "1", *again) == 1
    error = capsys.readouterr().err
    assert f"error: {checkpoint}: the same checkpoint twice under the same condition (audio and video, 0.4 s," in error
    assert "no checkpoint that a given results.json already holds" in error


def test_results_on_other_clips_are_not_overwritten(evaluate, checkpoint, clips, tmp_path, capsys):
    plain = ["--checkpoint", checkpoint, "--views", "1", "--modalities", "av", "--output", tmp_path / "report"]
    assert evaluate(*plain, "--benchmark", clips) == 0
    assert evaluate(*plain, "--benchmark", f"{clips}/") == 0  # the same clips
    earlier = (tmp_path / "report" / "results.json").read_text()
    other = tmp_path / "other"
    shutil.copytree(clips, other)
    assert evaluate(*plain, "--benchmark", other) == 1
    error = capsys.readouterr().err
    assert (
        f"--output {tmp_path / 'report'} holds results on other clips, which would be overwritten: their name is"
        in error
    )
    assert "give another --output, or remove" in error
    assert (tmp_path / "report" / "results.json").read_text() == earlier
    next(other.rglob("*.mp4")).unlink()  # fewer clips under the same name
    shutil.move(clips, tmp_path / "moved")
    shutil.move(other, clips)
    assert evaluate(*plain, "--benchmark", clips) == 1
    assert "their number of clips is 4, here it is 3" in capsys.readouterr().err
    shutil.rmtree(clips)
    shutil.move(tmp_path / "moved", clips)
    (tmp_path / "report" / "results.json").write_text("{}")
    assert evaluate(*plain, "--benchmark", clips) == 1
    assert "results.json has no benchmark, classes, evaluations" in capsys.readouterr().err


def test_passes_of_earlier_evaluations_are_not_repeated(evaluate, checkpoint, clips, tmp_path):
    """A stopped evaluation is resumed, and random windows are evaluated with several seeds."""
    drawn = ["--benchmark", clips, "--views", "1", "--modalities", "av", "--sampling", "async", "--output", tmp_path]
    assert evaluate("--checkpoint", checkpoint, *drawn) == 0
    first = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    assert evaluate("--checkpoint", checkpoint, *drawn, "--seed", "1", "--spans", "0.2", "--runs", tmp_path) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["evaluations"][:2] == first
    found = [(each["span"], each["sampling"], each["seed"]) for each in results["evaluations"]]
    assert found == [(0.4, "spread", 0), (0.4, "async", 0), (0.2, "spread", 1), (0.4, "async", 1)]
    assert [row["n"] for row in results["summary"]] == [1, 2, 1]
    assert "Seeds 0, 1; " in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spans", "2,x"], "--spans 2,x: 'x' is not a number of seconds"),
        (["--spans", "0"], "a span (--spans) must be a positive number of seconds, got 0.0"),
        (["--sampling", "both"], "sampling (--sampling) must be one of spread, sync, async, got 'both'"),
        (
            ["--modalities", "audio"],
            "modalities (--modalities) must be some of av, a, v (both, audio, video), got audio",
        ),
        (["--views", "0"], "--views must be at least 1, got 0"),
        (["--crops", "2"], "--crops must be 1 or 3, got 2"),
        (["--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["--benchmark", "nope"], "nope is neither a file, a folder nor the name of a benchmark"),
        (["--benchmark", "audioset", "--split", "test"], "--split test: AudioSet has no such split; its splits are: "),
        (["--benchmark", "esc50", "--variant", "fold9"], "ESC-50 has no variant 'fold9'"),
        (["--source", "clips"], "source= (--source): allowed only for the benchmarks vggsound,"),
        (["--runs", "gone.json"], "gone.json: no such file"),
    ],
)
def test_wrong_options_fail_before_a_checkpoint_is_loaded(evaluate, clips, options, message, capsys):
    base = ["--checkpoint", "some/checkpoint", *([] if "--benchmark" in options else ["--benchmark", clips])]
    assert evaluate(*base, *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "some/checkpoint" not in error


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        ({}, ("cross", "disc"), "{folder}: the classes of the model's head label are not those"),
        ({}, ("cross", "ring", "disc"), "{folder}: its heads or classes differ from those of {first}"),
        (
            {"modalities": ("audio",)},
            ("cross", "ring"),
            "{folder}: modalities (--modalities) av: the model has no video",
        ),
    ],
)
def test_wrong_checkpoint_is_named(
    evaluate, no_evaluation, checkpoint, clips, tmp_path, capsys, options, names, message
):
    other = save_checkpoint(tmp_path / "other", names, **options)
    command = ["--checkpoint", checkpoint, "--runs", other, "--benchmark", clips, "--output", tmp_path / "report"]
    assert evaluate(*command, "--modalities", "av") == 1
    assert f"error: {message.format(folder=other, first=checkpoint)}" in capsys.readouterr().err


def test_aggregation_for_other_models_fails(evaluate, no_evaluation, checkpoint, clips, capsys):
    assert evaluate("--checkpoint", checkpoint, "--benchmark", clips, "--aggregation", "max_logits") == 1
    assert "--aggregation: max_logits is for models of several labels per clip" in capsys.readouterr().err


def test_default_modalities_are_those_of_each_model(evaluate, checkpoint, clips, tmp_path):
    audio_only = save_checkpoint(tmp_path / "audio", modalities=("audio",))
    options = ["--benchmark", clips, "--views", "1", "--output", tmp_path]
    assert evaluate("--runs", checkpoint, audio_only, *options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    found = [(each["checkpoint"], each["given"], each["clips"]) for each in results["evaluations"]]
    assert found == [
        *((str(checkpoint), given, n) for given, n in (("av", 4), ("a", 2), ("v", 4))),
        (str(audio_only), "a", 2),
    ]


def test_modality_that_no_clip_has_is_skipped(evaluate, checkpoint, clips, tmp_path, caplog):
    table = tmp_path / "silent.csv"
    table.write_text("file,label,split\n" + "".join(f"{clips}/test/cross/{n}.mp4,cross,test\n" for n in "ab"))
    command = ["--checkpoint", checkpoint, "--benchmark", table, "--views", "1", "--output", tmp_path / "report"]
    assert evaluate(*command) == 0
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [(each["given"], each["clips"]) for each in results["evaluations"]] == [("av", 2), ("v", 2)]
    assert "no clips with audio to evaluate" in caplog.text


def test_failing_pass_keeps_earlier_results(evaluate, script, checkpoint, clips, tmp_path, capsys, monkeypatch):
    scored = script.runs.evaluate_pass

    def fail_later(model, planned, *arguments, **options):
        if planned.evaluations[0]["span"] != 0.4:
            raise ValueError("the disk is gone")
        return scored(model, planned, *arguments, **options)

    monkeypatch.setattr(script.runs, "evaluate_pass", fail_later)
    command = ["--checkpoint", checkpoint, "--benchmark", clips, "--views", "1", "--spans", "0.2"]
    assert evaluate(*command, "--modalities", "v", "--output", tmp_path) == 1
    kept = f"the finished passes are in {tmp_path}/results.json"
    assert f"error: {checkpoint}: the disk is gone; {kept}" in capsys.readouterr().err
    (each,) = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    assert (each["given"], each["span"]) == ("v", 0.4)


# ---------------------------------------------------------------------------------------------------- event localisation


@pytest.fixture(scope="module")
def ave(tmp_path_factory):
    """Three 10 s clips, named and annotated as in AVE; the event of the second lasts from 4 to 7 s."""
    folder = tmp_path_factory.mktemp("ave")
    lines = ["Church bell&one&good&0&10", "Helicopter&two&good&4&7", "Church bell&three&good&6&10"]
    (folder / "testSet.txt").write_text("\n".join(lines) + "\n")
    for number, name in enumerate(("one", "two", "three")):
        clip = render_clip(num_frames=40, fps=4, size=(32, 32), seconds=10.0, sampling_rate=16000 + 8000 * number)
        (folder / f"{name}.mp4").write_bytes(clip)
    return folder


@pytest.fixture(scope="module")
def localiser(tmp_path_factory):
    """A model whose class order differs from the benchmark's."""
    folder = tmp_path_factory.mktemp("localiser")
    extractor = AVFusionFeatureExtractor.from_preset(
        "mbt", num_mel_bins=16, hop_length=1600, win_length=1600, n_fft=2048, spectrogram_length=100
    )
    videos = AVFusionVideoProcessor(size=SIDE, crop_size=SIDE)
    AVMAEProcessor(videos, extractor, num_frames=4, span=10, audio_seconds=10).save_pretrained(folder)
    torch.manual_seed(0)
    config = AVMAEConfig(
        **SIZES, image_size=16, num_frames=4, num_mel_bins=16, spectrogram_length=100, num_segments=10, drop_remainder=True,
        id2label=dict(enumerate(read_labels("ave_events")[::-1])), problem_type="single_label_classification",
    )  # fmt: skip
    model = AVMAEForAudioVisualClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return folder


def test_every_second_is_scored(evaluate, ave, localiser, tmp_path):
    command = ["--checkpoint", localiser, "--benchmark", "ave", "--source", ave, "--output", tmp_path]
    assert evaluate(*command, "--modalities", "av,a") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    both, audio = results["evaluations"]
    assert (both["given"], audio["given"], both["clips"], both["views"]) == ("av", "a", 3, 1)
    assert (results["benchmark"]["columns"], results["benchmark"]["num_segments"]) == (["events"], 10)

    # Computed by hand with the benchmark's class numbers: class n is class 28 - n of the model.
    model = AVMAEForAudioVisualClassification.from_pretrained(localiser).eval()
    transform = ClipTransform(AVMAEProcessor.from_pretrained(localiser), SegmentLabels("events", 10))
    right = []
    for row in load_benchmark("ave", "test", source=ave):
        sample = transform(row)
        with torch.no_grad():
            logits = model(
                pixel_values=sample["pixel_values"][None], input_features=sample["input_features"][None]
            ).logits
        assert logits.shape == (1, 10, 29)
        right += (28 - logits[0].argmax(dim=1) == sample["labels"]).tolist()
    assert both["metrics"] == {"accuracy": pytest.approx(sum(right) / 30)}
    positives = dict(zip(results["classes"]["label"], both["per_class"]["label"]["positives"]))
    assert {name: number for name, number in positives.items() if number} == {
        "Church bell": 14, "Helicopter": 3, read_labels("ave_events")[28]: 13,
    }  # fmt: skip
    assert "accuracy of segments (%)" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "per_class_ap.csv").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "4"], "got 4 views (--views) for a model for audio-visual event localisation"),
        (
            ["--spans", "5"],
            "spans (--spans) and random windows (--sampling) are not supported for audio-visual event localisation",
        ),
        (["--sampling", "sync"], "spans (--spans) and random windows (--sampling) are not"),
        (
            ["--label_columns", "label"],
            "num_segments=10 (event localisation) needs a label column with a list of classes",
        ),
    ],
)
def test_wrong_options_for_event_localisation_fail(evaluate, no_evaluation, ave, localiser, options, message, capsys):
    assert evaluate("--checkpoint", localiser, "--benchmark", "ave", "--source", ave, *options) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {localiser}: {message}")


@pytest.mark.parametrize("allowed", [False, True])
def test_allow_urls_reaches_the_clips_of_a_benchmark(script, ave, localiser, tmp_path, monkeypatch, allowed):
    command = ["--checkpoint", localiser, "--benchmark", "ave", "--source", ave, "--output", tmp_path]
    command += ["--allow_urls", allowed]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, command)])
    _, _, jobs, _ = script.prepare(script.parse())
    assert [planned.samples.transform.allow_urls for _, _, passes in jobs for planned in passes] == [allowed]


def test_clip_classifier_is_offered_only_the_label_column(evaluate, no_evaluation, ave, checkpoint, capsys):
    assert evaluate("--checkpoint", checkpoint, "--benchmark", "ave", "--source", ave) == 1
    assert capsys.readouterr().err.endswith("pass label_columns= (--label_columns) label\n")
