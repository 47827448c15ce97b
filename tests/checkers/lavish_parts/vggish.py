"""Checks of LAVISH's recorded cases of VGGish: the front end, the network with stored or generated weights, post-processing.

A dispatcher sets `device`, `on_compare` and `require` before it calls `check`, as benchmarks do with a whole checker.
"""

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from hf_avfusion.models.shared.vggish import HIGHEST, LOWEST, VGGish
from hf_avfusion.processing.vggish_examples import vggish_examples

KINDS = ("vggish_frontend", "vggish")
LOG_MEL = 1e-6  # of the largest reference magnitude: both sides compute in float64
STATES = 1e-5  # likewise
WHITENED = 2e-5  # of the range [-2, 2]: PCA magnifies the rounding of large features
CHUNK = 2**22  # generated weights at a time


def on_compare(name: str, error: float, magnitude: float) -> None:
    """Called with every comparison; benchmarks/golden_errors.py puts a recorder here."""


def require(holds: bool, message: str) -> None:
    """Called with every comparison against a bar; benchmarks/gpu.py counts the errors beyond it instead."""
    assert holds, message


device = torch.device("cpu")  # of models and inputs; benchmarks/gpu.py sets the accelerator


def check(folder: Path, record: dict, case: str) -> None:
    """Run one case; an unknown kind is an error."""
    checks = {"vggish_frontend": check_front_end, "vggish": check_network}
    kind = record.get("kind", "unknown")
    assert kind in checks, f"lavish/{case}: no checker for kind {kind!r}"
    tensors = load_file(folder / f"{case}.safetensors")
    foreign = {name.split("/")[0] for name in tensors} - {"input", "output", "param"}
    assert not foreign, f"lavish/{case}: no checker for tensors of {sorted(foreign)}"
    assert group(tensors, "output/"), "the case records no output"
    checks[kind](tensors, record)


def group(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def close(name: str, ours: torch.Tensor, reference: np.ndarray, relative: float) -> None:
    """Compare; `relative` counts in the largest reference value."""
    ours = ours.detach().float().cpu().numpy()
    assert ours.shape == reference.shape, f"{name}: {ours.shape} instead of {reference.shape}"
    assert np.isfinite(ours).all(), f"{name}: holds NaN or infinity"
    assert np.isfinite(reference).all(), f"{name}: the record holds NaN or infinity"
    error = float(np.abs(ours - reference).max(initial=0))
    magnitude = float(np.abs(reference).max(initial=0))
    on_compare(name, error, magnitude)
    require(error <= relative * magnitude + 1e-7, f"{name}: error {error:.2e}, largest reference {magnitude:.2e}")


def check_front_end(tensors: dict[str, np.ndarray], record: dict) -> None:
    waveforms, expected = group(tensors, "input/"), group(tensors, "output/")
    assert waveforms.keys() == expected.keys(), f"inputs {sorted(waveforms)}, outputs {sorted(expected)}"
    shapes = record.get("clips", {})
    assert shapes.keys() <= expected.keys(), f"no output of {sorted(shapes.keys() - expected.keys())}"
    for name, reference in expected.items():
        waveform = torch.from_numpy(waveforms[name])
        if waveform.dtype == torch.int16:
            waveform = waveform.float() / 32768
        examples = vggish_examples(waveform, record["sample_rate"])
        if name in shapes:
            assert list(examples.shape) == shapes[name], f"{name}: {tuple(examples.shape)} instead of {shapes[name]}"
        close(name, examples, reference, LOG_MEL)


def check_network(tensors: dict[str, np.ndarray], record: dict) -> None:
    inputs, expected = group(tensors, "input/"), group(tensors, "output/")
    pca = {name: inputs.pop(name) for name in list(inputs) if name.startswith("pca_")}
    assert inputs.keys() == {"examples"}, f"no use of {sorted(inputs.keys() - {'examples'})}"
    state = group(tensors, "param/") or generated_weights(record)
    model = VGGish.from_published(state, pca or None).to(device)
    assert record.get("mode", "eval") in ("eval", "train"), f"mode {record['mode']!r}"
    model.train(record.get("mode") == "train")
    check_sizes(model, record)

    found: dict[str, torch.Tensor] = {}
    model.features.register_forward_hook(lambda module, args, output: found.update(maps=output))
    model.embeddings.register_forward_hook(lambda module, args, output: found.update(embedding=output))
    examples = torch.from_numpy(inputs["examples"]).float().to(device)
    assert len(examples) == record.get("examples", len(examples)), f"{len(examples)} examples"
    with torch.no_grad():
        result = model(examples)
        if pca:
            found |= {"pca": model.pproc.whiten(found["embedding"]), "postprocessed": result}
            model.pproc = None
            result = model(examples)
    assert torch.equal(result, found["embedding"]), "the network without post-processing gives other features"

    for name, reference in expected.items():
        if name == "features_mean":  # of the first channels where the record is shorter
            close(name, found["maps"].float().mean(dim=(2, 3))[:, : reference.shape[1]], reference, STATES)
            continue
        assert name in found, f"no counterpart of output/{name}"
        if name == "postprocessed":
            check_quantised(found[name], reference, expected.get("pca"))
        else:
            close(name, found[name], reference, WHITENED if name == "pca" else STATES)


def check_sizes(model: VGGish, record: dict) -> None:
    convolutions = [layer.out_channels for layer in model.features if isinstance(layer, torch.nn.Conv2d)]
    dense = [layer.out_features for layer in model.embeddings if isinstance(layer, torch.nn.Linear)]
    sizes = {"channels": convolutions, "hidden": dense[0], "embedding": dense[-1]}
    for name, value in sizes.items():
        assert record.get(name, value) == value, f"{name}: {value} instead of {record[name]}"


def check_quantised(ours: torch.Tensor, reference: np.ndarray, whitened: np.ndarray | None) -> None:
    """8 bit values are equal. Where the recorded value before rounding lies on an edge within its tolerance, one apart is."""
    ours = ours.cpu().numpy()
    assert ours.shape == reference.shape, f"postprocessed: {ours.shape} instead of {reference.shape}"
    apart = np.abs(ours - reference.astype(np.float64))
    allowed = np.zeros_like(apart)
    if whitened is not None:
        scaled = (whitened.astype(np.float64) - LOWEST) * (255 / (HIGHEST - LOWEST))
        allowed += np.abs(scaled - np.floor(scaled) - 0.5) <= WHITENED * HIGHEST * 255 / (HIGHEST - LOWEST)
    on_compare("postprocessed", float(apart.max(initial=0)), float(reference.max(initial=0)))
    wrong = int((apart > allowed).sum())
    require(wrong == 0, f"postprocessed: {wrong} of {apart.size} values differ, by up to {apart.max(initial=0):g}")


def generated_weights(record: dict) -> dict[str, np.ndarray]:
    """The weights that a record describes by a rule instead of holding them; see its `weight_rule`."""
    assert "weight_rule" in record, "the case holds no weights and no rule for them"
    gain, bias_scale = (
        float(re.search(pattern, record["weight_rule"]).group(1))
        for pattern in (r"gain (\d+)", r"bias = u \* ([\d.]+\d)")
    )
    seed = record.get("weight_seed", record.get("seed"))
    with torch.device("meta"):
        shapes = VGGish(record["channels"], record["hidden"], record["embedding"]).state_dict()
    state = {}
    for number, (name, shape) in enumerate((name, tuple(value.shape)) for name, value in shapes.items()):
        scale = bias_scale if len(shape) == 1 else np.sqrt(gain / np.prod(shape[1:]))
        state[name] = uniform(int(np.prod(shape)), seed + number, scale).reshape(shape)
    checks = record.get("weight_check", {})
    for name, known in checks.items():
        assert list(state[name].shape) == known["shape"], f"{name}: {state[name].shape} instead of {known['shape']}"
        first = state[name].reshape(-1)[: len(known["first"])]
        assert np.allclose(first, known["first"], rtol=1e-6, atol=0), f"{name} starts with {first}"
        total = float(state[name].sum(dtype=np.float64))
        assert abs(total - known["sum"]) <= 1e-6 * max(1, abs(known["sum"])), f"{name}: sum {total}"
    return state


def uniform(count: int, seed: int, scale: float) -> np.ndarray:
    """float32 [count]: hashed indices as uniform numbers in [-0.5, 0.5), times `scale`; float64 until the end."""
    values = np.empty(count, np.float32)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        x = (np.arange(start, stop, dtype=np.uint64) + np.uint64(seed * 1000003)).astype(np.uint32)  # mod 2^32
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
        values[start:stop] = (x / 2.0**32 - 0.5) * scale
    return values
