"""The ways of fusing that an architecture can be compared in, as variants of a recipe."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .building import config_values
from .recipe import Recipe

LAST = "num_hidden_layers"

# Architecture -> variant -> what sets it apart in its configuration.
FUSIONS: dict[str, dict[str, dict[str, Any]]] = {
    "mbt": {
        "bottleneck": {"fusion": "bottleneck"},
        "bottleneck_shared": {"fusion": "bottleneck", "share_encoder": True},
        "self_attention": {"fusion": "self_attention"},
        "self_attention_shared": {"fusion": "self_attention", "share_encoder": True},
        "early": {"fusion": "self_attention", "share_encoder": True, "fusion_layer": 0},  # one encoder over all tokens
        "late": {"fusion": "bottleneck", "fusion_layer": LAST},  # the streams' logits are averaged
    },
}


def variant_fields(recipe: Recipe, fusion: str, head: dict[str, Any], processor: Any) -> dict[str, Any]:
    """The section `model` of a variant's recipe: `recipe.model` with what `FUSIONS` sets.

    A fresh model's configuration is built of it, so that what it refuses is told before any work; that of a model that starts from
    weights (`recipe.init`) shows with these, of which only the number of layers is read here.

    Args:
        head, processor: as for `building.config_values`.

    Raises:
        ValueError: a single modality. What the configuration raises (ValueError or huggingface_hub's StrictDataclassError); OSError
            where the weights that it starts from are not found.
    """
    fields = {**recipe.model, **FUSIONS[recipe.architecture][fusion]}
    fresh = getattr(CONFIG_MAPPING[recipe.architecture], recipe.size)
    if fields.get("fusion_layer") == LAST:
        start = fresh() if recipe.init is None else AutoConfig.from_pretrained(recipe.init)
        fields["fusion_layer"] = fields.get(LAST, getattr(start, LAST))
    if len(fields.get("modalities", ("audio", "video"))) < 2:
        raise ValueError(f"modalities={fields['modalities']} leave nothing to fuse: take both")
    if recipe.init is None:
        fresh(**config_values(recipe.but(model=fields), head, processor))
    return fields
