"""Checks of AV-MAE's recorded cases: pretraining, fine-tuning as MBT, the single-modality classifier, checkpoint files."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from hf_avfusion.conversion.avmae import (
    SCENIC_NAMES,
    config_from_scenic,
    convert_avmae,
    finetuning_rules,
    infer_config,
    infer_model_class,
    load_avmae,
    mbt_config_from_scenic,
    normalize_names,
    pretraining_rules,
)
from hf_avfusion.conversion.mbt import dropped_names
from hf_avfusion.data.augmentation import mix
from hf_avfusion.models.avmae.configuration_avmae import AVMAEConfig
from hf_avfusion.models.avmae.modeling_avmae import AVMAEForAudioVisualClassification, AVMAEForPreTraining, AVMAEModel
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.models.shared import layers_vit
from hf_avfusion.training.layerwise_decay import layer_ids, layer_scale, layerwise_groups
from hf_avfusion.training.optimization import momentum_sgd, warmup_cosine_factor, warmup_cosine_schedule

STATES = 1e-5  # of the largest reference magnitude
ABSOLUTE = 1e-4  # of logits and predictions
GRADIENTS = 1e-3  # of the largest reference magnitude
ROUNDING = 1e-6  # of the case's largest gradient: float32 noise where exact arithmetic gives zero


def on_compare(name: str, error: float, magnitude: float) -> None:
    """Called with every comparison; benchmarks/golden_errors.py puts a recorder here."""


def require(holds: bool, message: str) -> None:
    """Called with every comparison against a bar; benchmarks/gpu.py counts the errors beyond it instead."""
    assert holds, message


device = torch.device("cpu")  # of models and inputs; benchmarks/gpu.py sets the accelerator


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def check(folder: Path, record: dict, case: str) -> None:
    """Run one case; an unknown kind is an error."""
    checks = {"pretrain": check_pretrain, "finetune_mbt": check_finetune_mbt, "finetune_vivit": check_classifier}
    kind = record.get("kind", "unknown")
    if kind == "checkpoint":  # a case of one of these kinds with its file
        kind = "pretrain" if "masked_feature_loss" in record["config"] else "finetune_mbt"
    assert kind in checks, f"avmae/{case}: no checker for kind {kind!r}"
    checks[kind](folder, record, case)


def group(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def close(name: str, ours: torch.Tensor, reference: np.ndarray, relative: float = STATES, absolute: float = ABSOLUTE):
    """Compare, in shares of the largest reference value; what is far above 1 may not differ by more than that either."""
    ours = ours.detach().float().cpu().numpy()
    reference = reference.reshape(()) if reference.shape == (1,) and ours.shape == () else reference
    assert ours.shape == reference.shape, f"{name}: {ours.shape} instead of {reference.shape}"
    assert np.isfinite(ours).all(), f"{name}: holds NaN or infinity"
    assert np.isfinite(reference).all(), f"{name}: the record holds NaN or infinity"
    error, magnitude = float(np.abs(ours - reference).max()), float(np.abs(reference).max())
    on_compare(name, error, magnitude)
    require(error <= relative * magnitude + 1e-7, f"{name}: error {error:.2e}, largest reference {magnitude:.2e}")
    require(magnitude > 10 or error <= absolute, f"{name}: error {error:.2e} above {absolute:.0e}")


def compare_all(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert expected, "the case records no output"
    for name, reference in expected.items():
        assert name in found, f"no counterpart of output/{name}"
        close(name, found[name], reference)


def sizes_of(tensors: dict[str, np.ndarray]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    if "input/rgb" in tensors:
        _, sizes["num_frames"], sizes["height"], sizes["width"], _ = tensors["input/rgb"].shape
    if "input/spectrogram" in tensors:
        _, sizes["spec_time"], sizes["spec_freq"], sizes["spec_channels"] = tensors["input/spectrogram"].shape
    return sizes


def model_inputs(tensors: dict[str, np.ndarray], prefix: str = "input/") -> dict[str, torch.Tensor]:
    inputs = {}
    if f"{prefix}rgb" in tensors:
        inputs["pixel_values"] = tensor(tensors[f"{prefix}rgb"]).permute(0, 1, 4, 2, 3)
    if f"{prefix}spectrogram" in tensors:
        planes = tensor(tensors[f"{prefix}spectrogram"]).permute(0, 3, 1, 2)
        inputs["input_features"] = planes[:, 0] if planes.shape[1] == 1 else planes
    return inputs


def modalities_in(tensors: dict[str, np.ndarray], prefix: str) -> tuple[str, ...]:
    return tuple(modality for modality, name in SCENIC_NAMES.items() if f"{prefix}{name}" in tensors)


# ------------------------------------------------------------------------------------------------------------ pretraining


def check_pretrain(folder: Path, record: dict, case: str) -> None:
    path = folder / f"{case}.msgpack"
    tensors = load_file(folder / f"{case}.safetensors")
    params = normalize_names(group(tensors, "param/"))
    modalities = modalities_in(tensors, "input/")
    config = config_from_scenic(record["config"], sizes_of(tensors), modalities)
    model = AVMAEForPreTraining(config)
    model.load_state_dict(load_avmae(path, config).state_dict() if path.exists() else convert_avmae(params, config))
    model.to(device)
    drops = group(tensors, "mask/drop/")
    model.train(bool(drops))  # evaluation masks as well; training differs by stochastic depth alone
    check_masks(model, tensors)
    if not drops:
        check_inferred(params, config)

    inputs = model_inputs(tensors)
    for modality in modalities:
        indices = tensors[f"mask/{SCENIC_NAMES[modality]}/unmasked_indices"]
        inputs[f"{modality}_visible"] = tensor(indices).long()
    if "input/batch_mask" in tensors:
        inputs["sample_mask"] = tensor(tensors["input/batch_mask"])
    found: dict[str, torch.Tensor] = {}
    with given_drops(model, pretraining_rules(config), drops), capture(model, found):
        output = model(**inputs)
    found["loss"] = output.loss
    for modality in modalities:
        name = SCENIC_NAMES[modality]
        found[f"reconstruction/{name}"] = output[f"{modality}_predictions"]
        found[f"loss_unweighted/{name}"] = output[f"{modality}_loss"]
        found[f"target/{name}"] = model.targets(modality, model_inputs(tensors)[INPUTS[modality]])
        found[f"intermediate/encoder_output_{name}"] = output[f"{modality}_hidden_state"]
        hidden, scored = output[f"{modality}_mask"], output[f"{modality}_loss_mask"]
        close(f"mask/{name}/encoder_mask", hidden, tensors[f"mask/{name}/encoder_mask"])
        if not config.loss_on_visible_tokens:  # there the original ignores the mask that it returns
            close(f"mask/{name}/loss_mask", scored, tensors[f"mask/{name}/loss_mask"])
    if any(name.startswith("output/encode_all/") for name in tensors):
        with torch.no_grad():
            features = model.eval().avmae(**model_inputs(tensors))
        found.update({f"encode_all/{SCENIC_NAMES[m]}": features[f"{m}_hidden_state"] for m in modalities})
    compare_all(found, group(tensors, "output/"))
    gradients = normalize_names(group(tensors, "grad/"))
    if gradients:
        output.loss.backward()
        check_gradients(model, pretraining_rules(config), gradients)


INPUTS = {"video": "pixel_values", "audio": "input_features"}


def check_masks(model: AVMAEForPreTraining, tensors: dict[str, np.ndarray]) -> None:
    """The number of visible tokens is the config's, and what is drawn looks like what was recorded."""
    batch = len(next(value for name, value in tensors.items() if name.startswith("input/")))
    drawn = model.draw_masks(batch, generator=torch.Generator().manual_seed(0))
    for modality in model.config.modalities:
        recorded = tensors[f"mask/{SCENIC_NAMES[modality]}/unmasked_indices"]
        assert drawn[f"{modality}_visible"].shape == recorded.shape, modality
        if modality == "video" and model.config.video_masking == "tube":
            steps, places = model.config.video_grid[0], model.config.num_tokens("video")
            tubes = recorded.reshape(batch, steps, -1) % (places // steps)
            assert (tubes == tubes[:, :1]).all()
            assert (np.diff(recorded, axis=1) > 0).all()
    known = {"encoder_mask", "loss_mask", "masked_indices", "unmasked_indices"}
    for name in group(tensors, "mask/"):
        assert name.startswith("drop/") or name.split("/")[1] in known, f"no counterpart of mask/{name}"


def check_inferred(params: dict[str, np.ndarray], config: AVMAEConfig) -> None:
    """The same config from the tensors, with no more than what they do not show."""
    assert infer_model_class(params) is AVMAEForPreTraining
    untold = ("image_size", "num_frames", "spectrogram_length", "num_mel_bins")
    known = {name: getattr(config, name) for name in untold}
    known |= {"encoder_strategy": "early"} if config.encoder_strategy == "early" else {}
    known |= {"decoder_strategy": "concatenated"} if config.decoder_strategy == "concatenated" else {}
    inferred = infer_config(params, **known)
    options = (
        "mask_ratio",
        "masking",
        "loss",
        "target",
        "objective",
        "average",
        "drop",
        "problem_type",
        "id2label",
        "label2id",
    )
    for name, value in config.to_dict().items():
        if not any(option in name for option in options) and name != "transformers_version":
            assert _plain(getattr(inferred, name, None)) == _plain(value), name


def _plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


@contextmanager
def capture(model: AVMAEForPreTraining, found: dict[str, torch.Tensor]):
    """Patch embeddings and decoder projections, under the names of the recorded tensors."""
    config, handles = model.config, []
    for modality in config.modalities:
        name, stream = SCENIC_NAMES[modality], getattr(model.decoder, modality)
        embeddings = getattr(model.avmae, f"{modality}_embeddings").patch_embeddings
        grid = config.video_grid if modality == "video" else config.audio_grid

        def projected(module, args, output, key=f"intermediate/decoder_projection_{name}"):
            found[key] = output

        def embedded(module, args, key=f"intermediate/embedding_{name}", grid=grid):
            found[key] = module.forward(args[0]).unflatten(1, grid)  # all tokens; the encoder takes the visible ones

        handles += [stream.projection.register_forward_hook(projected), embeddings.register_forward_pre_hook(embedded)]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def given_drops(model: torch.nn.Module, rules: dict, drops: dict[str, np.ndarray]):
    """
    Stochastic depth by recorded patterns: `{flax path of a block}/{attn, mlp}`, 1 where the branch of a sample is dropped.

    Every pattern must be asked for, and every block that drops must have one; its rate must not be 0.
    """
    if not drops:
        yield
        return
    blocks = {}
    for source, (target, _) in rules.items():
        if "encoderblock_" in source and source.endswith("LayerNorm_0/scale"):
            blocks[target.removesuffix(".layernorm_before.weight")] = source.removesuffix("/LayerNorm_0/scale")
    modules = dict(model.named_modules())
    names = {id(modules[ours]): theirs for ours, theirs in blocks.items()}
    known = set(normalize_names({name: np.empty(0) for name in drops}))
    patterns, state, used = normalize_names(drops), {}, set()
    assert known == set(patterns)

    def enter(module, *_):
        state.update(block=names[id(module)], branches=["attn", "mlp"])

    def drop(branch, rate, training):
        key = f"{state['block']}/{state['branches'].pop(0)}"
        assert (key in patterns) == (rate > 0 and training), f"{key}: rate {rate}, recorded {key in patterns}"
        used.add(key)
        if key not in patterns:
            return branch
        return branch * (1 - tensor(patterns[key])).reshape(-1, 1, 1)

    handles = [modules[ours].register_forward_pre_hook(enter) for ours in blocks]
    original, layers_vit.drop_branch = layers_vit.drop_branch, drop
    try:
        yield
    finally:
        layers_vit.drop_branch = original
        for handle in handles:
            handle.remove()
    assert set(patterns) <= used, f"patterns of no block: {sorted(set(patterns) - used)}"


def check_gradients(model: torch.nn.Module, rules: dict, gradients: dict[str, np.ndarray], dropped=frozenset()) -> None:
    ours = dict(model.named_parameters())
    largest = max(float(np.abs(value).max()) for value in gradients.values())
    unknown = set(gradients) - set(dropped) - set(rules)
    assert not unknown, f"gradients of no parameter: {sorted(unknown)}"
    for source, gradient in gradients.items():
        if source in dropped:
            assert not gradient.any(), f"{source} was dropped but has a gradient"
            continue
        name, layout = rules[source]
        reference = torch.from_numpy(layout(gradient).copy())
        # A parameter that took no part has no gradient here and zeros in the record.
        found = torch.zeros_like(reference) if ours[name].grad is None else ours[name].grad.cpu()
        assert found.shape == reference.shape, f"grad {name}: {tuple(found.shape)} instead of {tuple(reference.shape)}"
        error, magnitude = float((found - reference).abs().max()), float(reference.abs().max())
        # A key bias shifts all scores of a query alike: its gradient is zero in exact arithmetic, rounding on both sides.
        rounding = source.endswith("key/bias") or magnitude <= 1e-5 * largest
        allowed = (
            ROUNDING * largest if source.endswith("key/bias") else GRADIENTS * magnitude + 0.1 * ROUNDING * largest
        )
        on_compare(f"grad {name}", error, 0.0 if rounding else magnitude)
        require(error <= allowed, f"grad {name}: error {error:.2e}, largest {magnitude:.2e}, allowed {allowed:.2e}")


# ------------------------------------------------------------------------------------------------------------- fine-tuning


def check_finetune_mbt(folder: Path, record: dict, case: str) -> None:
    tensors = load_file(folder / f"{case}.safetensors")
    params = normalize_names(group(tensors, "param/"))
    config = mbt_config_from_scenic(record["config"], sizes_of(tensors), record["num_classes"])
    rules = finetuning_rules(config)
    model = MBTForAudioVisualClassification(config)
    path = folder / f"{case}.msgpack"
    model.load_state_dict(load_avmae(path, config).state_dict() if path.exists() else convert_avmae(params, config))
    model.to(device)
    check_inferred_mbt(params, config)
    if any(name.startswith("pretrained/") for name in tensors):
        check_mapping(model, record, tensors, rules)

    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        output = model.eval()(**model_inputs(tensors))
        states = model.mbt(**model_inputs(tensors))
    found["logits_eval"] = output.logits
    for modality in config.modalities:
        found[f"tokens/{SCENIC_NAMES[modality]}"] = states[f"{modality}_hidden_state"]
    inputs = mixed_batch(tensors, config.modalities, found)
    with given_drops(model, rules, group(tensors, "mask/drop/")):
        output = model.train()(**inputs)
    for modality in config.modalities:
        found[f"logits_train_mixup/{SCENIC_NAMES[modality]}"] = output[f"{modality}_logits"]
    found["loss_train_mixup"] = output.loss
    expected = group(tensors, "output/")
    norms = {name: expected.pop(name) for name in sorted(expected) if name.startswith("grad_norm/")}
    compare_all(found, expected)

    gradients = normalize_names(group(tensors, "grad/"))
    if gradients:
        model.zero_grad()
        output.loss.backward()
        check_gradients(model, rules, gradients, dropped_names(config))
    check_schedule(record, rules, config)
    if any(name.startswith("updated/") for name in tensors):
        check_updates(model, record, tensors, rules, inputs, norms)


def check_inferred_mbt(params: dict[str, np.ndarray], config) -> None:
    assert infer_model_class(params) is MBTForAudioVisualClassification
    given = ("image_size", "num_frames", "spectrogram_length", "num_mel_bins", "fusion_layer")
    given += ("readout",) if config.readout != "stream_mean" else ()
    inferred = infer_config(params, **{name: getattr(config, name) for name in given})
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "patch_size",
        "modalities",
    )
    names += (
        "num_audio_channels",
        "readout",
        "position_embeddings",
        "use_modality_tokens",
        "num_labels",
        "share_encoder",
    )
    names += ("num_bottleneck_tokens", "representation_size", "fusion")
    for name in names:
        assert _plain(getattr(inferred, name)) == _plain(getattr(config, name)), name


def check_mapping(model: MBTForAudioVisualClassification, record: dict, tensors: dict, rules: dict) -> None:
    """`from_avmae` gives what the original's mapping gives: pretrained tensors in their places, all others fresh."""
    pretrained = normalize_names(group(tensors, "pretrained/"))
    modalities = modalities_in({name.split("/")[0]: None for name in pretrained}, "embedding_")
    sizes = {"num_frames": 2, "height": 8, "width": 8, "spec_time": 8, "spec_freq": 8, **sizes_of(tensors)}
    patch = record["pretrain_config"]["model"]["patches"]["size"]
    sizes = {  # of a modality that is not fine-tuned any will do
        "num_frames": max(sizes["num_frames"], patch[2]),
        "height": max(sizes["height"], patch[0]),
        "width": max(sizes["width"], patch[1]),
        "spec_time": max(sizes["spec_time"], patch[0]),
        "spec_freq": max(sizes["spec_freq"], patch[1]),
        "spec_channels": pretrained["embedding_spectrogram/kernel"].shape[2] if "audio" in modalities else 1,
    }
    source = AVMAEModel(config_from_scenic(record["pretrain_config"], sizes, modalities))
    source.load_state_dict(convert_avmae(pretrained, source.config, AVMAEModel))
    ours = MBTForAudioVisualClassification.from_avmae(source, model.config).state_dict()
    fresh = MBTForAudioVisualClassification(model.config).state_dict()
    expected, renamed = model.state_dict(), normalize_names(record["param_source"])
    kept = normalize_names(group(tensors, "init/"))
    for name, (place, layout) in rules.items():
        origin = str(renamed[name])
        assert (origin == "(init)") == (name in kept), name
        if name in kept:
            close(f"init {name}", expected[place], layout(kept[name]))
            if not any(part in place for part in ("bottleneck", "token")):  # those are drawn at random or zero
                assert torch.equal(ours[place], fresh[place]), f"{name} is not fresh"
        else:
            assert torch.equal(ours[place], expected[place].cpu()), f"{name} does not come from {origin}"


def mixed_batch(tensors: dict, modalities: tuple[str, ...], found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The recorded batch after mixup per modality, as the collator mixes; what was mixed goes to `found`."""
    labels, inputs = torch.from_numpy(tensors["input/label"]), {}
    weights = tensors["input/mixup_weight"].tolist()
    weights = weights * len(modalities) if len(weights) == 1 else weights
    modalities = tuple(modality for modality in SCENIC_NAMES if modality in modalities)  # weights are in this order
    for modality, weight in zip(modalities, weights, strict=True):
        name = SCENIC_NAMES[modality]
        values = mix(torch.from_numpy(tensors[f"input/{name}"]), weight)
        found[f"mixup/{name}"], found[f"mixup_label/{name}"] = values, mix(labels, weight)
        inputs[f"{name}"] = values.numpy()
    batch = model_inputs(inputs, prefix="")
    batch["labels"] = found[f"mixup_label/{SCENIC_NAMES[modalities[0]]}"].to(device)
    if len(modalities) == 2:
        batch["audio_labels"] = found["mixup_label/spectrogram"].to(device)
    return batch


def check_schedule(record: dict, rules: dict, config) -> None:
    """Learning rates and layer ids, which the record holds beside the tensors."""
    rates = record["config"]["lr_configs"]
    for step, expected in enumerate(record.get("lr_at_step", ())):
        factor = warmup_cosine_factor(step, rates["warmup_steps"], rates["steps_per_cycle"])
        assert abs(rates["base_learning_rate"] * factor - expected) <= 1e-6, f"learning rate of step {step}"
    ids, top = layer_ids(place for place, _ in rules.values()), config.num_hidden_layers + 1
    for name, expected in normalize_names(record.get("layer_id", {})).items():
        place = rules[name][0]
        assert ids[place] == int(expected), f"layer id of {name}: {ids[place]} instead of {expected}"
    decay = record["config"]["optimizer_configs"].get("layerwise_decay")
    for number, scale in record.get("lr_scale", {}).items():
        assert abs(layer_scale(int(number), top, decay) - scale) <= 1e-7, f"rate of layer id {number}"


def check_updates(
    model: MBTForAudioVisualClassification, record: dict, tensors: dict, rules: dict, inputs: dict, norms: dict
) -> None:
    """Three steps: gradients clipped to global norm 1, momentum SGD, each layer at its own rate."""
    settings, rates = record["config"]["optimizer_configs"], record["config"]["lr_configs"]
    parameters, rate = dict(model.named_parameters()), rates["base_learning_rate"]
    groups = layerwise_groups(parameters, layer_ids(parameters), rate, settings["layerwise_decay"])
    optimizer = momentum_sgd(groups, rate, settings["momentum"])
    schedule = warmup_cosine_schedule(optimizer, rates["warmup_steps"], rates["steps_per_cycle"])
    for step in range(3):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), record["config"]["max_grad_norm"])
        if f"grad_norm/{step}" in norms:
            close(f"grad_norm/{step}", norm, norms[f"grad_norm/{step}"], GRADIENTS, absolute=1e-2)
        optimizer.step()
        schedule.step()
    updated = normalize_names(group(tensors, "updated/"))
    for name, reference in updated.items():
        if name not in dropped_names(model.config):
            place, layout = rules[name]
            close(f"updated {name}", parameters[place], layout(reference), GRADIENTS, absolute=1e-3)


def check_classifier(folder: Path, record: dict, case: str) -> None:
    tensors, fields = load_file(folder / f"{case}.safetensors"), record["config"]
    (modality,) = modalities_in(tensors, "input/")
    assert SCENIC_NAMES[modality] == fields["modality"]
    params, sizes = normalize_names(group(tensors, "param/")), sizes_of(tensors)
    params |= {name: value for name, value in tensors.items() if name.startswith("batch_stats/")}
    readout = {"gap": "mean", "gmp": "max", "gsp": "sum", "token": "token"}[fields["classifier"]]
    known = {"readout": readout, "num_attention_heads": fields["heads"], "num_labels": fields["num_classes"]}
    if modality == "video":
        known.update(num_frames=sizes["num_frames"], image_size=(sizes["height"], sizes["width"]))
    else:
        known.update(spectrogram_length=sizes["spec_time"], num_mel_bins=sizes["spec_freq"])
    config = infer_config(params, **known)
    assert config.modalities == (modality,)
    assert config.final_norm == fields["normalise_encoder_output"]
    assert config.pooled_norm == (fields["classifier"] != "token")
    assert config.representation_size == fields["representation_size"]
    assert config.use_modality_tokens == fields["use_modality_tokens"]
    assert config.position_embeddings == fields["positional_embedding"].removesuffix("_1d")
    model = AVMAEForAudioVisualClassification(config).eval()
    model.load_state_dict(convert_avmae(params, config))
    model.to(device)
    output = model(**model_inputs(tensors))
    compare_all({"logits_eval": output.logits}, group(tensors, "output/"))
