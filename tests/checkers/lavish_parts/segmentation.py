"""
Checks of LAVISH's recorded cases of masks and losses: kinds `avs_decoder`, `avs_losses`, `avs_bce`, `ave_bce`, and of kind `avs`
what needs no backbone.

`check` runs one case. A dispatcher sets `device`, `on_compare` and `require` here as it is set itself.
"""

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from hf_avfusion.conversion.flax import convert
from hf_avfusion.conversion.lavish_segmentation import (
    decoder_rules,
    dropped_decoder_names,
    infer_decoder,
    is_decoder_name,
)
from hf_avfusion.metrics.segmentation import segmentation_scores
from hf_avfusion.models.lavish.losses_lavish import (
    NO_MASK,
    localization_loss,
    mask_loss,
    matching_loss,
    matching_losses,
    pooled_masks,
)
from hf_avfusion.models.lavish.segmentation_lavish import LavishMaskDecoder, LavishMaskDecoderOutput

OUTPUTS = 5e-5  # of the largest reference magnitude; the original itself is up to 1.4e-5 off float64 on a TPAVI map
LOSSES = 5e-6  # relative
GRADIENTS = 5e-4  # of the tensor's largest reference magnitude
LOSS_GRADIENTS = 5e-5  # likewise, of the loss functions alone
ROW_GRADIENTS = 1e-3  # of the row's largest, with a floor over the number of entries: saturated rows hang on last bits
ROUNDING = 1e-6  # of the case's largest gradient: float32 noise where exact arithmetic gives zero
MASK_SIZE = 224  # hard-coded in the original


def on_compare(name: str, error: float, magnitude: float) -> None:
    """Called with every comparison; benchmarks/golden_errors.py puts a recorder here."""


def require(holds: bool, message: str) -> None:
    """Called with every comparison against a bar; benchmarks/gpu.py counts the errors beyond it instead."""
    assert holds, message


device = torch.device("cpu")  # of models and inputs; benchmarks/gpu.py sets the accelerator


def tensor(array: np.ndarray) -> torch.Tensor:
    """Half precision holds the values exactly; they are used as float32."""
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array).to(device)


def group(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def check(folder: Path, record: dict, case: str) -> None:
    """Run one case; an unknown kind is an error."""
    checks = {
        "avs": check_avs,
        "avs_decoder": check_decoder,
        "avs_losses": check_losses,
        "avs_bce": check_mask_bce,
        "ave_bce": check_event_bce,
    }
    kind = record.get("kind", "unknown")
    assert kind in checks, f"lavish/{case}: no checker for kind {kind!r}"
    checks[kind](record, load_file(folder / f"{case}.safetensors"))


def close(name: str, ours: torch.Tensor, reference: np.ndarray, relative: float, floor: float = 1e-7) -> None:
    """Compare; `relative` counts in the largest reference value, `floor` is added to the bar."""
    found = ours.detach().float().cpu().numpy()
    reference = reference.reshape(()) if reference.shape == (1,) and found.shape == () else reference
    assert found.shape == reference.shape, f"{name}: {found.shape} instead of {reference.shape}"
    assert np.isfinite(found).all(), f"{name}: holds NaN or infinity"
    assert np.isfinite(reference).all(), f"{name}: the record holds NaN or infinity"
    error, magnitude = float(np.abs(found - reference).max()), float(np.abs(reference).max())
    on_compare(name, error, magnitude)
    allowed = relative * magnitude + floor
    require(error <= allowed, f"{name}: error {error:.2e}, largest {magnitude:.2e}, allowed {allowed:.2e}")


def compare_outputs(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    """Every recorded output must have a counterpart. Losses have a bar of their own."""
    assert expected, "the case records no output"
    for name, reference in expected.items():
        assert name in found, f"no counterpart of output/{name}"
        close(name, found[name], reference, LOSSES if "loss" in name else OUTPUTS)


def compare_gradients(
    found: dict[str, torch.Tensor | None], expected: dict[str, np.ndarray], relative: float, what: str = "grad"
) -> None:
    """Every recorded gradient must have a counterpart; one that is None counts as zero."""
    if not expected:
        return
    largest = max(float(np.abs(value).max()) for value in expected.values())
    for name, reference in expected.items():
        assert name in found, f"no counterpart of {what}/{name}"
        ours = found[name]
        ours = torch.zeros(reference.shape) if ours is None else ours
        close(f"{what} {name}", ours, reference, relative, ROUNDING * largest)


# ------------------------------------------------------------------------------------------------------------- decoder


def build_decoder(record: dict, params: dict[str, np.ndarray], grids: list[tuple[int, int]]) -> LavishMaskDecoder:
    """The decoder of a case, with its recorded parameters, in evaluation mode."""
    fields = infer_decoder(params)
    stages = fields["tpavi_stages"]
    # A case without TPAVI need not state the flags.
    flags = {
        "video_audio": bool(record.get("tpavi_va_flag", False)),
        "video_video": bool(record.get("tpavi_vv_flag", False)),
    }
    assert sorted(record["tpavi_stages"]) == list(stages), "tpavi_stages"
    assert record["channel"] == fields["channels"], "channel"
    assert tuple(record["vis_dim"]) == fields["map_widths"], "vis_dim"
    assert tuple(record["output_conv"]) == (fields["channels"], *fields["head_widths"], 1), "output_conv"
    decoder = LavishMaskDecoder(stage_grids=grids, mask_size=(MASK_SIZE, MASK_SIZE), **fields, **flags)
    rules = decoder_rules(stages, flags["video_audio"])
    shapes = {name: value.shape for name, value in decoder.state_dict().items()}
    decoder.load_state_dict(
        convert(params, rules, shapes, dropped_decoder_names(stages, flags["video_audio"])), strict=True
    )
    return decoder.to(device).eval()


def square_grid(tokens: int) -> tuple[int, int]:
    side = round(tokens**0.5)
    assert side * side == tokens, f"{tokens} tokens are no square"
    return side, side


def decoder_outputs(output: LavishMaskDecoderOutput, names: list[str], note: str) -> dict[str, torch.Tensor]:
    """
    What the records hold of a decoder's output, for the names asked.

    `pred` [clips * frames, 1, H, W], `feature_map{i}`, `audio_feature{i}`; with `_mean` and `_max` over positions (of `pred` over
    all of a frame), with `_every{n}` each n-th position, from the one that the record's `output_note` states.
    """
    whole = {"pred": output.logits.flatten(0, 1).unsqueeze(1)}
    whole |= {f"feature_map{stage}": maps for stage, maps in enumerate(output.feature_maps)}
    whole |= {f"audio_feature{stage}": value for stage, value in enumerate(output.audio_features) if value is not None}
    found = dict(whole)
    for name in names:
        match = re.fullmatch(r"(pred|feature_map\d)_(mean|max|every\d+)", name)
        if match is None or match[1] not in whole:
            continue
        value = whole[match[1]]
        if match[2].startswith("every"):
            stated = re.search(rf"{name} = \w*\[:, :, (\d*)::(\d+), \1::\2\]", note)
            assert stated is not None, f"`output_note` does not say which positions {name} holds"
            taken = slice(int(stated[1] or 0), None, int(stated[2]))
            found[name] = value[:, :, taken, taken]
            continue
        reduced = value.mean(dim=(2, 3)) if match[2] == "mean" else value.amax(dim=(2, 3))
        found[name] = reduced[:, 0] if match[1] == "pred" else reduced
    return found


def first_frame_labels(masks: torch.Tensor, frames: int) -> torch.Tensor:
    """Masks of the first frames [clips, 1, H, W] -> labels [clips, frames, H, W], 255 in the others."""
    labels = torch.full((masks.shape[0], frames, *masks.shape[2:]), NO_MASK, dtype=torch.uint8, device=masks.device)
    labels[:, 0] = masks[:, 0].to(torch.uint8)
    return labels


def total_loss(
    record: dict, output: LavishMaskDecoderOutput, labels: torch.Tensor, poolings: tuple[str, ...] = ("avg", "max")
) -> dict[str, torch.Tensor]:
    """The published losses of an output, under the names of the records."""
    found = {"loss_bce_first_frame": mask_loss(output.logits, labels)}
    found["loss_sa"] = torch.zeros((), device=labels.device)
    if record.get("sa_loss"):
        maps, features, stages = output.feature_maps, output.audio_features, record["sa_loss_stages"]
        for pooling in poolings:
            found[f"loss_sa_{pooling}"] = matching_loss(output.logits, maps, features, stages, pooling, output.paired)
        found["loss_sa"] = found[f"loss_sa_{record.get('mask_pooling_type', 'avg')}"]
    found["loss"] = found["loss_bce_first_frame"] + record.get("lambda_1", 0) * found["loss_sa"]
    return found


def recorded_labels(tensors: dict[str, np.ndarray], clips: int, frames: int) -> torch.Tensor:
    """Labels of a case: the mask of each clip's first frame, stored whole, for all frames, or smaller (nearest)."""
    if "input/mask_small" in tensors:
        masks = tensor(tensors["input/mask_small"])
        factor = MASK_SIZE // masks.shape[-1]
        masks = masks.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    else:
        masks = tensor(tensors["input/mask"])
        masks = masks[::frames] if masks.shape[0] == clips * frames else masks
    return first_frame_labels(masks, frames)


def check_decoder(record: dict, tensors: dict[str, np.ndarray]) -> None:
    params = group(tensors, "param/")
    frames = record["frames"]
    names = [*(f"tokens{i}" for i in range(1, 5)), *(["audio_tokens"] if "input/audio_tokens" in tensors else [])]
    inputs = {name: tensor(tensors[f"input/{name}"]) for name in names}
    grids = [square_grid(inputs[f"tokens{i}"].shape[1]) for i in range(1, 5)]
    decoder = build_decoder(record, params, grids)
    labels = recorded_labels(tensors, record["clips"], frames)
    rules = decoder_rules(record["tpavi_stages"], bool(record.get("tpavi_va_flag", False)))
    for mode, prefix, gradients in (("eval", "", "grad_eval"), ("train", "train/", "grad")):
        decoder.train(mode == "train")
        decoder.zero_grad()
        given = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        audio = given["audio_tokens"].mean(dim=1).unflatten(0, (-1, frames)) if "audio_tokens" in given else None
        output = decoder([given[f"tokens{i}"] for i in range(1, 5)], frames, audio)
        expected = {
            name: value
            for name, value in group(tensors, f"output/{prefix}").items()
            if prefix or not name.startswith("train/")
        }
        found = decoder_outputs(output, list(expected), record.get("output_note", "")) | total_loss(
            record, output, labels
        )
        for name, module in decoder.tpavi.items():
            for statistic in ("running_mean", "running_var"):
                found[f"tpavi_b{int(name) + 1}.{statistic}"] = getattr(module.batch_norm, statistic)
        if expected:
            compare_outputs(found, expected)
        found["loss"].backward()
        ours = {f"input/{name}": value.grad for name, value in given.items()}
        reached = dict(decoder.named_parameters())
        references = {}
        for source, reference in group(tensors, f"{gradients}/").items():
            if source.startswith("input/"):
                references[source] = reference
                continue
            assert source in rules, f"{source} has a recorded gradient, but no counterpart"
            target, layout = rules[source]
            references[source], ours[source] = layout(reference), reached[target].grad
        compare_gradients(ours, references, GRADIENTS, gradients)
        for source in record.get("params_without_gradient", []):
            gradient = reached[rules[source][0]].grad if source in rules else None
            assert gradient is None or not gradient.any(), f"{source} has a gradient"


def check_avs(record: dict, tensors: dict[str, np.ndarray]) -> None:
    """
    Of a whole model: names and shapes of the decoder's parameters, and losses and scores of the recorded prediction.

    If the case holds the tokens of the stages, also the decoder's outputs. Otherwise the backbone makes the tokens, and
    `checkers.lavish.check_avs` passes them to `check_avs_outputs`.
    """
    frames = record["frames"] if "frames" in record else tensors["input/audio"].shape[1]
    if all(f"input/tokens{i}" in tensors for i in range(1, 5)):
        tokens = [tensor(tensors[f"input/tokens{i}"]) for i in range(1, 5)]
        check_avs_outputs(record, tensors, tokens, tensor(tensors["input/audio_tokens"]))
        return
    params = {name: value for name, value in group(tensors, "param/").items() if is_decoder_name(name)}
    side = record["backbone"]["image_size"] // record["backbone"]["patch_size"]
    build_decoder(record, params, [(side // 2**stage, side // 2**stage) for stage in range(4)])
    expected = group(tensors, "output/")
    logits = tensor(expected["pred"]).squeeze(1).unflatten(0, (-1, frames))
    found = {"loss_bce_first_frame": mask_loss(logits, recorded_labels(tensors, logits.shape[0], frames))}
    if not record.get("sa_loss"):
        found["loss"], found["loss_sa"] = found["loss_bce_first_frame"], torch.zeros(())
    found |= mask_scores(logits, tensors)
    compare_outputs(found, {name: value for name, value in expected.items() if name in found})


def check_avs_outputs(
    record: dict, tensors: dict[str, np.ndarray], tokens: list[torch.Tensor], audio_tokens: torch.Tensor
) -> None:
    """
    All recorded outputs of a whole model, from its backbone's tokens.

    Args:
        tokens: video tokens at the end of each of the four stages, float [clips * frames, N_i, D_i].
        audio_tokens: final audio tokens, float [clips * frames, N, D].
    """
    frames = record["frames"] if "frames" in record else tensors["input/audio"].shape[1]
    params = {name: value for name, value in group(tensors, "param/").items() if is_decoder_name(name)}
    decoder = build_decoder(record, params, [square_grid(stage.shape[1]) for stage in tokens])
    expected = group(tensors, "output/")
    with torch.no_grad():
        output = decoder(tokens, frames, audio_tokens.mean(dim=1).unflatten(0, (-1, frames)))
    labels = recorded_labels(tensors, output.logits.shape[0], frames)
    found = decoder_outputs(output, list(expected), record.get("output_note", "")) | total_loss(record, output, labels)
    compare_outputs(found | mask_scores(output.logits, tensors), expected)


def mask_scores(logits: torch.Tensor, tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """mIoU and F-score of logits [clips, frames, H, W], where the case holds the masks of all frames."""
    masks = tensors.get("input/mask")
    if masks is None or masks.shape[0] != logits.shape[0] * logits.shape[1]:
        return {}
    masks = masks.reshape(logits.shape)
    scores = segmentation_scores(logits.detach().float().cpu().numpy(), masks)
    return {"miou": torch.tensor(scores.miou), "fscore": torch.tensor(scores.f_score)}


# -------------------------------------------------------------------------------------------------------------- losses


def check_losses(record: dict, tensors: dict[str, np.ndarray]) -> None:
    """Mask and matching loss of given predictions, maps and audio features, with gradients."""
    clips, frames, stages = record["clips"], record["frames"], record["sa_loss_stages"]
    names = ["pred", *(f"{kind}{stage}" for stage in stages for kind in ("feature_map", "audio_feature"))]
    labels = first_frame_labels(tensor(tensors["input/mask_first"]), frames)
    expected = group(tensors, "output/")
    gradients = group(tensors, "grad/")
    found: dict[str, torch.Tensor] = {}
    for pooling in ("avg", "max"):
        given = {name: tensor(tensors[f"input/{name}"]).requires_grad_() for name in names}
        logits = given["pred"].squeeze(1).unflatten(0, (clips, frames))
        maps = [given.get(f"feature_map{stage}") for stage in range(4)]
        features = [given.get(f"audio_feature{stage}") for stage in range(4)]
        found["loss_bce_first_frame"] = mask_loss(logits, labels)
        matching = matching_loss(logits, maps, features, stages, pooling)
        loss = found["loss_bce_first_frame"] + record["lambda_1"] * matching
        per_frame = matching_losses(logits, maps, features, stages, pooling).flatten(1)
        fractions = [pooled_masks(logits, maps[stage].shape[2:], pooling).float().mean(dim=(2, 3)) for stage in stages]
        found |= {f"{pooling}/loss": loss, f"{pooling}/loss_sa": matching, f"{pooling}/loss_sa_per_frame": per_frame}
        found[f"{pooling}/mask_fraction"] = torch.stack(fractions).flatten(1)
        loss.backward()
        pred = given.pop("pred").grad.unflatten(0, (clips, frames))
        require(not pred[:, 1:].any(), f"{pooling}: frames after the first have a gradient")
        ours = {f"{pooling}/{name}": value.grad for name, value in given.items()} | {"pred": pred[:, 0]}
        wanted = {name: value for name, value in gradients.items() if name in ours}
        compare_gradients(ours, wanted, LOSS_GRADIENTS)
        gradients = {name: value for name, value in gradients.items() if name == "pred" or name not in ours}
    assert set(gradients) <= {"pred"}, f"no counterpart of {sorted(set(gradients) - {'pred'})}"
    compare_outputs(found, expected)


def check_mask_bce(record: dict, tensors: dict[str, np.ndarray]) -> None:
    """The published mask loss where the sigmoid saturates, with its gradient, and the stable form."""
    frames = record["frames"]
    first = tensor(tensors["input/pred"]).requires_grad_()
    # The other frames hold other logits, which must not count.
    logits = torch.cat([first, first.detach().flip(2).repeat(1, frames - 1, 1, 1)], dim=1)
    labels = first_frame_labels(tensor(tensors["input/mask_first"]), frames)
    loss = mask_loss(logits, labels, "bce_of_probabilities")
    found = {
        "loss": loss,
        "loss_bce_first_frame": loss,
        "loss_with_logits": mask_loss(logits, labels, "bce_with_logits"),
    }
    compare_outputs(found, group(tensors, "output/"))
    loss.backward()
    compare_gradients({"pred": first.grad}, group(tensors, "grad/"), ROUNDING)
    if "input/special_pixels" in tensors:
        saturated = tensor(tensors["input/special_pixels"])[:2].flatten().long()
        require(not first.grad.flatten()[saturated].any(), "saturated wrong pixels have a gradient")


def check_event_bce(record: dict, tensors: dict[str, np.ndarray]) -> None:
    """The published loss of event localisation where the softmax saturates, with its gradient, and its stable form."""
    labels = tensor(tensors["input/labels"]).long()  # a test puts a dtype of floats in the place of the device
    found, ours = {}, {}
    for kind, suffix in (("bce_of_probabilities", ""), ("bce_of_log_probabilities", "_stable")):
        logits = tensor(tensors["input/logits"]).requires_grad_()
        loss = localization_loss(logits.unflatten(0, labels.shape), labels, kind)
        loss.backward()
        found[f"loss{suffix}"], ours[f"logits{suffix}"] = loss, logits.grad
        found["probs"] = logits.softmax(dim=-1)
    compare_outputs(found, group(tensors, "output/"))
    expected = group(tensors, "grad/")
    for name, reference in expected.items():
        assert name in ours, f"no counterpart of grad/{name}"
        for row, (mine, recorded) in enumerate(zip(ours[name], reference)):
            close(f"grad {name} row {row}", mine, recorded, ROW_GRADIENTS, 1e-5 / reference.size)
