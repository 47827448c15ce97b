"""Evaluation of checkpoints: scores against direct calls of the model, and errors for clips that do not match a model."""

import json
import re
import shutil
from itertools import combinations
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from rendering import render_clip

from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.data.benchmarks.splits import SplitRows, load_rows
from hf_avfusion.data.synthetic.sounding_shapes import render
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.clips import EvaluationSet, ModelClasses, label_rows
from hf_avfusion.evaluation.runs import (
    Condition,
    check_modalities,
    conditions_of,
    evaluate_checkpoint,
    load_checkpoint,
    protocol_for,
    settings_of,
)
from hf_avfusion.metrics.classification import average_precision_per_class, multi_head_accuracies, multi_label_metrics
from hf_avfusion.models.avmae.configuration_avmae import AVMAEConfig
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification, MBTModel
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.tasks import TASKS

SHAPES = ["circle", "cross", "triangle", "ring"]


def config(names=(), **options):
    options = {"id2label": dict(enumerate(names)), **options} if names else options
    return MBTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, fusion_layer=1, image_size=16,
        patch_size=8, num_frames=2, num_mel_bins=16, spectrogram_length=16, **options,
    )  # fmt: skip


def model(*arguments, **options):
    torch.manual_seed(0)
    made = MBTForAudioVisualClassification(config(*arguments, **options)).eval()
    torch.nn.init.normal_(made.classifier.weight)  # a new head is zero, so all classes would have equal logits
    return made


def processor():
    side = {"height": 16, "width": 16}
    extractor = AVFusionFeatureExtractor.from_preset(
        "mbt", num_mel_bins=16, hop_length=400, win_length=400, n_fft=512, spectrogram_length=16
    )
    return MBTProcessor(AVFusionVideoProcessor(size=side, crop_size=side), extractor, num_frames=2, span=0.4)


def clips_of(columns, rows, multi_label=False, name="mine", num_segments=None):
    of = SplitRows(name=name, title=name, split="test", rows=rows, num_rows=len(rows))
    fields = {"id2label": dict(enumerate(name for names in columns.values() for name in names))}
    fields |= {"problem_type": "multi_label_classification"} if multi_label else {}
    fields |= {} if num_segments is None else {"num_segments": num_segments}
    task = TASKS["classification" if num_segments is None else "event_localization"]
    return EvaluationSet(**vars(of), task=task, columns=tuple(columns), names=columns, fields=fields)


@pytest.fixture(scope="module")
def rows():
    # Two pictures more each: the windows in the middle hold other pictures, so no two clips have equal scores, whose order
    # in average precision would be one of rounding.
    return [
        {
            "clip_id": f"clip-{index}",
            "video": {
                "bytes": render_clip(num_frames=30 + 2 * index, **({"audio": None} if index == 2 else {})),
                "path": None,
            },
            "start": None,
            "end": None,
            "verb": index % 2,
            "noun": index % 3,
            "labels": [index % 3] if index % 2 else [0, 2],
        }
        for index in range(6)
    ]


def mean_logits(net, transform, row, inputs):
    sample = transform(row)
    with torch.no_grad():
        return net(**{name: sample[name] for name in inputs if name in sample}).logits.mean(0)


BOTH = ("pixel_values", "input_features")


def test_scores_of_heads_equal_direct_calls(rows):
    splits = {"verb": 2, "noun": 3}
    net = model(["take", "put", "cup", "pan", "knife"], class_splits=splits)
    # The clips number the nouns differently from the model.
    clips = clips_of({"verb": ("take", "put"), "noun": ("knife", "cup", "pan")}, rows)
    protocol = protocol_for(net.config, "mine", num_views=3)
    assert (protocol.num_views, protocol.aggregation) == (3, "mean_logits")
    results = evaluate_checkpoint(
        "here", net, processor(), clips, given=("av", "a"), protocol=protocol, batch_size=4, views_per_step=5
    )
    both, audio = results
    transform = ClipTransform(processor(), (), num_views=3)
    logits = torch.stack([mean_logits(net, transform, row, BOTH) for row in rows]).numpy()
    labels = np.array([[row["verb"], [2, 0, 1][row["noun"]]] for row in rows])
    expected = multi_head_accuracies(logits, labels, splits)
    assert both["metrics"] == pytest.approx({name.replace("joint", "action"): v for name, v in expected.items()})
    assert (both["clips"], both["lacking"], audio["clips"], audio["lacking"]) == (6, 0, 5, 1)
    assert (both["views"], both["span"], both["sampling"], both["given"]) == (3, 0.4, "spread", "av")
    nouns = torch.from_numpy(logits[:, 2:]).log_softmax(1).numpy()
    precision = average_precision_per_class(nouns, np.eye(3)[labels[:, 1]])
    assert both["per_class"]["noun"]["average_precision"] == pytest.approx(precision.tolist(), abs=1e-6)
    assert both["per_class"]["noun"]["positives"] == [2, 2, 2]

    with_audio = [row for row in rows if row["clip_id"] != "clip-2"]
    logits = torch.stack([mean_logits(net, transform, row, BOTH[1:]) for row in with_audio]).numpy()
    labels = np.delete(labels, 2, axis=0)
    expected = multi_head_accuracies(logits, labels, splits)
    assert audio["metrics"]["top1_action"] == pytest.approx(expected["top1_joint"])


def test_several_labels_per_clip(rows):
    net = model(["a", "b", "c", "d"], problem_type="multi_label_classification")
    clips = clips_of({"labels": ("b", "a", "d")}, rows, multi_label=True)  # a folder may lack classes
    (result,) = evaluate_checkpoint(
        "here", net, processor(), clips, given=("v",), protocol=protocol_for(net.config, "x", num_views=1)
    )
    targets = np.zeros((6, 4))
    for row, labels in zip(targets, [row["labels"] for row in rows]):
        row[[[1, 0, 3][label] for label in labels]] = 1
    transform = ClipTransform(processor(), (), num_views=1)
    samples = torch.stack([transform(row)["pixel_values"] for row in rows])
    with torch.no_grad():
        expected = multi_label_metrics(net(pixel_values=samples).logits.numpy(), targets)
    assert result["metrics"] == pytest.approx(expected)
    assert result["metrics"]["classes_without_positives"] == 1
    assert result["per_class"]["label"]["positives"] == targets.sum(0).astype(int).tolist()
    assert np.isnan(result["per_class"]["label"]["average_precision"][2])


def test_spans_and_samplings_change_the_windows(rows):
    net, clips = model(["take", "put"]), clips_of({"verb": ("take", "put")}, rows)
    conditions = conditions_of([0.4, 0.8], ["sync", "async"], processor())
    assert conditions == [Condition(), Condition(span=0.8), Condition(sampling="sync"), Condition(sampling="async")]
    protocol = protocol_for(net.config, "mine", num_views=2)
    logits = {}
    seen = net.register_forward_hook(lambda module, inputs, output: logits.setdefault("now", []).append(output.logits))
    options = {"given": ("av", "v"), "conditions": conditions, "protocol": protocol}
    results = evaluate_checkpoint("here", net, processor(), clips, **options)
    first = torch.cat(logits.pop("now"))
    again = evaluate_checkpoint("here", net, processor(), clips, **options)
    assert torch.equal(first, torch.cat(logits.pop("now")))  # the same seed gives the same random windows
    evaluate_checkpoint("here", net, processor(), clips, seed=1, **options)
    assert not torch.equal(first, torch.cat(logits.pop("now")))
    seen.remove()
    assert results == again
    found = [(each["given"], each["span"], each["sampling"]) for each in results]
    assert found == [
        ("av", 0.4, "spread"), ("v", 0.4, "spread"), ("av", 0.8, "spread"), ("v", 0.8, "spread"),
        ("av", 0.4, "sync"), ("av", 0.4, "async"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"a span \(--spans\) must be a positive number"):
        conditions_of([0.0])
    with pytest.raises(ValueError, match=r"sampling \(--sampling\) must be one of"):
        conditions_of([], ["both"])


def test_settings_come_from_the_checkpoint():
    policy = processor()
    policy.window = {**policy.window, "synchronous": False}
    settings = settings_of(config(share_encoder=True), policy)
    assert (settings["fusion_layer"], settings["share_encoder"]) == (1, True)
    assert (settings["trained_span"], settings["trained_synchronous"]) == (0.4, False)
    assert settings_of(MBTConfig(), MBTProcessor())["trained_span"] == 2.56  # 32 frames at 12.5 per second


def test_settings_differ_for_different_models():
    first = settings_of(config(), processor())
    assert first == settings_of(config(drop_path_rate=0.3, label_smoothing=0.1), processor())
    for other in ({"num_bottleneck_tokens": 8}, {"readout": "mean"}, {"bottleneck_update": "video_first"}):
        assert settings_of(config(**other), processor()) != first, other
    strategies = [
        settings_of(AVMAEConfig(encoder_strategy=name), processor()) for name in ("early", "separate", "shared")
    ]
    assert all(one != other for one, other in combinations(strategies, 2))
    assert json.loads(json.dumps(strategies)) == strategies  # results.json keeps them unchanged


def test_check_modalities():
    assert check_modalities(["a", "av", "a"], config()) == ("a", "av")
    with pytest.raises(ValueError, match=r"av, a, v .* got audio"):
        check_modalities(["audio"], config())
    with pytest.raises(ValueError, match="got none"):
        check_modalities([], config())
    with pytest.raises(ValueError, match=r"modalities \(--modalities\) av: the model has no video stream"):
        check_modalities(["a", "av"], config(modalities=("audio",)))
    assert check_modalities(["a"], config(), "esc50") == ("a",)
    # None requests all supported modalities.
    assert check_modalities(None, config()) == ("av", "a", "v")
    assert check_modalities(None, config(modalities=("audio",))) == check_modalities(None, config(), "esc50") == ("a",)
    with pytest.raises(ValueError, match="no audio stream"):
        check_modalities(None, config(modalities=("video",)), "esc50")
    with pytest.raises(ValueError, match=r"modalities \(--modalities\) v: ESC-50 has no video"):
        check_modalities(["a", "v"], config(), "esc50")


@pytest.mark.parametrize(
    ("made", "columns", "options", "message"),
    [
        (config(["dog", "cat"]), {"label": ("dog", "cow", "hen")}, {}, "the model does not have 'cow', 'hen'"),
        (config(num_labels=2), {"label": ("dog", "cat")}, {}, "its id2label holds no names"),
        (config(["dog", "cat", "cow"]), {"label": ("dog", "cat")}, {"name": "ave"}, "does not have 'cow'"),
        (config(["dog", "dog"]), {"label": ("dog",)}, {}, "the same name for two classes"),
        (
            config(["dog", "cat"]),
            {"labels": ("dog", "cat")},
            {"multi_label": True},
            "the model predicts one class per clip",
        ),
    ],
)
def test_mismatched_classes_are_refused(made, columns, options, message):
    with pytest.raises(ValueError, match=message):
        ModelClasses.matched(made, clips_of(columns, [], **options))


# ---------------------------------------------------------------------------------------- loading sets and checkpoints


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    render(folder, num_train=0, num_validation=0, num_test=6, num_proc=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model(SHAPES).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def test_a_benchmark_by_its_name(shards):
    heads = {"shape": 4, "sound": 4}
    rows = load_rows("sounding_shapes", source=str(shards))
    clips = label_rows(rows, config(class_splits=heads))
    assert clips.columns == ("shape", "sound")  # the names of the heads
    assert clips.names["shape"] == tuple(SHAPES)
    assert clips.coverage == {"present": 6, "expected": None, "vanished": None}
    assert "rows" not in clips.describe()
    chosen = label_rows(rows, config(SHAPES), ["shape"])
    assert ModelClasses.matched(config(SHAPES[::-1]), chosen).numbers == ((3, 2, 1, 0),)
    with pytest.raises(
        ValueError,
        match=r"SoundingShapes: there are no columns what, which .*pass label_columns=",
    ):
        label_rows(rows, config(class_splits={"what": 4, "which": 4}))
    with pytest.raises(
        ValueError, match=r"label_columns \(--label_columns\) shape: got 1, but the model has 2 heads: shape, sound"
    ):
        label_rows(rows, config(class_splits=heads), ["shape"])


@pytest.mark.parametrize(
    ("name", "needs", "column"),
    [
        ("ave", "a class for every second", "label"),
        ("avsbench_s4", "a mask", "label"),
        ("music_avqa", "an answer", "answer"),
    ],
)
def test_a_benchmark_of_another_task(name, needs, column):
    record = BENCHMARKS[name]
    rows = SplitRows(name=name, title=record.title, split="test", rows=None, num_rows=None, record=record)
    with pytest.raises(ValueError, match=rf"needs {needs}.*pass label_columns= \(--label_columns\) {column}$"):
        label_rows(rows, config(SHAPES))


def test_a_localiser_on_a_benchmark_of_clips():
    record = BENCHMARKS["vggsound"]
    rows = SplitRows(name="vggsound", title=record.title, split="test", rows=None, num_rows=None, record=record)
    message = "needs a class for the clip, but this model predicts a class for every second. Use a benchmark or a model of the"
    with pytest.raises(ValueError, match=re.escape(message)):
        label_rows(rows, SimpleNamespace(num_segments=10, class_splits=None, num_labels=309))


@pytest.mark.parametrize(
    ("made", "read", "message"),
    [
        (10, None, "predicts a class for every second, but the labels of the clips are a class for the clip"),
        (None, 10, "predicts a class for the clip, but the labels of the clips are a class for every second"),
        (10, 5, "num_segments=10, but the column events of mine needs 5"),
    ],
)
def test_mismatched_numbers_of_segments_are_refused(made, read, message):
    clips = clips_of({"events": ("dog", "cat")}, [], num_segments=read)
    wrong = SimpleNamespace(num_segments=made, problem_type="single_label_classification", class_splits=None)
    with pytest.raises(ValueError, match=message):
        ModelClasses.matched(wrong, clips)


def test_a_folder_of_clips(tmp_path):
    for name in ("test/ring/a.mp4", "test/cross/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(render_clip(num_frames=10))
    clips = label_rows(load_rows(str(tmp_path)), config(SHAPES))
    assert isinstance(clips.rows, datasets.Dataset)
    assert (clips.names, clips.num_rows) == ({"label": ("cross", "ring")}, 2)
    assert ModelClasses.matched(config(SHAPES), clips).numbers == ((1, 3),)


def test_checkpoints(saved, tmp_path):
    loaded, prepared = load_checkpoint(str(saved))
    assert not loaded.training
    assert prepared.to_dict() == processor().to_dict()

    with pytest.raises(ValueError, match=r"is not a checkpoint: it holds no config\.json$"):
        load_checkpoint(str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"holds no config\.json; pass one of its sub-folders with a config\.json: .*{saved.name}"
    ):
        load_checkpoint(str(saved.parent))
    with pytest.raises(ValueError, match="gone is not a checkpoint: pass a folder"):
        load_checkpoint(str(tmp_path / "gone"))
    alone = tmp_path / "alone"
    shutil.copytree(saved, alone)
    (alone / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no processor \(processor_config.json\)"):
        load_checkpoint(str(alone))
    headless = tmp_path / "headless"
    shutil.copytree(saved, headless)
    MBTModel(config()).save_pretrained(headless)  # its head would be initialized at random
    with pytest.raises(ValueError, match=r"does not hold the weights of a MBTForAudioVisualClassification.*classifier"):
        load_checkpoint(str(headless))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="is a vit, which has no head"):
        load_checkpoint(str(other))
