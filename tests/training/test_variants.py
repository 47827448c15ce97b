"""Fusion variants: their configurations, late fusion after the last layer of the initial model, and early errors."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import ViTConfig

from hf_avfusion.tasks.classification import class_fields
from hf_avfusion.training.recipes import get_recipe
from hf_avfusion.training.recipes.building import build_fresh, build_processor
from hf_avfusion.training.recipes.variants import FUSIONS, variant_fields

SMALL = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16, "fusion_layer": 1}


@pytest.fixture(scope="module")
def parts():
    """A small version of a published recipe, the fields of a head, and the processor."""
    import datasets

    recipe = get_recipe("mbt/vggsound").replace(init=None, model=SMALL, window={"num_frames": 2, "audio_seconds": 1.0})
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
    return recipe, class_fields(features, ["label"]), build_processor(recipe)


def test_variants_have_different_configurations(parts):
    recipe, head, processor = parts
    built = {}
    for fusion in FUSIONS["mbt"]:
        fields = variant_fields(recipe, fusion, head, processor)
        config = build_fresh(recipe.replace(model=fields), head)[1].config
        built[fusion] = (config.fusion, config.share_encoder, config.fusion_layer)
    assert built == {
        "bottleneck": ("bottleneck", False, 1),
        "bottleneck_shared": ("bottleneck", True, 1),
        "self_attention": ("self_attention", False, 1),
        "self_attention_shared": ("self_attention", True, 1),
        "early": ("self_attention", True, 0),
        "late": ("bottleneck", False, 3),
    }


def test_late_fusion_is_after_the_last_layer_of_the_initial_model(parts, tmp_path):
    recipe, head, processor = parts
    ViTConfig(num_hidden_layers=5).save_pretrained(tmp_path)
    model = {name: value for name, value in recipe.model.items() if name != "num_hidden_layers"}
    start = recipe.replace(model=None).replace(init=str(tmp_path), model=model)
    assert variant_fields(start, "late", head, processor)["fusion_layer"] == 5
    assert variant_fields(start, "bottleneck", head, processor)["fusion_layer"] == 1
    with pytest.raises(OSError, match="gone"):
        variant_fields(start.replace(init=str(tmp_path / "gone")), "late", head, processor)


def test_wrong_fields_raise_before_a_model_is_built(parts):
    recipe, head, processor = parts
    with pytest.raises(ValueError, match=r"modalities=\['audio'\] leave nothing to fuse"):
        variant_fields(recipe.replace(model={"modalities": ["audio"]}), "late", head, processor)
    with pytest.raises(StrictDataclassError, match="`fusion_layer` must lie between"):
        variant_fields(recipe.replace(model={"fusion_layer": 9}), "bottleneck", head, processor)
    with pytest.raises(ValueError, match="mbt has no num_segments, which the labels need"):
        variant_fields(recipe, "bottleneck", {**head, "num_segments": 2}, processor)
