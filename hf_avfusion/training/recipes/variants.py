"""The fusion variants of an architecture, as changes to a recipe."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .building import config_values
from .fusions import FUSIONS, LAST
from .recipe import Recipe


def variant_fields(recipe: Recipe, fusion: str, head: dict[str, Any], processor: Any) -> dict[str, Any]:
    """The section `model` of a variant's recipe: `recipe.model` with the fields of `FUSIONS`.

    For a model with random weights it also builds the configuration, so that wrong fields fail early. For a model that starts
    from weights (`recipe.init`) it reads only the number of layers; wrong fields fail when these are loaded.

    Args:
        head, processor: as for `building.config_values`.

    Raises:
        ValueError: the recipe has a single modality. The configuration may raise ValueError or huggingface_hub's
            StrictDataclassError. OSError: `recipe.init` is not found.
    """
    fields = {**recipe.model, **FUSIONS[recipe.architecture][fusion]}
    make_config = getattr(CONFIG_MAPPING[recipe.architecture], recipe.size)
    if fields.get("fusion_layer") == LAST:
        start = make_config() if recipe.init is None else AutoConfig.from_pretrained(recipe.init)
        fields["fusion_layer"] = fields.get(LAST, getattr(start, LAST))
    if len(fields.get("modalities", ("audio", "video"))) < 2:
        raise ValueError(f"modalities={fields['modalities']} leave nothing to fuse: give both, video and audio")
    if recipe.init is None:
        make_config(**config_values(recipe.replace(model=fields), head, processor))
    return fields
