"""Layer-wise learning rate decay for fine-tuning AV-MAE (after BEiT and MAE): earlier layers have lower learning rates.

Source: supplementary tables A15 and A17 (0.75) and scenic `projects/av_mae`. With L layers, the learning rate of a parameter with
id i is multiplied by decay ** (L + 1 - i). Id 0 are patch projections, positions, CLS and modality tokens. Id l + 1 is layer l of
both streams. Id L + 1, with the full rate, are all other parameters: final norms, head, bottleneck.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

_ENCODER_LAYER = re.compile(r"^(?!decoder\.)(?:.*\.)?layers\.(\d+)\.")


def layer_id(name: str, num_hidden_layers: int) -> int:
    """The layer id of a parameter of MBT or AV-MAE; its rate is multiplied by decay ** (num_hidden_layers + 1 - id).

    The id is 0 for token embeddings (patch projections, positions, CLS and modality tokens, also those of the decoder), l + 1
    for layer l of either stream, and `num_hidden_layers + 1`, so no decay, for all other parameters (final norms, bottleneck,
    head, decoder). The original counts the same, with one difference: here the joint layers of mid-fusion continue the count of
    each modality's layers, while the original's fixed number is right only for the Base model with two joint layers.

    Args:
        name: name as in `model.named_parameters()`, with or without the base model's prefix.
        num_hidden_layers: number of hidden layers of the config.
    """
    tokens = r"(video|audio)_embeddings\.|decoder\.(video|audio)\.(modality_token|position_embeddings)$"
    if re.search(rf"(^|\.)({tokens})", name):
        return 0
    if re.match(r"decoder\.", name):
        return num_hidden_layers + 1
    layer = re.search(r"(^|\.)layers\.(\d+)\.", name)
    return int(layer[2]) + 1 if layer else num_hidden_layers + 1


def layer_ids(names: Iterable[str]) -> dict[str, int]:
    """`layer_id` of every parameter, where L is the number of encoder layers in the names.

    The CLS token of the audio stream has id 0, as that of the video stream. (The original's rule covers only the name `cls`, and
    the original fine-tunes no model that has both.)

    Args:
        names: names of all parameters, as in `model.named_parameters()`.

    Raises:
        ValueError: no name holds a layer number, so that depth is undefined.
    """
    names = list(names)
    layers = [int(match[1]) for name in names if (match := _ENCODER_LAYER.search(name))]
    if not layers:
        raise ValueError(
            f"layer_decay needs parameters of numbered layers (`layers.0.`), but got names such as {names[:3]}: leave it out."
        )
    return {name: layer_id(name, max(layers) + 1) for name in names}


def layer_scale(number: int, top: int, decay: float) -> float:
    """The factor of the learning rate of an id, decay ** (top - number); `top` is the highest id, L + 1.

    Raises:
        ValueError: the id is outside 0..top, or the decay outside (0, 1].
    """
    if not 0 <= number <= top:
        raise ValueError(f"A layer id must lie between 0 and {top}, got {number}.")
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"layer_decay must lie in (0, 1], got {decay}.")
    return decay ** (top - number)


def layerwise_groups(
    parameters: Mapping[str, torch.Tensor],
    ids: Mapping[str, int],
    learning_rate: float,
    decay: float,
    *,
    decaying: Iterable[str] = (),
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups for any PyTorch optimiser, one for each id and weight decay, each with its own `lr`.

    Args:
        parameters: name -> tensor.
        ids: name -> id, for example from `layer_ids`; the highest id has the full rate.
        learning_rate: the full rate.
        decay: factor between layers, in (0, 1].
        decaying: names of the parameters with weight decay.

    Returns:
        Groups from the highest id to the lowest. The Trainer logs the rate of the first group, which is the full rate.

    Raises:
        ValueError: a parameter has no id.
    """
    if missing := sorted(set(parameters) - set(ids)):
        raise ValueError(f"These parameters have no layer id: {', '.join(missing)}. Give an id for every parameter.")
    top = max(ids.values())
    decaying = set(decaying)
    groups: dict[tuple[int, bool], list[torch.Tensor]] = {}
    for name, parameter in parameters.items():
        groups.setdefault((ids[name], name in decaying), []).append(parameter)
    return [
        {
            "params": members,
            "lr": learning_rate * layer_scale(number, top, decay),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (number, decays), members in sorted(groups.items(), key=lambda entry: entry[0], reverse=True)
    ]


def kernel_names(model: nn.Module) -> set[str]:
    """The names of the parameters with weight decay, which the original calls kernels: weights of dense layers and convolutions.

    They include no bias, norm, position, mask, CLS, modality or bottleneck token.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.weight" if name else "weight" for name, module in model.named_modules() if isinstance(module, kinds)
    }
