"""Damaged and hostile MessagePack checkpoints: one ConversionError (or ValueError of the config) each, never a traceback."""

import copy
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import flax_files
import msgpack
import numpy as np
import pytest
import torch
from flax_files import encode, write
from huggingface_hub.errors import StrictDataclassError

from hf_avfusion import AVMAEConfig, AVMAEForPreTraining, MBTConfig, MBTForAudioVisualClassification
from hf_avfusion.conversion import avmae, mbt
from hf_avfusion.conversion.flax import ConversionError, read_train_state
from hf_avfusion.conversion.vit import vit_state_from_flax

SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "num_mel_bins": 16,
    "spectrogram_length": 24,
}
KNOWN = {"image_size": 16, "num_mel_bins": 16}
DECODER = {
    f"decoder_{name}": SIZES[name]
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
}


def checkpoint(architecture: str, path: Path) -> tuple[Callable, bytes]:
    """The loader of an architecture, and a small checkpoint that it converts."""
    torch.manual_seed(0)
    if architecture == "mbt":
        model, rules = MBTForAudioVisualClassification(MBTConfig(**SIZES, fusion_layer=1, num_labels=3)), mbt.mbt_rules
    else:
        model, rules = AVMAEForPreTraining(AVMAEConfig(**SIZES, **DECODER)), avmae.pretraining_rules
    write(path, flax_files.flax_params(model.state_dict(), rules(model.config), lambda name: 2))
    return {"mbt": mbt.load_mbt, "avmae": avmae.load_avmae}[architecture], path.read_bytes()


def check_one_error(load: Callable, path: Path, data: bytes) -> Exception | None:
    path.write_bytes(data)
    for known in (KNOWN, None):
        # Fields of a config that is inferred from the file alone are the file's fault.
        allowed = (ValueError, StrictDataclassError) if known else ValueError
        error = None
        try:
            load(path, known)
        except allowed as caught:
            error = caught
    return error


def places(tree: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def nested(depth: int) -> dict:
    tree: dict = {}
    for _ in range(depth):
        tree = {"a": tree}
    return tree


def extension(*payload, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(payload))


WRONG = [
    None, 7, 1.5, "text", b"bytes", [], [1, [2]], {}, {"a": None}, {"": 0}, nested(200),
    encode(np.zeros(())), encode(np.zeros((0,))), encode(np.zeros((2, 0, 3))), encode(np.zeros((1,) * 8)),
    encode(np.zeros(3, np.complex64)), encode(np.zeros(2), "V16"), encode(np.zeros(2), "M8[s]"), encode(np.zeros(2), "no such"),
    encode(np.zeros(2), "bfloat16", b"odd"), extension(), extension(1, 2, 3), extension([2], None, b"x"),
    extension([2**62, 2**62], "float32", b""), extension([-1], "float32", b""), extension([-1, -1], "float32", b"0000"),
    extension("no shape", "float32", b"0000"), extension([1], ["float32"], b"0000"), extension([1], "float32", None),
    extension(1, code=2), extension(1, 2, 3, code=2), extension("a", code=2), extension([1], "float32", b"0000", code=3),
    msgpack.ExtType(1, b""), msgpack.ExtType(2, b""), msgpack.ExtType(1, b"\x91" * 2000), msgpack.ExtType(99, b""),
    {"__msgpack_chunked_array__": True}, {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}},
    {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": encode(np.zeros(2))}},
    {"__msgpack_chunked_array__": True, "shape": {"0": float("inf")}, "chunks": {"0": encode(np.zeros(2))}},
    {"__msgpack_chunked_array__": True, "shape": [1], "chunks": [2]},
]  # fmt: skip


@pytest.mark.parametrize("architecture", ["mbt", "avmae"])
def test_wrong_values_at_every_place(tmp_path, architecture):
    load, data = checkpoint(architecture, tmp_path / "whole")
    tree = msgpack.unpackb(data)
    everywhere, rng = list(places(tree)), random.Random(0)
    refused = 0
    for index in range(60):
        changed = copy.deepcopy(tree)
        *parents, last = rng.choice(everywhere) if index >= len(WRONG) else everywhere[3 + index]
        node = changed
        for parent in parents:
            node = node[parent]
        node[last] = WRONG[index % len(WRONG)]
        if rng.random() < 0.2:
            del node[last]
        refused += check_one_error(load, tmp_path / "changed", msgpack.packb(changed)) is not None
    assert refused > 30


@pytest.mark.parametrize("architecture", ["mbt", "avmae"])
def test_truncated_and_mutated_files(tmp_path, architecture):
    load, data = checkpoint(architecture, tmp_path / "whole")
    rng = random.Random(1)
    for _ in range(30):
        mutated = bytearray(data)
        for _ in range(rng.choice([1, 5, 50])):
            mutated[rng.randrange(len(mutated))] = rng.choice([0, 0x80, 0xC0, 0xC7, 0xDD, 0xFF, rng.randrange(256)])
        check_one_error(load, tmp_path / "mutated", bytes(mutated[: rng.choice([len(data), rng.randrange(len(data))])]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (msgpack.packb({"params": nested(300)}), "nested more than 64 deep"),
        (b"\x81\xa6params" + b"\x81\xa1a" * 100_000 + b"\xc0", "not a Flax MessagePack"),
        (msgpack.packb({"params": {"params": 3}}), "expected `optimizer"),
        (msgpack.packb({"params": [1]}), "expected `optimizer"),
        (msgpack.packb({b"x": 1, "y": 2}), "expected `optimizer"),
        (msgpack.packb({"params": {"a": None}}), "a holds None"),
        (msgpack.packb({"params": {"a": {"b": encode(np.ones(1))}, "a/b": encode(np.ones(1))}}), "two tensors a/b"),
        (msgpack.packb({"params": {"a": extension(1, code=2)}}), "a holds|an array cannot be read"),
        (
            msgpack.packb(
                {"params": {"a": encode(np.ones(2)), "b": 1 / 3}, "model_state": {"batch_stats": {"c": "x"}}}
            ),
            "c holds",
        ),
    ],
)
def test_the_error_names_the_file(tmp_path, content, message):
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=message) as caught:
        read_train_state(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 500


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConversionError, match="pipe: is a pipe or a device"):
        read_train_state(tmp_path / "pipe")


def test_an_image_model_with_wrong_shapes():
    params = {
        "embedding/kernel": np.zeros(3),
        "embedding/bias": np.zeros(3),
        "Transformer/posembed_input/pos_embedding": np.zeros((1, 2, 3)),
        "Transformer/encoder_norm/scale": np.zeros(3),
        "Transformer/encoder_norm/bias": np.zeros(3),
    }
    with pytest.raises(ConversionError, match=r"embedding/kernel has shape \(3,\)"):
        vit_state_from_flax(params)
