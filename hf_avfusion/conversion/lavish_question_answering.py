"""
Names of the original's question-answering head (LAVISH on MUSIC-AVQA), and ours. The original's layouts are PyTorch's.

Tables and functions only; they are applied strictly by `flax.convert`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..models.lavish.grounding_lavish import GROUNDING_LAYERS
from ..models.lavish.question_answering_lavish import LavishQuestionAnsweringHead
from .flax import ConversionError, Rule, convert, same

# Layers with `weight` and `bias`: original name -> ours.
LAYERS = {
    "question_encoder.fc": "question_encoder.projection",
    "yb_fc_v": "video_projection",
    "yb_fc_a": "audio_projection",
    **GROUNDING_LAYERS,
    "attn_v.out_proj": "video_attention.o_proj",
    "linear11": "video_attention.fc1",
    "linear12": "video_attention.fc2",
    "norm1": "video_attention.norm",
    "attn_a.out_proj": "audio_attention.o_proj",
    "linear21": "audio_attention.fc1",
    "linear22": "audio_attention.fc2",
    "norm2": "audio_attention.norm",
    "fc_fusion": "fusion",
    "fc_ans": "classifier",
}
# Single tensors: original name -> ours.
TENSORS = {
    "question_encoder.word2vec.weight": "question_encoder.word_embeddings.weight",
    "question_encoder.lstm.weight_ih_l0": "question_encoder.lstm.input_gates.weight",
    "question_encoder.lstm.bias_ih_l0": "question_encoder.lstm.input_gates.bias",
    "question_encoder.lstm.weight_hh_l0": "question_encoder.lstm.hidden_gates.weight",
    "question_encoder.lstm.bias_hh_l0": "question_encoder.lstm.hidden_gates.bias",
}
ATTENTIONS = {"attn_v": "video_attention", "attn_a": "audio_attention"}
PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
)  # the three parts of PyTorch's `in_proj_weight` and `in_proj_bias`, in order
# Layers that the original builds and saves, but that its forward never reads. Its audio enters at `fc_a2`.
UNUSED_LAYERS = ("fc_a1", "fc_a1_pure", "fc_a2_pure", "fc_v", "fc_st", "fc", "fc_aq", "fc_vq", "norm3")
UNUSED = frozenset(f"{layer}.{kind}" for layer in UNUSED_LAYERS for kind in ("weight", "bias"))

Params = Mapping[str, np.ndarray | torch.Tensor]


def head_rules(prefix: str = "") -> dict[str, tuple[str, Rule]]:
    """Original name -> (our name behind `prefix`, layout) for every tensor of the head that it uses.

    The three parts of an `in_proj_weight` or `in_proj_bias` have the names that `split_attention` gives them.
    """
    rules = {source: (f"{prefix}{target}", same) for source, target in TENSORS.items()}
    for kind in ("weight", "bias"):
        rules |= {f"{source}.{kind}": (f"{prefix}{target}.{kind}", same) for source, target in LAYERS.items()}
        for source, target in ATTENTIONS.items():
            for part in PROJECTIONS:
                rules[f"{source}.in_proj_{kind}.{part}"] = (f"{prefix}{target}.{part}.{kind}", same)
    return rules


def split_attention(params: Params) -> dict[str, np.ndarray]:
    """
    The tensors as arrays, each fused `attn_*.in_proj_*` split in three: `attn_v.in_proj_weight.q_proj`, ... Others keep their name.

    Raises:
        ConversionError: If a fused tensor does not have three equal parts.
    """
    split: dict[str, np.ndarray] = {}
    for name, value in params.items():
        array = _array(value)
        if name.rpartition(".")[0] not in ATTENTIONS or not name.rpartition(".")[2].startswith("in_proj_"):
            split[name] = array
        elif array.ndim == 0 or len(array) % len(PROJECTIONS):
            raise ConversionError(
                f"{name} has shape {array.shape}, expected query, key and value of equal width one above the other. Give the "
                "original checkpoint."
            )
        else:
            split |= {f"{name}.{part}": piece for part, piece in zip(PROJECTIONS, np.split(array, len(PROJECTIONS)))}
    return split


def convert_head(params: Params, head: LavishQuestionAnsweringHead) -> dict[str, torch.Tensor]:
    """
    The state dict of `head` from the original's tensors of the head, named without `module.`.

    Raises:
        ConversionError: If a tensor is missing, unknown or of another shape; the message names every such tensor.
    """
    return convert(split_attention(params), head_rules(), _shapes(head), dropped=UNUSED)


def infer_head_fields(params: Params) -> dict[str, Any]:
    """
    Fields of a config that the head's tensors hold. The number of attention heads is not among them.

    Raises:
        KeyError, IndexError: If a tensor is missing.
    """
    words, answers = np.shape(params["question_encoder.word2vec.weight"]), np.shape(params["fc_ans.weight"])
    return {
        "vocab_size": words[0],
        "question_word_size": words[1],
        "question_hidden_size": answers[1],
        "question_feedforward_size": np.shape(params["linear11.weight"])[0],
        "match_hidden_sizes": [np.shape(params[f"fc{number}.weight"])[0] for number in (1, 2, 3)],
        "num_labels": answers[0],
    }


def without_module(params: Params) -> dict[str, np.ndarray | torch.Tensor]:
    """The tensors without the prefix `module.`, if all have it (saved from DataParallel)."""
    if all(name.startswith("module.") for name in params):
        return {name.removeprefix("module."): value for name, value in params.items()}
    return dict(params)


def _shapes(head: LavishQuestionAnsweringHead) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in head.state_dict().items()}


def _array(value: np.ndarray | torch.Tensor) -> np.ndarray:
    return value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
