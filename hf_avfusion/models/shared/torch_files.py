"""Reads checkpoint files of PyTorch (.pt, .pth) as data: the one place that does so. No code of a file runs."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch


def read_tensors(path: str | os.PathLike, needed: str) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint file by name, on the CPU.

    Args:
        path: The file.
        needed: What file it must be, for messages, such as "the original's `model.state_dict()`".

    Raises:
        ValueError: It is not a file of dense tensors of real numbers by name; the message names the file and the tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give {needed}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise errors of many types on files that are not theirs
        raise ValueError(f"{path}: not a PyTorch checkpoint of tensors alone ({error!r:.200}).") from error
    if not isinstance(state, Mapping) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f"{path}: expected tensors by name, {needed}.")
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            kind = "quantized" if value.is_quantized else f"{value.layout}, {value.device}"
            raise ValueError(f"{path}: {name!s:.200} is no dense tensor of real numbers ({value.dtype}, {kind}).")
    return {str(name): value for name, value in state.items()}


__all__ = ["read_tensors"]
