"""Checkpoint files as scenic writes them, made from our models: the inverse of the converters, from the specs' tables."""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgpack
import numpy as np
import torch


def encode(array: np.ndarray, dtype: str | None = None, data: bytes | None = None) -> msgpack.ExtType:
    payload = [array.shape, dtype or array.dtype.name, array.tobytes() if data is None else data]
    return msgpack.ExtType(1, msgpack.packb(payload, use_bin_type=True))


def nest(flat: dict) -> dict:
    tree: dict = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def flax_params(
    state: Mapping[str, torch.Tensor], rules: Mapping[str, tuple], heads: Callable[[str], int]
) -> dict[str, np.ndarray]:
    """Head axes split, kernels transposed; `heads` gives the number of attention heads at a Flax path."""
    params = {}
    for path, (name, _) in rules.items():
        value = state[name].numpy()
        if path.endswith("/kernel") and any(f"/{part}/" in path for part in ("query", "key", "value")):
            value = value.T.reshape(value.shape[1], heads(path), -1)
        elif path.endswith("/bias") and any(f"/{part}/" in path for part in ("query", "key", "value")):
            value = value.reshape(heads(path), -1)
        elif path.endswith("/out/kernel"):
            value = value.T.reshape(heads(path), -1, value.shape[0])
        elif path.endswith("/kernel") and value.ndim > 2:
            value = np.moveaxis(value, (0, 1), (-1, -2))
        elif path.endswith("/kernel"):
            value = value.T
        params[path] = np.ascontiguousarray(value)
    return params


def write(path: Path, params: dict, nesting: str = "optimizer", model_state: dict | None = None) -> None:
    """`nesting`: "optimizer" for old train states, "params" or "params_params" for new ones."""
    tree = nest({name: encode(value) if isinstance(value, np.ndarray) else value for name, value in params.items()})
    state = nest({name: encode(value) for name, value in (model_state or {}).items()})
    trees = {
        "optimizer": {"optimizer": {"target": tree, "state": {"step": 3}}, "global_step": 3, "model_state": state},
        "params": {"params": tree, "model_state": state},
        "params_params": {"params": {"params": tree}, "global_step": encode(np.int32(3)[None])},
    }
    path.write_bytes(msgpack.packb(trees[nesting], use_bin_type=True))
