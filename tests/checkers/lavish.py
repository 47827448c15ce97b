"""Checks of LAVISH's recorded cases: adapters, whole AVE models, their head and training steps; the other parts in lavish_parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import Swinv2Config, ViTConfig

from hf_avfusion.conversion.lavish import (
    HEAD_RULES,
    adapter_rules,
    adapters_rules,
    backbone_rules,
    convert_lavish,
    infer_adapter,
    infer_backbone,
    infer_config,
    normalize_names,
)
from hf_avfusion.media.windows import WindowPolicy, segment_ranges
from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig
from hf_avfusion.models.lavish.layers_lavish import AdapterOptions, LavishAdapter
from hf_avfusion.models.lavish.modeling_lavish import (
    LavishForAudioVisualClassification,
    LavishModelOutput,
    LavishTwoStreamModel,
)
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor

from . import mbt
from .lavish_parts import question_answering, segmentation, vggish
from .mbt import GRADIENTS, close, group

device = torch.device("cpu")  # of models and inputs; benchmarks/gpu.py sets the accelerator
STATES = 5e-5  # of the largest reference, measured: 3.9e-5; the unscaled soft-maxes of the latents amplify rounding
PARTS = (mbt, segmentation, vggish)  # modules with bars and a device of their own


def on_compare(name: str, error: float, magnitude: float) -> None:
    """Called with every comparison; benchmarks/golden_errors.py puts a recorder here."""


def require(holds: bool, message: str) -> None:
    """Called with every comparison against a bar; benchmarks/gpu.py counts the errors beyond it instead."""
    assert holds, message


def check(folder: Path, record: dict, case: str) -> None:
    """Run one case; an unknown kind is an error."""
    checks = {
        "adapter": check_adapter,
        "ave_vit": check_ave,
        "ave_swin": check_ave,
        "ave_head": check_head,
        "ave_optimizer": check_optimizer,
        "audio_frontend": check_front_end,
        "avs": check_avs,
        "avqa": check_avqa,
    }
    others = {
        **dict.fromkeys(("avs_decoder", "avs_losses", "avs_bce", "ave_bce"), segmentation),
        **dict.fromkeys(("vggish", "vggish_frontend"), vggish),
    }
    kind = record["kind"]
    assert kind in {*checks, *others}, f"lavish/{case}: no checker for kind {kind!r}"
    with shared_settings():
        if kind in others:
            others[kind].check(folder, record, case)
        else:
            checks[kind](load_file(folder / f"{case}.safetensors"), record)


@contextmanager
def shared_settings() -> Iterator[None]:
    """Gives the other modules this one's device and bars."""
    names = ("device", "on_compare", "require")
    before = [{name: getattr(part, name) for name in names} for part in PARTS]
    for part in PARTS:
        for name in names:
            setattr(part, name, globals()[name])
    try:
        yield
    finally:
        for part, values in zip(PARTS, before):
            for name, value in values.items():
                setattr(part, name, value)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def load_by_rules(module: torch.nn.Module, rules: dict, params: dict[str, np.ndarray], strict: bool = True) -> None:
    state = {target: tensor(np.array(layout(params[source]))) for source, (target, layout) in rules.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert not (strict and missing)


def check_gradients(
    module: torch.nn.Module, rules: dict, gradients: dict[str, np.ndarray], without: frozenset[str] = frozenset()
) -> None:
    """Compares each recorded gradient; a parameter of `without` took no part in the original."""
    parameters = dict(module.named_parameters())
    largest = max(float(np.abs(value).max()) for value in gradients.values())
    assert gradients
    for source, gradient in gradients.items():
        assert source not in without, source
        target, layout = rules[source]
        ours = parameters[target].grad
        assert ours is not None, target
        reference = layout(gradient)
        # Summands that cancel leave rounding of the size of the largest gradient.
        close(f"grad {target}", ours, reference, GRADIENTS, magnitude=float(np.abs(reference).max()) + 1e-4 * largest)
    for source in without & set(rules):
        assert parameters[rules[source][0]].grad is None, source


# ---------------------------------------------------------------------------------------------------------------- adapters

VARIANTS = {
    "AVE": {"unimodal_activation": "none", "token_init": "uniform"},
    "AVQA": {"unimodal_activation": "relu", "token_init": "zeros"},
    "AVS": {
        "unimodal_activation": "relu",
        "token_init": "zeros",
        "gate_before_post_norm": True,
        "ln_before_with_fusion": False,
    },
}


def check_adapter(tensors: dict[str, np.ndarray], record: dict) -> None:
    options = AdapterOptions(
        num_tokens=record["num_tokens"],
        reduction=record["reduction"],
        groups=record["groups"],
        use_bn=record["bn"],
        gate_audio=record["gate"],
        ln_before=record["ln_before"],
        ln_post=record["ln_post"],
        direction="both" if record["multimodal"] else "none",
        **VARIANTS[record["variant"]],
    )
    params = group(tensors, "param/")
    adapter = LavishAdapter(record["dim"], "audio", options).to(device).eval()
    rules = adapter_rules(set(params))
    load_by_rules(adapter, rules, params)
    own, other = tensor(tensors["input/x"]), tensors.get("input/context")
    other = None if other is None else tensor(other)
    gradients = group(tensors, "output/grad/")
    if gradients:
        for each in (own, other):
            if each is not None:
                each.requires_grad_(True)
    residual = adapter(own, other)
    close("residual", residual, tensors["output/residual"], 5e-6)
    if gradients:
        (residual * tensor(tensors["input/grad_output"])).sum().backward()
        check_gradients(adapter, rules, gradients, frozenset(record["params_without_gradient"]))
        close("grad_x", own.grad, tensors["output/grad_x"], GRADIENTS)
        close("grad_context", other.grad, tensors["output/grad_context"], GRADIENTS)
    if "output/train_mode_residual" in tensors:
        adapter.train()
        with torch.no_grad():
            close("train_mode_residual", adapter(own, other), tensors["output/train_mode_residual"], 1e-5)
        state = adapter.state_dict()
        for name, value in group(tensors, "output/after_train/").items():
            close(f"after_train {name}", state[rules[name][0]], value, 1e-6)


# ------------------------------------------------------------------------------------------------------------------- AVE


def ave_config(params: dict[str, np.ndarray], record: dict, **fields) -> object:
    backbone, sizes = record["backbone"], ("image_size", "window_size", "layer_norm_eps", "drop_path_rate")
    known = {name: backbone[name] for name in sizes if name in backbone}
    if backbone["type"] == "vit":
        known["num_attention_heads"] = backbone["heads"]
    return infer_config(normalize_names(params), backbone_config=known, **fields)


def check_ave(tensors: dict[str, np.ndarray], record: dict) -> None:
    params = group(tensors, "param/")
    rows, mels = record["audio_frame_shape"]
    config = ave_config(params, record, num_segments=record["frames"], spectrogram_length=rows, num_mel_bins=mels)
    model = LavishForAudioVisualClassification(config).to(device).eval()
    model.load_state_dict(convert_lavish(params, config), strict=True)
    inputs = {"pixel_values": tensor(tensors["input/video"]), "input_features": tensor(tensors["input/audio"])}
    expected = group(tensors, "output/")
    with capture(model.lavish) as found:
        output = model(**inputs)
    logits = output.logits
    found["logits"] = logits.flatten(0, 1)
    found["probs"] = found["logits"].softmax(dim=-1)
    labels = tensor(tensors["input/labels"]).long()
    loss = published_loss(found["logits"], labels.flatten())
    found["loss"] = loss[None]
    for name, reference in expected.items():
        if name.startswith("grad/"):
            continue
        if name == "num_correct":
            require(int((logits.argmax(-1) == labels).sum()) == int(reference[0]), "num_correct")
            continue
        assert name in found, f"no counterpart of output/{name}"
        close(name, found[name], reference, 1e-5 if name in ("logits", "probs", "loss") else STATES)
    gradients = group(expected, "grad/")
    if gradients:
        loss.backward()
        named = {name: (f"lavish.{target}", layout) for name, (target, layout) in adapters_rules(params).items()}
        check_gradients(model, {**named, **HEAD_RULES}, gradients)


def published_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    probabilities = logits.float().softmax(dim=-1)
    return torch.nn.functional.binary_cross_entropy(
        probabilities, torch.nn.functional.one_hot(labels, logits.shape[-1]).float()
    )


@contextmanager
def capture(model: LavishTwoStreamModel) -> Iterator[dict[str, torch.Tensor]]:
    """What enters each slot and leaves it, and the final norm, under the names of the recorded tensors."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for index, block in enumerate(model.blocks):
        for part in ("attn", "mlp"):

            def slot(module, args, output, prefix=f"block{index}/pre_{part}"):
                for stream, tokens, residual in zip(("audio", "video"), args[:2], output):
                    found[f"{prefix}/{stream}"] = tokens
                    found[f"{prefix}/{stream}_adapter"] = residual

            handles.append(getattr(block, f"fusion_{part}").register_forward_hook(slot))
    streams = iter(("video", "audio"))

    def norm(module, args, output):
        stream = next(streams)
        found[f"final_norm_in/{stream}"], found[f"final_norm_out/{stream}"] = args[0], output

    handles.append(model.backbone.layernorm.register_forward_hook(norm))
    yield found
    for handle in handles:
        handle.remove()


def check_head(tensors: dict[str, np.ndarray], record: dict) -> None:
    params, expected = group(tensors, "param/"), group(tensors, "output/")
    width, is_vit = record["dim"], record["encoder"] == "vit"
    backbone = (
        ViTConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=1, image_size=32)
        if is_vit
        else Swinv2Config(embed_dim=width, depths=[1], num_heads=[1], image_size=32)
    )
    sizes = {"num_labels": record["num_labels"], "classifier_hidden_size": record["head_hidden"]}
    side = {"spectrogram_length": 32, "num_mel_bins": 32, "num_segments": record["frames"]}
    head = LavishForAudioVisualClassification(LavishTwoStreamConfig(backbone_config=backbone, **sizes, **side)).to(
        device
    )
    rules = HEAD_RULES
    video, audio = (tensor(tensors[f"input/{stream}_tokens"]).requires_grad_() for stream in ("video", "audio"))
    labels = tensor(tensors["input/labels"]).long().flatten()
    for prefix, gain in (("", 1.0), ("saturated/", record["saturated_gain"])):
        load_by_rules(head, rules, params, strict=False)
        with torch.no_grad():
            for parameter in head.classifier.parameters():
                parameter.mul_(gain)
        features = {"video": head.lavish._feature(video), "audio": head.lavish._feature(audio)}
        logits = head._head(head.lavish._join_features(features, None))
        logits.retain_grad()
        loss = published_loss(logits, labels)
        close(f"{prefix}logits", logits, expected[f"{prefix}logits"], 1e-5)
        close(f"{prefix}probs", logits.softmax(dim=-1), expected[f"{prefix}probs"], 2e-5)
        close(f"{prefix}loss", loss[None], expected[f"{prefix}loss"], 2e-6 if not prefix else 1e-5)
        assert int((logits.argmax(-1) == labels).sum()) == int(expected[f"{prefix}num_correct"][0])
        head.zero_grad()
        for each in (video, audio):
            each.grad = None
        loss.backward()
        if prefix:
            close("grad saturated/logits", logits.grad, tensors["grad/saturated/logits"], GRADIENTS)
            continue
        own = {name: value for name, value in group(tensors, "grad/").items() if name in rules}
        check_gradients(head, rules, own)
        for name, ours in (("logits", logits), ("video_tokens", video), ("audio_tokens", audio)):
            close(f"grad {name}", ours.grad, tensors[f"grad/{name}"], 1e-5)


def check_optimizer(tensors: dict[str, np.ndarray], record: dict) -> None:
    """The published trainers' steps, with their defects, from the same batches: losses, gradients, weights, BatchNorm."""
    params = group(tensors, "param/")
    rows, mels = tensors["input/audio"].shape[3:]
    config = ave_config(
        params,
        record,
        num_segments=record["frames"],
        spectrogram_length=rows,
        num_mel_bins=mels,
        use_stochastic_depth=True,
    )
    model = LavishForAudioVisualClassification(config).to(device).train()
    model.load_state_dict(convert_lavish(params, config), strict=True)
    adapters = {name: (f"lavish.{target}", layout) for name, (target, layout) in adapters_rules(params).items()}
    rules, named = {**adapters, **HEAD_RULES}, dict(model.named_parameters())
    order = [(name, named[rules[name][0]]) for name, _ in record["flat_order"]]
    settings = {"betas": tuple(record["adam"]["betas"]), "eps": record["adam"]["eps"]}
    groups = [
        {"params": [parameter], "lr": record["lr_mlp"] if "mlp_class" in name else record["lr"]}
        for name, parameter in order
    ]
    optimizer = torch.optim.Adam(groups, weight_decay=record["adam"]["weight_decay"], **settings)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, record.get("decay_epoch", 10**6), record.get("decay", 1.0))
    counted = np.concatenate(
        [np.full(parameter.numel(), not name.endswith("ln_before.bias")) for name, parameter in order]
    )
    counted &= (np.abs(tensors["output/gradients"]) > 1e-5).all(axis=0)  # Adam makes full steps of rounding noise
    rates = np.concatenate([np.full(each.numel(), group["lr"]) for (_, each), group in zip(order, groups)])
    losses, batch, step = [], 0, 0
    for event in record["events"]:
        if event == "zero_grad":
            optimizer.zero_grad()
        elif event == "backward":
            index = batch % record["num_batches"]
            video, audio, labels = (tensor(tensors[f"input/{name}"][index]) for name in ("video", "audio", "labels"))
            logits = model(pixel_values=video.float(), input_features=audio.float()).logits
            loss = published_loss(logits.flatten(0, 1), labels.long().flatten())
            loss.backward()
            losses.append(loss.detach())
            batch += 1
        elif event == "scheduler_step":
            scheduler.step()
        else:
            gradient = torch.cat([parameter.grad.flatten() for _, parameter in order])
            close(f"gradients {step}", gradient, tensors["output/gradients"][step], GRADIENTS)
            optimizer.step()
            ours = torch.cat([parameter.detach().flatten() for _, parameter in order]).cpu().numpy()
            error = np.abs(ours - tensors["output/parameters"][step])[counted] / rates[counted]
            require(float(error.max()) <= 1e-2, f"parameters after step {step}: {error.max():.2e} of the learning rate")
            step += 1
    assert step == len(tensors["output/parameters"])
    close("losses", torch.stack(losses), tensors["output/losses"], 1e-5)
    state = model.state_dict()
    for name, value in group(tensors, "output/buffers/").items():
        # A step of noise in `ln_before.bias` shifts this mean, which the batch statistics then remove.
        shift = record["lr"] * step if name.endswith("bn1.running_mean") else 0.0
        close(name, state[rules[name][0]], value, 1e-3, magnitude=float(np.abs(value).max()) + 1e3 * shift)


# ------------------------------------------------------------------------------------------- segmentation and questions


def base_of(tensors: dict[str, np.ndarray], record: dict, variant: str, side: int) -> LavishTwoStreamModel:
    """The two streams with the recorded parameters, without a head."""
    params = normalize_names(group(tensors, "param/"))
    fields = ("image_size", "window_size", "layer_norm_eps")
    backbone = infer_backbone(params, {name: record["backbone"][name] for name in fields})
    sizes = {"num_segments": tensors["input/audio"].shape[1], "spectrogram_length": side, "num_mel_bins": side}
    adapter = {**infer_adapter(params), **VARIANTS[variant]}
    model = (
        LavishTwoStreamModel(LavishTwoStreamConfig(backbone_config=backbone, adapter=adapter, **sizes))
        .to(device)
        .eval()
    )
    rules = {**backbone_rules(model.config), **adapters_rules(params)}
    load_by_rules(model, rules, params)
    return model


def check_base(
    model: LavishTwoStreamModel, inputs: dict[str, torch.Tensor], tensors: dict[str, np.ndarray], **options
) -> LavishModelOutput:
    """Compares the states of both streams, and returns the output."""
    with torch.no_grad(), capture(model) as found:
        output = model(**inputs, **options)
    for name, reference in group(tensors, "output/").items():
        if name in found:
            close(name, found[name], reference, STATES)
    return output


def check_avs(tensors: dict[str, np.ndarray], record: dict) -> None:
    side = record["backbone"]["image_size"]
    model = base_of(tensors, record, "AVS", side)
    frames, resize = tensor(tensors["input/video_small"]).float(), torch.nn.functional.interpolate
    sizes = frames.shape[:2]
    frames = resize(frames.flatten(0, 1), size=(224, 224), mode="bilinear", align_corners=False)  # the recorded input
    frames = resize(frames, size=(side, side), mode="bicubic", align_corners=False)  # in the published model
    inputs = {"pixel_values": frames.unflatten(0, sizes), "input_features": tensor(tensors["input/audio"]).float()}
    output = check_base(model, inputs, tensors, output_stage_states=True)
    tokens = [stage.flatten(0, 1) for stage in output.stage_states]
    segmentation.check_avs_outputs(record, tensors, tokens, output.audio_hidden_state.flatten(0, 1))


def check_avqa(tensors: dict[str, np.ndarray], record: dict) -> None:
    model = base_of(tensors, record, "AVQA", record["backbone"]["image_size"])
    inputs = {"pixel_values": tensor(tensors["input/video_positive"]), "input_features": tensor(tensors["input/audio"])}
    output = check_base(model, inputs, tensors)
    tokens = {"video_tokens": output.video_hidden_state, "audio_tokens": output.audio_hidden_state}
    if "input/video_negative" in tensors:
        tokens["negative_video_tokens"] = model.encode_frozen(tensor(tensors["input/video_negative"]))
    head = question_answering.build_head(record, tensors)
    question_answering.check_head(head, tokens, tensors, "avqa")


# -------------------------------------------------------------------------------------------------------------- front end

CLIPS = {  # front end -> preset, seconds of a clip, number of clips of a file
    "ave_swin": ("lavish_ave_swin", 1.0, 10),
    "ave_vit": ("lavish_ave_vit", 1.0, 10),
    "avqa": ("lavish_avqa", 1.95, 10),
    "avs_len1": ("lavish_avs", 1.0, 5),
}


def check_front_end(tensors: dict[str, np.ndarray], record: dict) -> None:
    rate = record["sample_rate"]
    for name, (rows, mels) in record["clips"].items():
        kind, source, index = name.split("/")
        preset, seconds, count = CLIPS[kind]
        waveform = tensors[f"input/waveform_{source}"][0] / np.float32(32768)
        policy = WindowPolicy(num_segments=count, segment_seconds=seconds)
        first, last = segment_ranges(policy, len(waveform), rate)[int(index)]
        waveform = waveform[first:last]
        extractor = AVFusionFeatureExtractor.from_preset(preset)
        features = extractor(waveform, sampling_rate=rate, return_tensors="pt").input_features[0]
        assert tuple(features.shape) == (rows, mels)
        close(name, features, tensors[f"output/{name}"], 1e-4)
