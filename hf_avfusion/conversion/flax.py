"""Reads Flax parameters (MessagePack train states of scenic) and converts their layouts to PyTorch's."""

import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

ARRAY, COMPLEX, SCALAR = 1, 2, 3  # extension codes of flax.serialization
CHUNKED = "__msgpack_chunked_array__"
MAX_DEPTH = 64  # of nested maps; scenic's trees have about ten levels

FlatParams = dict[str, np.ndarray]


class ConversionError(ValueError):
    """A checkpoint cannot be read, or its tensors do not match our model's."""


def check_label_names(fields: Mapping, num_labels: int) -> None:
    """Check that `id2label`, if given, names every class of the head. transformers would replace incomplete names.

    Raises:
        ConversionError: If it does not; the message says what is expected.
    """
    given = fields.get("id2label")
    if given is None:
        return
    try:
        numbers = {int(number) for number, _ in given.items()}
    except (AttributeError, TypeError, ValueError):
        numbers = None
    if numbers != set(range(num_labels)):
        raise ConversionError(
            f"The head of the checkpoint has {num_labels} classes, so `id2label` must have the keys "
            f'"0" to "{num_labels - 1}", got {str(given)[:80]}.'
        )


def read_train_state(path: str | os.PathLike) -> FlatParams:
    """
    Parameters of a scenic checkpoint file, as `{"a/b/kernel": array}`.

    Reads weights from `optimizer/target` (old train states), else `params`; one extra level `params` is descended. Running
    statistics of batch normalisation, under `model_state/batch_stats`, are named `batch_stats/...`. The optimiser state is not
    read.

    Raises:
        ConversionError: If the file is not such a MessagePack map; the message names the file and what was found.
    """
    import msgpack

    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # to read a pipe may block for ever
        raise ConversionError(f"{path}: is a pipe or a device. Give a checkpoint file.")
    try:
        # msgpack checks lengths against the bytes present, so a forged header cannot claim memory.
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_decode_extension, raw=False, strict_map_key=True)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error}).") from error
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ConversionError(f"{path}: not a Flax MessagePack checkpoint ({error}).") from error
    if not isinstance(tree, dict):
        raise ConversionError(f"{path}: holds a {type(tree).__name__}, expected a map with `optimizer` or `params`.")
    weights = tree.get("optimizer", {}).get("target") if isinstance(tree.get("optimizer"), dict) else None
    weights = tree.get("params") if weights is None else weights
    if isinstance(weights, dict) and set(weights) == {"params"}:
        weights = weights["params"]
    if not isinstance(weights, dict):
        keys = reprlib.repr(sorted(map(str, tree)))
        raise ConversionError(f"{path}: expected `optimizer/target` or `params`, got the keys {keys}.")
    try:
        flat = flatten(weights)
        state = tree.get("model_state")
        if isinstance(state, Mapping) and isinstance(state.get("batch_stats"), Mapping):
            statistics = flatten(state["batch_stats"], "batch_stats/")
        else:
            statistics = {}
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    if not flat:
        raise ConversionError(f"{path}: its parameter tree is empty.")
    return {**flat, **statistics}


def flatten(tree: Mapping, prefix: str = "") -> FlatParams:
    """Flattens nested maps to `{"a/b": array}`. Empty maps are dropped.

    Raises:
        ConversionError: A value is not an array of numbers, two have one name, or the maps are nested too deeply.
    """
    flat: FlatParams = {}
    for name, value in _leaves(tree, prefix, MAX_DEPTH):
        if name in flat:
            raise ConversionError(f"It has two tensors {name}. Give the original checkpoint.")
        if isinstance(value, Mapping):
            try:
                value = _join_chunks(value)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise ConversionError(f"The chunks of {name} do not make an array ({error!r}).") from error
        if not isinstance(value, (np.ndarray, np.generic, int, float)) or np.asarray(value).dtype.kind not in "biuf":
            raise ConversionError(f"{name} holds {reprlib.repr(value)}, expected an array of real numbers.")
        flat[name] = np.asarray(value)
    return flat


def _leaves(tree: Mapping, prefix: str, depth: int) -> Iterator[tuple[str, object]]:
    """Names and values of nested maps; the chunks of an array are one value."""
    if depth == 0:
        raise ConversionError(f"Its maps are nested more than {MAX_DEPTH} deep. Give the original checkpoint.")
    for key, value in tree.items():
        if isinstance(value, Mapping) and CHUNKED not in value:
            yield from _leaves(value, f"{prefix}{key}/", depth - 1)
        else:
            yield f"{prefix}{key}", value


def shape_of(params: Mapping[str, np.ndarray], name: str, *axes: int) -> tuple[int, ...]:
    """The shape of a tensor with one of these numbers of axes, none of them empty.

    Raises:
        ConversionError: There is none.
    """
    if name not in params:
        raise ConversionError(f"The checkpoint lacks {name}; its tensors are {reprlib.repr(sorted(params))}.")
    shape = params[name].shape
    if len(shape) not in axes or 0 in shape:
        wanted = " or ".join(map(str, axes))
        raise ConversionError(f"{name} has shape {shape}, expected {wanted} axes, none of them empty.")
    return shape


@contextmanager
def naming_file(path: str | os.PathLike, given: bool) -> Iterator[None]:
    """Turns other errors, of tensors that contradict each other, into a ConversionError that names the file.

    Args:
        given: Whether the caller passed config fields. Errors about types of their values stay as they are.
    """
    kinds: tuple[type[Exception], ...] = (LookupError,)
    if not given:
        kinds += (TypeError, AttributeError, ArithmeticError, StrictDataclassError)
    try:
        yield
    except kinds as error:
        what = "its tensors and the given config" if given else "its tensors"
        cause = " ".join(str(error).split())
        raise ConversionError(f"{path}: {what} do not make a model ({type(error).__name__}: {cause}).") from error


def _decode_extension(code: int, payload: bytes):
    import msgpack

    if code not in (ARRAY, COMPLEX, SCALAR):
        raise ValueError(f"unknown extension type {code}")
    try:
        if code == COMPLEX:
            return complex(*msgpack.unpackb(payload))
        shape, dtype, data = msgpack.unpackb(payload, raw=False)
        array = _from_bytes(data, dtype).reshape(shape)
        return array[()] if code == SCALAR else array
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"an array cannot be read: {error}") from error


def _from_bytes(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(data, dtype="<u2").astype("<u4") << 16).view("<f4")
    if not isinstance(dtype, str):
        raise ValueError(f"its dtype is {reprlib.repr(dtype)}")
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise ValueError(f"arrays of dtype {dtype} are not supported")
    return np.frombuffer(data, dtype=kind)


def _join_chunks(value: Mapping) -> np.ndarray:
    def in_order(table: Mapping) -> list:
        return [table[str(i)] for i in range(len(table))]

    chunks = np.concatenate([np.asarray(chunk).ravel() for chunk in in_order(value["chunks"])])
    return chunks.reshape([int(size) for size in in_order(value["shape"])])


# Layouts: each function converts a Flax array to our tensor.
def same(array: np.ndarray) -> np.ndarray:
    """Biases, norms, tokens, positions."""
    return array


def dense(array: np.ndarray) -> np.ndarray:
    """(in, out) -> Linear (out, in)."""
    return array.T


def heads_in(array: np.ndarray) -> np.ndarray:
    """Query, key or value kernel (d, H, h) -> Linear (H*h, d)."""
    return array.reshape(array.shape[0], -1).T


def heads_bias(array: np.ndarray) -> np.ndarray:
    """Query, key or value bias (H, h) -> (H*h,)."""
    return array.reshape(-1)


def heads_out(array: np.ndarray) -> np.ndarray:
    """Output kernel (H, h, d) -> Linear (d, H*h)."""
    return array.reshape(-1, array.shape[-1]).T


def convolution(array: np.ndarray) -> np.ndarray:
    """(*kernel, in, out) -> (out, in, *kernel), for two or three kernel axes."""
    spatial = range(array.ndim - 2)
    return array.transpose(array.ndim - 1, array.ndim - 2, *spatial)


def frame_convolution(array: np.ndarray) -> np.ndarray:
    """2-D kernel (fh, fw, in, out) -> Conv3d over single frames (out, in, 1, fh, fw)."""
    return convolution(array)[:, :, None]


Rule = Callable[[np.ndarray], np.ndarray]


def block_rules(source: str, target: str) -> dict[str, tuple[str, Rule]]:
    """Flax path -> (our name, layout) for one encoder block: `source` and `target` are the block's prefixes."""
    attention, mlp = f"{source}/MultiHeadDotProductAttention_0", f"{source}/MlpBlock_0"
    rules: dict[str, tuple[str, Rule]] = {}
    for flax_norm, norm in (("LayerNorm_0", "layernorm_before"), ("LayerNorm_1", "layernorm_after")):
        rules[f"{source}/{flax_norm}/scale"] = (f"{target}.{norm}.weight", same)
        rules[f"{source}/{flax_norm}/bias"] = (f"{target}.{norm}.bias", same)
    for flax_name, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        rules[f"{attention}/{flax_name}/kernel"] = (f"{target}.attention.{name}.weight", heads_in)
        rules[f"{attention}/{flax_name}/bias"] = (f"{target}.attention.{name}.bias", heads_bias)
    rules[f"{attention}/out/kernel"] = (f"{target}.attention.o_proj.weight", heads_out)
    rules[f"{attention}/out/bias"] = (f"{target}.attention.o_proj.bias", same)
    for flax_name, name in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
        rules[f"{mlp}/{flax_name}/kernel"] = (f"{target}.mlp.{name}.weight", dense)
        rules[f"{mlp}/{flax_name}/bias"] = (f"{target}.mlp.{name}.bias", same)
    return rules


def convert(
    params: Mapping[str, np.ndarray],
    rules: Mapping[str, tuple[str, Rule]],
    target_shapes: Mapping[str, Iterable[int]],
    dropped: Iterable[str] = (),
    fresh: Iterable[str] = (),
) -> dict[str, torch.Tensor]:
    """
    Apply `rules` strictly: every source tensor must be used or in `dropped`, every target tensor filled or in `fresh`, and
    shapes must agree.

    Raises:
        ConversionError: If not; the message names every such tensor.
    """
    dropped, fresh = set(dropped), set(fresh)
    problems = []
    unknown = sorted(set(params) - set(rules) - dropped)
    if unknown:
        problems.append(f"source tensors without a target: {unknown}")
    absent = sorted(name for name in rules if name not in params)
    if absent:
        problems.append(f"source tensors missing: {absent}")
    state: dict[str, torch.Tensor] = {}
    for source, (target, layout) in rules.items():
        if source not in params:
            continue
        try:
            array = layout(np.asarray(params[source]))
        except (ValueError, IndexError):  # too few axes, or empty ones
            array = None
        if array is None:
            problems.append(f"{source} has shape {np.shape(params[source])}, which does not fit its layer")
        elif target not in target_shapes:
            problems.append(f"{source} maps to {target}, which the model does not have")
        elif tuple(array.shape) != tuple(target_shapes[target]):
            problems.append(
                f"{source} has shape {tuple(array.shape)}, but {target} has {tuple(target_shapes[target])} in this config"
            )
        elif array.dtype.kind not in "biuf":
            problems.append(f"{source} holds {array.dtype} values, which are no real numbers")
        elif not np.isfinite(array).all():
            problems.append(f"{source} holds values that are NaN or infinite")
        else:
            state[target] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    unfilled = sorted(set(target_shapes) - {target for target, _ in rules.values()} - fresh)
    if unfilled:
        problems.append(f"target tensors without a source: {unfilled}")
    if problems:
        raise ConversionError(
            "Checkpoint and config do not match: "
            + "; ".join(problems)
            + ". Correct the config, or convert another checkpoint."
        )
    return state
