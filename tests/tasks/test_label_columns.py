"""Label columns to a model's configuration: one head, several heads in their order, several labels, and what is refused."""

from types import SimpleNamespace

import datasets
import pytest
import torch
from rendering import render_clip

from hf_avfusion import (
    AVFusionVideoProcessor,
    AVMAEConfig,
    AVMAEForAudioVisualClassification,
    AVMAEProcessor,
    MBTConfig,
)
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.tasks import TASKS
from hf_avfusion.tasks.classification import class_fields
from hf_avfusion.tasks.event_localization import SegmentLabels, segment_fields

FEATURES = datasets.Features(
    {
        "clip_id": datasets.Value("string"),
        "verb": datasets.ClassLabel(names=["cut", "stir", "pour"]),
        "noun": datasets.ClassLabel(names=["knife", "pan"]),
        "tags": datasets.List(datasets.ClassLabel(names=["music", "speech"])),
    }
)


def test_one_head():
    fields = class_fields(FEATURES, ["verb"])
    assert fields["id2label"] == {0: "cut", 1: "stir", 2: "pour"}
    assert (fields["class_splits"], fields["problem_type"]) == (None, "single_label_classification")
    assert class_fields(FEATURES, ["tags"])["problem_type"] == "multi_label_classification"


def test_several_heads_keep_their_order_in_a_saved_configuration(tmp_path):
    MBTConfig(**class_fields(FEATURES, ["verb", "noun"])).save_pretrained(tmp_path)
    config = MBTConfig.from_pretrained(tmp_path)
    assert list(config.class_splits.items()) == [("verb", 3), ("noun", 2)]
    assert [config.id2label[i] for i in range(5)] == ["cut", "stir", "pour", "knife", "pan"]
    assert config.problem_type == "multi_head_classification"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["clip_id"], r"no labels in clip_id: .* are verb, noun, tags"),
        (["verb", "adverb"], r"no labels in adverb"),
        (["verb", "tags"], r"tags holds several labels per clip"),
    ],
)
def test_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        class_fields(FEATURES, columns)


def test_a_class_per_second_goes_from_the_row_to_the_loss():
    fields = segment_fields(FEATURES, ["tags"], SimpleNamespace(num_segments=3))
    assert (fields["num_segments"], fields["problem_type"]) == (3, "single_label_classification")
    frames = AVFusionVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = AVMAEProcessor(frames, num_frames=4, span=3.0, audio_seconds=3.0)
    transform = ClipTransform(processor, TASKS["event_localization"].read_labels(["tags"], fields))
    clip = render_clip(num_frames=75, size=(16, 16), seconds=3.0, audio_codec="flac", container="matroska")
    row = {"clip_id": "a", "video": {"bytes": clip, "path": None}, "tags": [0, 1, 1]}
    batch = AVCollator()([transform(row), transform({**row, "tags": [1, 1, 0]})])
    assert batch["labels"].tolist() == [[0, 1, 1], [1, 1, 0]]
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    config = AVMAEConfig(**sizes, **fields, image_size=16, num_frames=4, spectrogram_length=300, drop_remainder=True)
    output = AVMAEForAudioVisualClassification(config)(**batch)
    assert output.logits.shape == (2, 3, 2)
    assert torch.isfinite(output.loss)
    with pytest.raises(ValueError, match="a class for each of 3 segments"):
        transform({**row, "tags": [0, 1]})
    with pytest.raises(ValueError, match="one label column"):
        SegmentLabels(["verb", "noun"], 3)


def test_one_class_is_no_class_per_second():
    with pytest.raises(ValueError, match="verb holds one class for the whole clip"):
        segment_fields(FEATURES, ["verb"], SimpleNamespace(num_segments=10))
