"""Checks of MBT's recorded cases: forward states, logits, losses, gradients, ViT initialisation, checkpoint files, front end."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from hf_avfusion.conversion.flax import read_train_state
from hf_avfusion.conversion.mbt import (
    config_from_scenic,
    convert_mbt,
    dropped_names,
    infer_config,
    load_mbt,
    mbt_rules,
    normalize_names,
)
from hf_avfusion.conversion.vit import vit_state_from_flax
from hf_avfusion.models.mbt.configuration_mbt import temporal_sampling_indices
from hf_avfusion.models.mbt.initialization_mbt import mbt_state_from_vit, pre_logits_from_vit
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.models.shared.losses_classification import classification_loss
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor

STREAMS = {"rgb": "video", "spectrogram": "audio"}
LOGITS = 1e-4  # absolute, the project's bar; per tensor also the relative bar below
STATES = 1e-5  # of the largest reference magnitude
GRADIENTS = 1e-3  # likewise
ROUNDING = 1e-6  # of the case's largest gradient: float32 noise where exact arithmetic gives zero


def on_compare(name: str, error: float, magnitude: float) -> None:
    """Called with every comparison; benchmarks/golden_errors.py puts a recorder here."""


def require(holds: bool, message: str) -> None:
    """Called with every comparison against a bar; benchmarks/gpu.py counts the errors beyond it instead."""
    assert holds, message


device = torch.device("cpu")  # of models and inputs; benchmarks/gpu.py sets the accelerator


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def kind_of(folder: Path, record: dict, case: str) -> str:
    """The kind of a case, from what its record holds."""
    if "kind" in record:
        return record["kind"]
    if "indices" in record:
        return "temporal_sampling"
    if "mel_bins" in record:
        return "front_end"
    if "vit" in record:
        return "vit_init"
    if (folder / f"{case}.msgpack").exists():
        return "checkpoint"
    if "config" in record and {"param", "output"} <= tensor_groups(folder / f"{case}.safetensors"):
        return "forward"
    return "unknown"


def tensor_groups(path: Path) -> set[str]:
    """First components of the tensor names in a file; nothing where there is no file."""
    if not path.exists():
        return set()
    return {name.split("/")[0] for name in load_file(path)}


def check(folder: Path, record: dict, case: str) -> None:
    """Run one case; an unknown kind is an error."""
    checks = {
        "temporal_sampling": check_temporal_sampling,
        "front_end": check_front_end,
        "vit_init": check_vit_init,
        "checkpoint": check_checkpoint,
        "forward": check_forward,
    }
    kind = kind_of(folder, record, case)
    assert kind in checks, f"mbt/{case}: no checker for kind {kind!r}"
    checks[kind](folder, record, case)


def group(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def close(
    name: str,
    ours: torch.Tensor,
    reference: np.ndarray,
    relative: float,
    absolute: float | None = None,
    magnitude: float | None = None,
) -> None:
    """Compare; `relative` counts in the largest reference value, or in `magnitude` where terms of a sum cancel."""
    ours = ours.detach().float().cpu().numpy()
    assert ours.shape == reference.shape, f"{name}: {ours.shape} instead of {reference.shape}"
    assert np.isfinite(ours).all(), f"{name}: holds NaN or infinity"
    assert np.isfinite(reference).all(), f"{name}: the record holds NaN or infinity"
    error = float(np.abs(ours - reference).max())
    magnitude = float(np.abs(reference).max()) if magnitude is None else magnitude
    on_compare(name, error, magnitude)
    require(error <= relative * magnitude + 1e-7, f"{name}: error {error:.2e}, largest reference {magnitude:.2e}")
    # Sums over all tokens run to hundreds, where float32 itself is spaced 6e-5: above 10 the relative bar is the tighter.
    if absolute is not None and magnitude <= 10:
        require(error <= absolute, f"{name}: error {error:.2e} above {absolute:.0e}")


def check_temporal_sampling(folder: Path, record: dict, case: str) -> None:
    assert record["indices"]
    for pair, expected in record["indices"].items():
        assert temporal_sampling_indices(*map(int, pair.split(","))) == expected, pair


def check_front_end(folder: Path, record: dict, case: str) -> None:
    tensors = load_file(folder / f"{case}.safetensors")
    waveform = tensors["input/waveform"]
    expected = group(tensors, "output/")
    assert expected, "the case records no output"
    statistics = {"normalised": {}, "logmel": {"mean": 0.0, "std": 1.0}}
    for name, reference in expected.items():
        assert name in statistics, f"no counterpart of output/{name}"
        extractor = AVFusionFeatureExtractor.from_preset("mbt", spectrogram_length=len(reference), **statistics[name])
        features = extractor(waveform, sampling_rate=record["sample_rate"], return_tensors="pt").input_features[0]
        close(name, features, reference, 1e-5)


def check_vit_init(folder: Path, record: dict, case: str) -> None:
    tensors = load_file(folder / f"{case}.safetensors")
    fields = dict(record["config"])
    config = config_from_scenic({**fields, "classifier": record.get("target_classifier", fields.get("classifier"))})
    # Cases leave out the tensors of deeper blocks, which follow the same rule. What exchanges keeps exchanging.
    exchanges = config.uses_bottleneck
    config.num_hidden_layers = 1 + max(
        int(name.split("encoderblock_")[1].split("/")[0].split("_")[0])
        for name in tensors
        if name.startswith("target_after/") and "encoderblock_" in name
    )
    config.fusion_layer = 0 if exchanges else config.num_hidden_layers
    vit = vit_state_from_flax(group(tensors, "vit/"))
    vit = {name: value for name, value in vit.items() if _depth(name) < config.num_hidden_layers}
    method = record.get("kernel_init_method") or "central_frame_initializer"
    state = mbt_state_from_vit(
        vit,
        config,
        tubelet_initializer=method.removesuffix("_initializer"),
        position_resize=record.get("positional_embed_size_change", "resize_tile"),
    )
    state = {f"mbt.{name}": value for name, value in state.items()} | pre_logits_from_vit(vit, config)
    before = convert_mbt(group(tensors, "target_before/"), config)
    after = convert_mbt(group(tensors, "target_after/"), config)
    rules = mbt_rules(config)
    untouched = {rules[name][0] for name in record["left_unchanged"] if name not in dropped_names(config)}
    assert set(state) == set(after) - untouched
    for name, value in after.items():
        close(name, before[name] if name in untouched else state[name], value.numpy(), STATES)


def _depth(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else 0


def check_checkpoint(folder: Path, record: dict, case: str) -> None:
    path = folder / f"{case}.msgpack"
    model = load_mbt(path, record["config"]).to(device)
    check_outputs(model, load_file(folder / f"{case}.safetensors"), record)
    # The same file with no more than what it does not show.
    expected = model.config
    known = {
        name: getattr(expected, name)
        for name in ("fusion_layer", "test_with_bottlenecks", "image_size", "num_frames", "num_mel_bins")
    }
    known |= {"readout": expected.readout} if expected.readout != "token" else {}
    inferred = infer_config(normalize_names(read_train_state(path)), **known)
    architecture = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
    architecture += ("tubelet_size", "readout", "num_labels", "fusion", "representation_size")
    # Of names alone, frames without audio do not show whether weights are shared, and a bottleneck is only there where it is used.
    architecture += ("share_encoder",) if "audio" in expected.modalities else ()
    architecture += ("num_bottleneck_tokens",) if expected.fusion == "bottleneck" else ()
    for name in architecture:
        assert _plain(getattr(inferred, name)) == _plain(getattr(expected, name)), name
    assert set(inferred.modalities) == set(expected.modalities)


def _plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


def check_forward(folder: Path, record: dict, case: str) -> None:
    tensors = load_file(folder / f"{case}.safetensors")
    config = config_from_scenic(record["config"])
    model = MBTForAudioVisualClassification(config).eval()
    model.load_state_dict(convert_mbt(group(tensors, "param/"), config), strict=True)
    check_outputs(model.to(device), tensors, record)


def model_inputs(tensors: dict[str, np.ndarray], config) -> list[dict[str, torch.Tensor]]:
    """Our layouts of a case's inputs; spectrograms of equal channels in both forms the model takes."""
    inputs: dict[str, torch.Tensor] = {}
    if "video" in config.modalities:
        inputs["pixel_values"] = tensor(tensors["input/rgb"]).permute(0, 1, 4, 2, 3)
    if "audio" not in config.modalities:
        return [inputs]
    planes = tensor(tensors["input/spectrogram"]).permute(0, 3, 1, 2)
    variants = [{**inputs, "input_features": planes}]
    if bool((planes == planes[:, :1]).all()):
        variants.append({**inputs, "input_features": planes[:, 0]})
    return variants


def check_outputs(model: MBTForAudioVisualClassification, tensors: dict[str, np.ndarray], record: dict) -> None:
    config = model.config
    for inputs in model_inputs(tensors, config):
        with torch.no_grad(), Capture(model) as captured:
            logits = model(**inputs).logits
        expected = group(tensors, "output/")
        assert expected, "the case records no output"
        captured["logits"] = logits
        captured.update(losses(tensors, logits))
        with torch.no_grad():
            output = model.train()(**inputs)
            model.eval()
        if "train_logits" in expected:
            captured["train_logits"] = output.logits
        for name, stream in STREAMS.items():
            if f"train_logits/{name}" in expected:
                captured[f"train_logits/{name}"] = getattr(output, f"{stream}_logits")
        for name, reference in expected.items():
            assert name in captured, f"no counterpart of output/{name}"
            magnitude = None
            if name == "loss_linear":
                magnitude = float((logits * tensor(tensors["input/loss_weight"])).abs().sum())
            close(name, captured[name], reference, STATES, LOGITS if "logits" in name else None, magnitude)
        check_gradients(model, inputs, tensors)
        check_gradient_norms(model, inputs, tensors, record)


def losses(tensors: dict[str, np.ndarray], logits: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for name in tensors:
        if name.startswith("output/loss_bce_smooth"):
            found[name.removeprefix("output/")] = smoothed_bce(
                tensors, logits, float(name.removeprefix("output/loss_bce_smooth"))
            ).reshape(1)
    if "output/loss_linear" in tensors:
        found["loss_linear"] = (logits * tensor(tensors["input/loss_weight"])).sum().reshape(1)
    return found


def smoothed_bce(tensors: dict[str, np.ndarray], logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    targets = tensor(tensors["input/multi_hot"])
    return classification_loss(logits, targets, "multi_label_classification", smoothing).mean()


def check_gradients(model, inputs: dict[str, torch.Tensor], tensors: dict[str, np.ndarray]) -> None:
    gradients = group(tensors, "grad/")
    if not gradients:
        return
    model.zero_grad()
    (model(**inputs).logits * tensor(tensors["input/loss_weight"])).sum().backward()
    rules, ours = mbt_rules(model.config), dict(model.named_parameters())
    largest = max(float(np.abs(value).max()) for value in gradients.values())
    for source, gradient in normalize_names(gradients).items():
        if source in dropped_names(model.config):
            assert not gradient.any(), f"{source} was dropped but has a gradient"
            continue
        name, layout = rules[source]
        reference = torch.from_numpy(layout(gradient).copy())
        # A parameter that took no part has no gradient here and zeros in the record.
        found = torch.zeros_like(reference) if ours[name].grad is None else ours[name].grad.cpu()
        assert found.shape == reference.shape, f"grad {name}: {tuple(found.shape)} instead of {tuple(reference.shape)}"
        error, magnitude = float((found - reference).abs().max()), float(reference.abs().max())
        # A key bias shifts all scores of a query alike, so its gradient is zero in exact arithmetic: what both sides hold
        # there is rounding.
        allowed = (
            ROUNDING * largest if source.endswith("key/bias") else GRADIENTS * magnitude + 0.1 * ROUNDING * largest
        )
        is_rounding = source.endswith("key/bias") or magnitude <= 1e-5 * largest
        on_compare(f"grad {name}", error, 0.0 if is_rounding else magnitude)
        require(error <= allowed, f"grad {name}: error {error:.2e}, largest {magnitude:.2e}, allowed {allowed:.2e}")


def check_gradient_norms(model, inputs: dict[str, torch.Tensor], tensors: dict[str, np.ndarray], record: dict) -> None:
    """Global gradient norms over all parameters, which the record holds beside the tensors."""
    for field in ("linear_global_grad_norm", "bce_global_grad_norm"):
        if field not in record:
            continue
        model.zero_grad()
        logits = model(**inputs).logits
        if field.startswith("bce"):
            loss = smoothed_bce(tensors, logits, 0.3)
        else:
            loss = (logits * tensor(tensors["input/loss_weight"])).sum()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        close(f"grad {field}", norm.reshape(1), np.array([record[field]], dtype=np.float32), GRADIENTS)


class Capture(dict):
    """Intermediate states of one forward pass, under the names of the recorded tensors."""

    def __init__(self, model: MBTForAudioVisualClassification):
        super().__init__()
        self.model, self.handles = model, []

    def __enter__(self) -> "Capture":
        base = self.model.mbt
        for name, stream in STREAMS.items():
            embeddings = getattr(base, f"{stream}_embeddings")
            if embeddings is not None:
                self._on(embeddings, lambda out, key=f"embedded/{name}": self.__setitem__(key, out))
                self._on(embeddings.patch_embeddings, lambda out, key=name: self._patches(key, out))
        for index, layer in enumerate(base.layers):
            self._on(layer, lambda out, index=index: self._layer(index, out))
            blocks = (
                [layer.shared]
                if base.config.share_encoder
                else [layer.video, layer.audio]
                if len(base.config.modalities) == 2
                else []
            )
            for block in blocks:
                self._on(block, lambda out, index=index: self.setdefault(("block", index), []).append(out[0]))
        self._on(base, lambda out: self.__setitem__("encoded", out.last_hidden_state))
        self._on(self.model.classifier, lambda out: None, before=lambda x: self.setdefault("heads", []).append(x))
        return self

    def _on(self, module, after, before=None) -> None:
        def hook(_module, args, output):
            if before is not None:
                before(args[0])
            after(output)

        self.handles.append(module.register_forward_hook(hook))

    def _patches(self, name: str, tokens: torch.Tensor) -> None:
        config = self.model.config
        (height, width), (ph, pw) = config.image_hw, config.patch_hw
        if name == "spectrogram":
            shape = (config.spectrogram_length // ph, config.num_mel_bins // pw)
        elif config.num_sampled_frames is not None:
            shape = (tokens.shape[1] // (width // pw), width // pw)
        else:
            shape = (config.num_frames // config.tubelet_size, height // ph, width // pw)
        self[f"patch_embed/{name}"] = tokens.unflatten(1, shape)

    def _layer(self, index: int, output: tuple) -> None:
        config = self.model.config
        video, audio, extra = output[:3]
        for name, value in (("rgb", video), ("spectrogram", audio)):
            if value is not None:
                self[f"layer_{index}/{name}"] = value
        exchanges = self.model.mbt.layers[index].fuses
        if not exchanges or extra is None:
            return
        if config.fusion == "self_attention":
            self[f"layer_{index}/combined"] = extra
            return
        self[f"layer_{index}/bottleneck"] = extra
        for name, value, joint in zip(("rgb", "spectrogram"), (video, audio), self[("block", index)]):
            self[f"layer_{index}/bottleneck_from/{name}"] = joint[:, value.shape[1] :]

    def __exit__(self, *exception) -> None:
        for handle in self.handles:
            handle.remove()
        if exception[0] is None:
            heads = self.pop("heads")
            if self.model.config.readout == "token":
                present = [name for name, stream in STREAMS.items() if stream in self.model.config.modalities]
                self.update({f"pre_logits/{name}": head for name, head in zip(present, heads, strict=True)})
            else:
                self["pre_logits"] = heads[0]
