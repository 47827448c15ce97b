"""Configs that contradict themselves or name sizes that no machine has: refused when they are loaded."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_lavish import tiny_config, tiny_model, tiny_segmentation
from transformers import AutoConfig

from hf_avfusion import LavishForAudioVisualClassification
from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig
from hf_avfusion.models.lavish.modeling_lavish_heads import LavishForSegmentation

REFUSED = (ValueError, StrictDataclassError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lavish")
    tiny_model("vit").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layer_norm_eps", float("nan"), r"backbone_config\.layer_norm_eps` must be a finite number"),
        ("layer_norm_eps", -1.0, r"backbone_config\.layer_norm_eps` must be at least 0"),
        ("initializer_range", float("inf"), "finite number"),
        ("hidden_dropout_prob", 2.0, r"hidden_dropout_prob` must lie in \[0, 1\]"),
        ("num_attention_heads", -1, "num_attention_heads` must be at least 1"),
        ("num_hidden_layers", 0, "num_hidden_layers` must be at least 1"),
        ("patch_size", [8, 0], "patch_size` must be at least 1"),
        ("hidden_act", "gelo", "gives no vit: .*gelo"),
        ("num_attention_heads", 2**20, "gives no vit|num_attention_heads"),
        ("model_type", "vti", "cannot be made of these fields: .*vti"),
        ("model_type", None, "cannot be made of these fields|one of the types"),
        ("model_type", [1], "cannot be made of these fields"),
        ("id2label", 5, "cannot be made of these fields"),
        ("dtype", "float99", "cannot be made of these fields"),
    ],
)
def test_wrong_fields_of_a_backbone_are_refused(folder, tmp_path, field, value, message):
    fields = json.loads((folder / "config.json").read_text())
    fields["backbone_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(REFUSED, match=message):
        LavishForAudioVisualClassification.from_pretrained(tmp_path)


def test_wrong_fields_of_a_backbone_that_is_set_later_are_refused():
    config = tiny_config("vit")
    config.backbone_config.layer_norm_eps = float("nan")
    with pytest.raises(REFUSED, match=r"backbone_config\.layer_norm_eps"):
        LavishForAudioVisualClassification(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_size": 0}, "mask_size"),
        ({"decoder_head_widths": [0, 0]}, "decoder_head_widths` must be at least 1"),
        ({"match_loss_weight": -1.0}, "match_loss_weight` must be at least 0"),
        ({"matching_loss_weight": float("nan")}, "matching_loss_weight` must be a finite number"),
        ({"mask_size": 2**20}, "mask_size.*bytes"),
    ],
)
def test_wrong_fields_of_heads_are_refused(fields, message):
    with pytest.raises(REFUSED, match=message):
        LavishForSegmentation(tiny_segmentation(**fields))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"backbone_config": None}, REFUSED, "of one of the types .* got None"),
        ({"backbone_config": {"model_type": "bert"}}, REFUSED, "of one of the types|backbone_config"),
        ({"id2label": 5}, ValueError, "cannot be made of these fields"),
        ({"num_segmets": 2}, TypeError, "num_segmets"),
    ],
)
def test_wrong_fields_given_to_from_pretrained_are_refused(folder, fields, error, message):
    with pytest.raises(error, match=message):
        LavishForAudioVisualClassification.from_pretrained(folder, **fields)
    if "backbone_config" not in fields:
        with pytest.raises(error, match=message):
            AutoConfig.from_pretrained(folder, **fields)
        with pytest.raises(error, match=message):
            LavishTwoStreamConfig.from_pretrained(folder, **fields)
