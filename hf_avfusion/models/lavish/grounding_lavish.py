"""
Starts the grounding and match layers of LAVISH's question-answering head from MUSIC-AVQA's grounding checkpoint, as LAVISH's
trainer does (GeWu-Lab/MUSIC-AVQA, `net_grd_avst/grounding_gen`).
"""

import os
from collections.abc import Mapping

import torch
from torch import nn

from ..shared.torch_files import read_tensors

# Layers with `weight` and `bias` that both originals have: original name -> ours.
GROUNDING_LAYERS = {
    "fc_a2": "audio_dense",
    "fc_gl": "grounding.projection",
    "fc1": "match_head.layers.0",
    "fc2": "match_head.layers.1",
    "fc3": "match_head.layers.2",
    "fc4": "match_head.layers.3",
}
# LAVISH also loads `fc_a1`, into a layer that it never reads; `visual_net` is the grounding model's own ResNet-18.
GROUNDING_UNUSED = ("fc_a1.", "visual_net.")


def read_grounding(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint file of PyTorch, without the prefix of DataParallel. No code of the file runs.

    Raises:
        ValueError: If it is no file of tensors by name; the message names it.
    """
    state = read_tensors(path, "MUSIC-AVQA's grounding checkpoint, its `state_dict()`")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def grounding_state(params: Mapping[str, torch.Tensor], head: nn.Module) -> dict[str, torch.Tensor]:
    """
    The part of the state dict of a question-answering head that the tensors of a grounding checkpoint give.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape; the message names every such tensor.
    """
    kinds, own = ("weight", "bias"), head.state_dict()
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in GROUNDING_LAYERS.items() for kind in kinds}
    problems = []
    if missing := sorted(names.keys() - params.keys()):
        problems.append(f"it lacks {', '.join(missing)}")
    if unknown := sorted(name for name in params if name not in names and not name.startswith(GROUNDING_UNUSED)):
        problems.append(f"it holds {', '.join(unknown)}, which no such checkpoint has")
    if absent := sorted({target for target in names.values() if target not in own}):
        problems.append(f"the model has no {', '.join(absent)} (it needs both modalities)")
    problems += [
        f"{source} has shape {tuple(params[source].shape)}, but {target} of the model has {tuple(own[target].shape)}"
        for source, target in names.items()
        if source in params and target in own and params[source].shape != own[target].shape
    ]
    if problems:
        raise ValueError(f"The grounding checkpoint does not fit: {'; '.join(problems)}.")
    return {target: params[source].to(own[target].dtype) for source, target in names.items()}


__all__ = ["GROUNDING_LAYERS", "GROUNDING_UNUSED", "grounding_state", "read_grounding"]
