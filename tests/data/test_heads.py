"""Label columns to a model's configuration: one head, several heads in their order, several labels, and what is refused."""

import datasets
import pytest

from hf_avfusion import AVMAEConfig, MBTConfig
from hf_avfusion.data.heads import head_fields

FEATURES = datasets.Features(
    {
        "clip_id": datasets.Value("string"),
        "verb": datasets.ClassLabel(names=["cut", "stir", "pour"]),
        "noun": datasets.ClassLabel(names=["knife", "pan"]),
        "tags": datasets.List(datasets.ClassLabel(names=["music", "speech"])),
    }
)


def test_one_head():
    fields = head_fields(FEATURES, ["verb"])
    assert fields["id2label"] == {0: "cut", 1: "stir", 2: "pour"}
    assert (fields["class_splits"], fields["problem_type"]) == (None, "single_label_classification")
    assert head_fields(FEATURES, ["tags"])["problem_type"] == "multi_label_classification"


def test_several_heads_keep_their_order_in_a_saved_configuration(tmp_path):
    MBTConfig(**head_fields(FEATURES, ["verb", "noun"])).save_pretrained(tmp_path)
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
        head_fields(FEATURES, columns)


def test_classes_of_a_clips_parts(tmp_path):
    fields = head_fields(FEATURES, ["tags"], num_segments=10)
    assert (fields["num_segments"], fields["problem_type"]) == (10, "single_label_classification")
    assert AVMAEConfig(**fields).num_labels == 2
    with pytest.raises(ValueError, match="verb holds one class for the whole clip"):
        head_fields(FEATURES, ["verb"], num_segments=10)
