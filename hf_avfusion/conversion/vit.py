"""Converts a scenic image ViT, as read by `flax.read_train_state`, to the state dict of a transformers `ViTModel`."""

from collections.abc import Mapping

import numpy as np
import torch

from .flax import ConversionError, block_rules, convolution, dense, same


def vit_state_from_flax(params: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """
    Convert Flax parameters to `ViTModel` names, the input of [`MBTForAudioVisualClassification.from_vit`].

    `pre_logits` becomes the pooler of transformers. The head (`output_projection` or `head`) is dropped. Without `cls` the
    result has no CLS token.

    Raises:
        ConversionError: If a tensor is missing or has no target.
    """
    state, used = {}, set()
    rules = {
        "embedding/kernel": ("embeddings.patch_embeddings.projection.weight", convolution),
        "embedding/bias": ("embeddings.patch_embeddings.projection.bias", same),
        "Transformer/posembed_input/pos_embedding": ("embeddings.position_embeddings", same),
        "Transformer/encoder_norm/scale": ("layernorm.weight", same),
        "Transformer/encoder_norm/bias": ("layernorm.bias", same),
    }
    if "cls" in params:
        rules["cls"] = ("embeddings.cls_token", same)
    if "pre_logits/kernel" in params:
        rules["pre_logits/kernel"] = ("pooler.dense.weight", dense)
        rules["pre_logits/bias"] = ("pooler.dense.bias", same)
    blocks = {name.split("/")[1] for name in params if name.startswith("Transformer/encoderblock_")}
    for block in blocks:
        rules.update(block_rules(f"Transformer/{block}", f"layers.{block.removeprefix('encoderblock_')}"))
    for source, (target, layout) in rules.items():
        if source not in params:
            raise ConversionError(f"The ViT checkpoint lacks {source}. Give a scenic ViT checkpoint.")
        try:
            array = layout(np.asarray(params[source]))
        except (ValueError, IndexError) as error:  # too few axes, or empty ones
            shape = np.shape(params[source])
            raise ConversionError(f"{source} has shape {shape}, which does not fit its layer.") from error
        state[target] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        used.add(source)
    unknown = {name for name in set(params) - used if name.split("/")[0] not in ("output_projection", "head")}
    if unknown:
        raise ConversionError(f"The ViT checkpoint has tensors without a target: {sorted(unknown)}.")
    return state
