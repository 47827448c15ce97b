"""Layer-wise decay of the learning rate as AV-MAE is fine-tuned with (after BEiT and MAE): early layers learn slower.

Source: supplementary tables A15 and A17 (0.75) and scenic `projects/av_mae`. With L layers, a parameter with the id i learns at
decay ** (L + 1 - i) times the rate: id 0 are patch projections, positions, CLS and modality tokens; id l + 1 is layer l, of
both streams alike; id L + 1, the full rate, is everything else: final norms, head, bottleneck.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

_ENCODER_LAYER = re.compile(r"^(?!decoder\.)(?:.*\.)?layers\.(\d+)\.")


def layer_id(name: str, num_hidden_layers: int) -> int:
    """
    The layer that a parameter of MBT or AV-MAE belongs to; its rate is multiplied by decay ** (num_hidden_layers + 1 - id).

    0 for what makes tokens (patch projections, positions, CLS and modality tokens, the decoder's too), l + 1 for layer l of
    either stream, and `num_hidden_layers + 1`, so no decay, for everything else: final norms, bottleneck, head, decoder,
    as the original counts. Only the joint layers of mid-fusion continue the count of the modalities' own, where its fixed
    number is right for the Base model with two of them only.

    Args:
        name: As in `model.named_parameters()`, with or without the base model's prefix.
        num_hidden_layers: The config's.
    """
    tokens = r"(video|audio)_embeddings\.|decoder\.(video|audio)\.(modality_token|position_embeddings)$"
    if re.search(rf"(^|\.)({tokens})", name):
        return 0
    if re.match(r"decoder\.", name):
        return num_hidden_layers + 1
    layer = re.search(r"(^|\.)layers\.(\d+)\.", name)
    return int(layer[2]) + 1 if layer else num_hidden_layers + 1


def layer_ids(names: Iterable[str]) -> dict[str, int]:
    """`layer_id` of every parameter, where L is the number of encoder layers that the names have.

    The CLS token of the audio stream gets 0 like the video's. (The original's rule knows only the name `cls`, and fine-tunes no
    model that has both.)

    Args:
        names: of all parameters, as `model.named_parameters()` gives them.

    Raises:
        ValueError: no name has a numbered layer, so that depth means nothing.
    """
    names = list(names)
    layers = [int(match[1]) for name in names if (match := _ENCODER_LAYER.search(name))]
    if not layers:
        raise ValueError(
            f"layer_decay needs parameters of numbered layers (`layers.0.`), but there are none among {names[:3]}: leave it out."
        )
    return {name: layer_id(name, max(layers) + 1) for name in names}


def layer_scale(number: int, top: int, decay: float) -> float:
    """decay ** (top - number): what the learning rate of an id is multiplied by; `top` is the highest id, L + 1.

    Raises:
        ValueError: an id outside 0..top, or a decay outside (0, 1].
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
    """Parameter groups for any PyTorch optimiser, one for each id and weight decay, each with an `lr` of its own.

    Args:
        parameters: name -> tensor.
        ids: name -> id, such as of `layer_ids`; the highest one has the full rate.
        learning_rate: the full rate.
        decay: in (0, 1].
        decaying: names to which `weight_decay` applies.

    Returns:
        Groups from the highest id down, so that the rate that a Trainer logs, that of the first group, is the full one.

    Raises:
        ValueError: a parameter without id.
    """
    if missing := sorted(set(parameters) - set(ids)):
        raise ValueError(f"These parameters have no layer id: {', '.join(missing)}.")
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
    """The parameters that the original calls kernels, those of its weight decay: weights of dense layers and convolutions.

    No bias, norm, position, mask, CLS, modality or bottleneck token.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.weight" if name else "weight" for name, module in model.named_modules() if isinstance(module, kinds)
    }
