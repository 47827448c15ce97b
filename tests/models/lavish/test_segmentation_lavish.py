"""LAVISH's mask decoder and losses: recorded cases of the original, and second formulations written from the published steps."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkers.lavish_parts import segmentation
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.nn import functional as F

from hf_avfusion.conversion.flax import ConversionError, convert
from hf_avfusion.conversion.lavish_segmentation import (
    decoder_rules,
    dropped_decoder_names,
    infer_decoder,
    is_decoder_name,
)
from hf_avfusion.models.lavish.layers_lavish import PresenceBatchNorm
from hf_avfusion.models.lavish.losses_lavish import (
    localization_loss,
    log_complements,
    mask_loss,
    matching_loss,
    matching_losses,
)
from hf_avfusion.models.lavish.segmentation_lavish import (
    LavishMaskDecoder,
    LavishTPAVI,
    attend,
    init_segmentation_layer,
)
from hf_avfusion.models.shared.layers_vit import init_marked_layer

TESTS = Path(__file__).parents[2]
COPIED = TESTS / "goldens" / "lavish"
SHARED = TESTS.parent.parent / "shared" / "goldens" / "lavish"
KINDS = ("avs", "avs_decoder", "avs_losses", "avs_bce", "ave_bce")
GRIDS = ((6, 6), (4, 4), (3, 3), (2, 2))
SECONDS = 3


def recorded(folder: Path) -> list[str]:
    paths = sorted(folder.glob("*.json"))
    return [path.stem for path in paths if json.loads(path.read_text(encoding="utf-8")).get("kind") in KINDS]


def run_case(folder: Path, case: str) -> None:
    segmentation.check(folder, json.loads((folder / f"{case}.json").read_text(encoding="utf-8")), case)


def build(stages=(), video_audio=True, video_video=False, **overrides) -> LavishMaskDecoder:
    """A tiny decoder in float64 with random values in all parameters and statistics."""
    torch.manual_seed(0)
    arguments = {
        "stage_widths": (3, 4, 5, 6),
        "stage_grids": GRIDS,
        "mask_size": (64, 32),
        "map_widths": (2, 3, 4, 5),
        "channels": 6,
        "head_widths": (5, 4),
        "audio_width": 7,
        "audio_feature_width": 8,
    }
    decoder = LavishMaskDecoder(
        **{**arguments, "tpavi_stages": stages, "video_audio": video_audio, "video_video": video_video, **overrides}
    ).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * (parameter[0].numel() or 1) ** -0.5)
        for module in decoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return decoder.eval()


def draw(clips=2, seconds=SECONDS, seed=1) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [
        torch.randn(clips * seconds, rows * columns, width, generator=generator, dtype=torch.float64)
        for (rows, columns), width in zip(GRIDS, (3, 4, 5, 6))
    ]
    return tokens, torch.randn(clips, seconds, 7, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------- the published steps, once more


def plain_tpavi(module: LavishTPAVI, norm: nn.BatchNorm3d, maps: torch.Tensor, seconds: int, audio=None):
    """As published: five axes, the matrix over all pairs of positions, one pass for each kind of key."""

    def conv3d(layer: nn.Conv2d, values: torch.Tensor) -> torch.Tensor:
        return F.conv3d(values, layer.weight[:, :, None], layer.bias)

    x = maps.unflatten(0, (-1, seconds)).transpose(1, 2)  # [B, C, T, H, W]
    source, feature = x, None
    if audio is not None:
        feature = F.linear(audio, module.audio_projection.weight, module.audio_projection.bias)
        source = feature.transpose(1, 2)[..., None, None].expand_as(x)
    value = conv3d(module.value, x).flatten(2).transpose(1, 2)
    theta, phi = conv3d(module.query, x).flatten(2), conv3d(module.key, source).flatten(2)
    weights = theta.transpose(1, 2) @ phi
    y = (weights / weights.shape[-1]) @ value
    z = norm(conv3d(module.output, y.transpose(1, 2).unflatten(2, x.shape[2:]).contiguous())) + x
    z = F.layer_norm(z.permute(0, 2, 3, 4, 1), z.shape[1:2], module.layer_norm.weight, module.layer_norm.bias)
    return z.permute(0, 1, 4, 2, 3).flatten(0, 1), feature


def plain_decoder(decoder: LavishMaskDecoder, tokens, seconds: int, audio, video_audio: bool, video_video: bool):
    """The published forward, with its in-place ReLUs."""

    def unit(module, x):
        out = F.conv2d(x.relu_(), module.conv1.weight, module.conv1.bias, padding=1)
        return F.conv2d(out.relu_(), module.conv2.weight, module.conv2.bias, padding=1) + x

    def fuse(module, *xs):
        output = xs[0]
        if len(xs) == 2:
            output = output + unit(module.lateral, xs[1])
        return F.interpolate(unit(module.residual, output), scale_factor=2, mode="bilinear", align_corners=True)

    maps, features, norms = [], [None] * 4, {}
    if decoder.audio_projection is not None:
        audio = F.linear(audio, decoder.audio_projection.weight, decoder.audio_projection.bias)
    for stage, size in enumerate(((16, 8), (8, 4), (4, 2), (2, 1))):
        linear = decoder.projections[stage]
        x = F.linear(tokens[stage].unflatten(1, GRIDS[stage]), linear.weight, linear.bias).permute(0, 3, 1, 2)
        x = F.interpolate(x, size=size, mode="bicubic")
        convs = zip(decoder.dilated_convs[stage].convs, (3, 6, 12, 18))
        x = sum(F.conv2d(x, conv.weight, conv.bias, padding=step, dilation=step) for conv, step in convs)
        if str(stage) in decoder.tpavi:
            module = decoder.tpavi[str(stage)]
            norm = norms[stage] = nn.BatchNorm3d(x.shape[1]).double().train(decoder.training)
            norm.load_state_dict(copy.deepcopy(module.batch_norm.state_dict()))
            norm.weight, norm.bias = module.batch_norm.weight, module.batch_norm.bias
            total = torch.zeros_like(x)
            if video_video:
                total = total + plain_tpavi(module, norm, x, seconds)[0]
            if video_audio:
                z, features[stage] = plain_tpavi(module, norm, x, seconds, audio)
                total = total + z
            x = total / (video_video + video_audio)
        maps.append(x.clone())
    fused = fuse(decoder.fusions[3], maps[3])
    for stage in (2, 1, 0):
        fused = fuse(decoder.fusions[stage], fused, maps[stage])
    head = decoder.mask_head
    x = F.interpolate(F.conv2d(fused, head.conv1.weight, head.conv1.bias, padding=1), scale_factor=2, mode="bilinear")
    x = F.conv2d(F.relu(F.conv2d(x, head.conv2.weight, head.conv2.bias, padding=1)), head.conv3.weight, head.conv3.bias)
    return x.squeeze(1).unflatten(0, (-1, seconds)), maps, features, norms


# ------------------------------------------------------------------------------------------------------ recorded cases


@pytest.mark.parametrize("case", recorded(COPIED))
def test_copied_case(case):
    run_case(COPIED, case)


@pytest.mark.parametrize("case", recorded(SHARED) or [None])
def test_shared_case(case):
    if case is None:
        pytest.skip("no folder ../shared/goldens/lavish beside the repository; the copied cases prove most of the same")
    run_case(SHARED, case)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("avs_decoder_va_vv", "output/pred_every7"),
        ("avs_decoder_va_vv", "output/audio_feature3"),
        ("avs_decoder_va_vv", "output/train/tpavi_b2.running_var"),
        ("avs_decoder_va_vv", "output/loss_sa_max"),
        ("avs_decoder_va_vv", "output/never_heard_of"),
        ("avs_decoder_va_vv", "grad/path2.resConfUnit1.conv1.weight"),
        ("avs_decoder_va_vv", "grad_eval/input/audio_tokens"),
        ("avs_bce_saturated", "output/loss_with_logits"),
        ("avs_bce_saturated", "grad/pred"),
        ("ave_bce_saturated", "output/probs"),
        ("ave_bce_saturated", "grad/logits"),
    ],
)
def test_the_checker_notices_one_value_off(tmp_path, case, name):
    tensors = load_file(COPIED / f"{case}.safetensors")
    value = tensors.get(name, np.ones(1, np.float32)).copy()
    value.flat[0] += 1e-2 * np.abs(value).max()
    save_file({**tensors, name: value}, tmp_path / f"{case}.safetensors")
    (tmp_path / f"{case}.json").write_bytes((COPIED / f"{case}.json").read_bytes())
    with pytest.raises(AssertionError):
        run_case(tmp_path, case)


def test_a_whole_model_is_checked_from_the_tokens_of_its_stages(tmp_path):
    """As when a backbone gives the tokens of a case of kind `avs`: here those of a recorded decoder."""
    record = json.loads((COPIED / "avs_decoder_va_vv.json").read_text(encoding="utf-8"))
    tensors = load_file(COPIED / "avs_decoder_va_vv.safetensors")
    tensors = {name: value for name, value in tensors.items() if not name.startswith(("output/train/", "grad"))}
    tensors["param/swin.norm.weight"] = np.ones(8, np.float32)
    save_file(tensors, tmp_path / "case.safetensors")
    segmentation.check(tmp_path, {**record, "kind": "avs"}, "case")
    tensors["output/pred_every7"][0, 0, 0, 0] += 0.1
    save_file(tensors, tmp_path / "case.safetensors")
    with pytest.raises(AssertionError, match="pred_every7"):
        segmentation.check(tmp_path, {**record, "kind": "avs"}, "case")


# ------------------------------------------------------------------------------------------------------------- decoder

FLAGS = [((), False, False), ((0, 3), True, False), ((1, 2), False, True), ((0, 1, 2, 3), True, True)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("stages", "video_audio", "video_video"), FLAGS)
def test_decoder_equals_the_published_steps(stages, video_audio, video_video, training):
    decoder = build(stages, video_audio, video_video).train(training)
    inputs, audio = draw()
    leaves = [value.requires_grad_() for value in (*inputs, audio)]
    wanted = plain_decoder(decoder, inputs, SECONDS, audio, video_audio, video_video)
    output = decoder(inputs, SECONDS, audio)
    assert output.logits.shape == (2, SECONDS, 64, 32)
    assert output.paired is None
    torch.testing.assert_close(output.logits, wanted[0])
    for stage in range(4):
        torch.testing.assert_close(output.feature_maps[stage], wanted[1][stage])
        assert (output.audio_features[stage] is None) == (wanted[2][stage] is None)
        if wanted[2][stage] is not None:
            torch.testing.assert_close(output.audio_features[stage], wanted[2][stage])
    for stage, norm in wanted[3].items():
        ours = decoder.tpavi[str(stage)].batch_norm
        torch.testing.assert_close(ours.running_mean, norm.running_mean)
        torch.testing.assert_close(ours.running_var, norm.running_var)
        assert ours.num_batches_tracked == norm.num_batches_tracked == training * (video_audio + video_video)
    parameters = [*decoder.parameters(), *leaves]
    seed = torch.randn(wanted[0].shape, dtype=torch.float64)
    ours = torch.autograd.grad((output.logits * seed).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((wanted[0] * seed).sum(), parameters, allow_unused=True)
    for mine, reference in zip(ours, theirs):
        assert (mine is None) == (reference is None)
        if mine is not None:
            torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-8)
    assert all(gradient is not None for gradient in ours[: len(parameters) - 1])  # every parameter is used


def test_tpavi_keeps_nothing_that_grows_with_the_square_of_the_positions():
    module, saved = LavishTPAVI(8, 5, video_video=True).train(), []
    maps, audio = torch.randn(5, 8, 24, 24, requires_grad=True), torch.randn(1, 5, 5)

    def pack(value):
        saved.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        module(maps, 5, audio)
    assert max(saved) <= maps.numel()


def test_attention_in_half_precision_does_not_overflow():
    query, key, value = (torch.full((5, 4, 3136), 4.0) for _ in range(3))
    half = attend(query.half(), key.half(), value.half(), 5)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), attend(query, key, value, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(query, key, value, 5), attend(query.clone(), key, value, 5))
        assert attend(query, key, value, 5).dtype == torch.float32


def test_a_fresh_tpavi_is_a_layer_norm_and_initialisation_is_as_published():
    decoder = LavishMaskDecoder((3, 4, 5, 6), GRIDS, (32, 32), tpavi_stages=(1,), audio_width=7, video_video=True)
    for _ in range(2):  # as constructed, and as a model's `_init_weights` makes it
        tpavi, maps = decoder.tpavi["1"], torch.randn(2, 256, 4, 4)
        updated, _ = tpavi(maps, 2, torch.randn(1, 2, 128))
        torch.testing.assert_close(updated, tpavi.layer_norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        conv, plain = decoder.dilated_convs[3].convs[0], decoder.fusions[0].residual.conv1
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert plain.weight.abs().max().item() == pytest.approx((256 * 9) ** -0.5, rel=0.01)
        assert plain.bias.abs().max().item() == pytest.approx((256 * 9) ** -0.5, rel=0.05)
        for module in decoder.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.constant_(module.weight, 3.0)
                nn.init.constant_(module.bias, 3.0)
            elif isinstance(module, nn.BatchNorm1d):
                nn.init.ones_(module.weight)
        for rule in (init_marked_layer, init_segmentation_layer):
            with torch.no_grad():
                decoder.apply(rule)
    assert all(not parameter.eq(3.0).any() for parameter in decoder.parameters())


@pytest.mark.parametrize(("stages", "video_audio", "video_video"), FLAGS)
def test_clips_with_missing_modalities_equal_runs_one_by_one(stages, video_audio, video_video):
    decoder = build(stages, video_audio, video_video)
    tokens, audio = draw(clips=3)
    audio[1] = float("nan")
    present = torch.tensor([True, False, True])
    mixed = decoder(tokens, SECONDS, audio, audio_present=present)
    for clip in range(3):
        rows = slice(clip * SECONDS, (clip + 1) * SECONDS)
        given = audio[clip : clip + 1] if clip != 1 else None
        alone = decoder([stage[rows] for stage in tokens], SECONDS, given)
        torch.testing.assert_close(mixed.logits[clip : clip + 1], alone.logits)
        if decoder.uses_audio:
            assert alone.paired is None if clip != 1 else not alone.paired.any()
    if not decoder.uses_audio:  # runs without audio, and needs to know nothing about it
        assert mixed.paired is None
        torch.testing.assert_close(decoder(tokens, SECONDS).logits, mixed.logits, rtol=0, atol=0)
    else:
        assert torch.equal(mixed.paired, present)
        assert not mixed.audio_features[0][1].any()
    tokens, audio = draw()
    masked = decoder(tokens, SECONDS, audio, torch.ones(2).bool(), torch.ones(2).bool())
    assert torch.equal(decoder(tokens, SECONDS, audio).logits, masked.logits)


def test_missing_clips_reach_neither_statistics_nor_gradients():
    tokens, audio = draw(clips=4)
    has_video, has_audio = torch.tensor([True, True, False, True]), torch.tensor([True, False, True, True])
    for stage in tokens:
        stage[2 * SECONDS : 3 * SECONDS] = 50.0
    audio[1] = float("nan")
    decoder = build((2,), True, False).train()
    output = decoder(tokens, SECONDS, audio, has_video, has_audio)
    assert output.paired.tolist() == [True, False, False, True]
    output.logits[output.paired].sum().backward()
    # The same with the complete clips alone; the maps of clip 1 go another way, so its logits stay out here.
    alone = build((2,), True, False).train()
    rows = torch.cat([torch.arange(SECONDS), torch.arange(3 * SECONDS, 4 * SECONDS)])
    partial = alone([stage[rows] for stage in tokens], SECONDS, audio[[0, 3]])
    partial.logits.sum().backward()
    torch.testing.assert_close(output.logits[[0, 3]], partial.logits)
    for (name, mine), reference in zip(decoder.named_parameters(), alone.parameters()):
        torch.testing.assert_close(mine.grad, reference.grad, msg=name)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(
            getattr(decoder.tpavi["2"].batch_norm, name), getattr(alone.tpavi["2"].batch_norm, name)
        )


def test_batch_norm_of_present_rows():
    values = torch.randn(6, 4, 5, dtype=torch.float64)
    ours, theirs = PresenceBatchNorm(4).double(), nn.BatchNorm1d(4).double()
    present = torch.tensor([True, False, True, True, False, True])
    torch.testing.assert_close(ours(values, present)[present], theirs(values[present]))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours(values), theirs(values))
    before = copy.deepcopy(ours.state_dict())
    assert ours(values, torch.zeros(6).bool()).isfinite().all()
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_audio_missing_everywhere_still_reaches_all_parameters():
    decoder = build((1,), True, True).train()
    output = decoder(draw()[0], SECONDS)
    assert not output.paired.any()
    output.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())  # DDP waits for each
    assert not decoder.audio_projection.weight.grad.any()


@pytest.mark.slow
def test_the_decoder_compiles_exports_and_runs_in_bfloat16():
    decoder = build((1, 3), True, True).float()
    tokens, audio = [stage.float() for stage in draw()[0]], draw()[1].float()
    wanted = decoder(tokens, SECONDS, audio).logits
    compiled = torch.compile(decoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens, SECONDS, audio).logits, wanted)
    present = torch.tensor([True, False])
    wanted_masked = copy.deepcopy(decoder).train()(tokens, SECONDS, audio, audio_present=present).logits
    masked = torch.compile(copy.deepcopy(decoder).train(), fullgraph=True, backend="eager")
    torch.testing.assert_close(masked(tokens, SECONDS, audio, audio_present=present).logits, wanted_masked)
    rows, clips = 3 * torch.export.Dim("clips", max=64), torch.export.Dim("clips", max=64)
    shapes = {"video_tokens": [{0: rows}] * 4, "num_segments": None, "audio": {0: clips}}
    exported = torch.export.export(
        decoder, (), {"video_tokens": tokens, "num_segments": SECONDS, "audio": audio}, dynamic_shapes=shapes
    )
    more, more_audio = [stage.float() for stage in draw(clips=3)[0]], draw(clips=3)[1].float()
    again = exported.module()(video_tokens=more, num_segments=SECONDS, audio=more_audio)
    torch.testing.assert_close(again.logits, decoder(more, SECONDS, more_audio).logits)
    half = copy.deepcopy(decoder).bfloat16()([stage.bfloat16() for stage in tokens], SECONDS, audio.bfloat16()).logits
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": (0, 4)}, "`tpavi_stages` must be different numbers from 0 to 3"),
        ({"stages": (1, 1)}, "`tpavi_stages` must be different numbers from 0 to 3"),
        ({"stages": (1,), "video_audio": False}, "need video-audio or video-video attention"),
        ({"stages": (1,), "audio_width": None}, "needs `audio_width`"),
        ({"mask_size": (224, 100)}, "`mask_size` must be a multiple of 32"),
        ({"map_widths": (2, 3, 4)}, "`map_widths` must have 4 entries"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_wrong_inputs_are_refused():
    decoder = build((1,))
    tokens, audio = draw()
    with pytest.raises(ValueError, match="4 stages, got 3"):
        decoder(tokens[:3], SECONDS, audio)
    with pytest.raises(ValueError, match="of stage 1 must be"):
        decoder([tokens[0], tokens[1][:, 1:], *tokens[2:]], SECONDS, audio)
    with pytest.raises(ValueError, match="hold 6 seconds, which are not clips of 4"):
        decoder(tokens, 4, audio)
    with pytest.raises(ValueError, match="`audio` must be"):
        decoder(tokens, SECONDS, audio[:1])


# ---------------------------------------------------------------------------------------------------------- conversion


@pytest.mark.parametrize(("stages", "video_audio", "video_video"), FLAGS)
def test_original_names_convert_strictly(stages, video_audio, video_video):
    decoder = build(stages, video_audio, video_video)
    state = {name: value.numpy() for name, value in decoder.state_dict().items()}
    rules, dropped = decoder_rules(stages, video_audio), dropped_decoder_names(stages, video_audio)
    kernels = (".theta.weight", ".phi.weight", ".g.weight", ".W_z.0.weight")
    original = {
        source: state[target][:, :, None] if source.endswith(kernels) else state[target]
        for source, (target, _) in rules.items()
    }
    original |= {name: np.ones(3, np.float32) for name in dropped}
    shapes = {name: value.shape for name, value in state.items()}
    converted = convert(original, rules, shapes, dropped)
    decoder.load_state_dict(converted, strict=True)
    for name, value in converted.items():
        np.testing.assert_array_equal(value.numpy(), state[name].astype(np.float32))
    assert all(is_decoder_name(name) for name in original)
    assert not any(is_decoder_name(name) for name in ("swin.norm.weight", "vis_adapter_blocks_p1.0.gate", "conv9.bias"))
    assert set(rules).isdisjoint(dropped)
    prefixed = decoder_rules(stages, video_audio, "decoder.")
    assert [target for target, _ in prefixed.values()] == [f"decoder.{target}" for target, _ in rules.values()]
    with pytest.raises(ConversionError, match=r"path4\.resConfUnit1"):
        convert(original, rules, shapes)
    with pytest.raises(ConversionError, match="x1_linear"):
        convert({name: value for name, value in original.items() if "x1_linear" not in name}, rules, shapes, dropped)
    original["audio_linear.weight"] = np.ones((8, 7), np.float32)
    assert infer_decoder(original) == {
        "stage_widths": (3, 4, 5, 6),
        "map_widths": (2, 3, 4, 5),
        "channels": 6,
        "head_widths": (5, 4),
        "tpavi_stages": stages,
        "audio_width": 7,
        "audio_feature_width": 8,
    }


# -------------------------------------------------------------------------------------------------------------- losses


def masks_and_logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, SECONDS, 8, 6, generator=generator) * 3
    labels = torch.randint(0, 2, (2, SECONDS, 8, 6), generator=generator)
    labels[0, 1:] = labels[1, 2] = 255
    return logits, labels


@pytest.mark.parametrize("kind", ["bce_of_probabilities", "bce_with_logits"])
def test_mask_loss_is_the_mean_over_seconds_with_a_mask(kind):
    logits, labels = masks_and_logits()
    logits.requires_grad_()
    counted = [(0, 0), (1, 0), (1, 1)]
    wanted = [
        F.binary_cross_entropy(logits[place].sigmoid(), labels[place].float())
        if kind == "bce_of_probabilities"
        else F.binary_cross_entropy_with_logits(logits[place], labels[place].float())
        for place in counted
    ]
    loss = mask_loss(logits, labels, kind)
    torch.testing.assert_close(loss, sum(wanted) / 3)
    loss.backward()
    assert not logits.grad[0, 1:].any()
    assert not logits.grad[1, 2].any()
    for dtype in (torch.uint8, torch.float32):
        assert torch.equal(mask_loss(logits, labels.to(dtype), kind), loss)
    assert torch.equal(
        mask_loss(logits[:, :1], labels[:, :1].bool(), kind), mask_loss(logits[:, :1], labels[:, :1], kind)
    )
    with torch.autocast("cpu", torch.bfloat16):  # torch refuses BCELoss there
        assert torch.equal(mask_loss(logits, labels, kind), loss)
    empty = mask_loss(logits, torch.full_like(labels, 255), kind)
    assert empty == 0
    empty.backward()


def test_saturated_masks_cost_what_is_published():
    logits, labels = torch.tensor([20.0, -110.0, -40.0]), torch.tensor([0, 1, 1])
    per_pixel = [mask_loss(x.view(1, 1, 1, 1), y.view(1, 1, 1, 1)).item() for x, y in zip(logits, labels)]
    assert per_pixel == pytest.approx([100, 100, 40], rel=1e-6)
    stable = [mask_loss(x.view(1, 1, 1, 1), y.view(1, 1, 1, 1), "bce_with_logits") for x, y in zip(logits, labels)]
    assert [loss.item() for loss in stable] == pytest.approx([20, 110, 40], rel=1e-6)


def test_wrong_masks_are_refused():
    logits, labels = masks_and_logits()
    with pytest.raises(ValueError, match="must be masks of the logits' shape"):
        mask_loss(logits, labels[:, 0])
    with pytest.raises(ValueError, match="got 3"):
        mask_loss(logits, labels.clamp(max=3))
    labels[1, 0, 0, 0] = 255
    with pytest.raises(ValueError, match="mix 255 with 0 or 1 in clip 1, second 0"):
        mask_loss(logits, labels)
    with pytest.raises(ValueError, match="`kind` must be one of"):
        mask_loss(logits, labels, "dice")


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_matching_loss_by_hand(pooling):
    torch.manual_seed(0)
    logits = torch.randn(2, SECONDS, 8, 8) * 2
    logits[1, 1] = -9.0  # an empty mask
    maps = [None, torch.rand(2 * SECONDS, 5, 4, 4), None, torch.rand(2 * SECONDS, 5, 2, 2)]
    features = [None, torch.randn(2, SECONDS, 5), None, torch.rand(2, SECONDS, 5)]
    for value in (maps[1], maps[3], features[1], features[3]):
        value.requires_grad_()
    wanted = torch.zeros(2, 2, SECONDS)
    for row, stage in enumerate((1, 3)):
        for clip in range(2):
            for second in range(SECONDS):
                image = maps[stage][clip * SECONDS + second]
                side = 8 // image.shape[-1]
                patches = logits[clip, second].sigmoid().unfold(0, side, side).unfold(1, side, side).flatten(2)
                mask = (patches.mean(-1) if pooling == "avg" else patches.amax(-1)) > 0.5
                mean = image[:, mask].sum(-1) / (mask.sum() + 1e-6)
                cosine = F.cosine_similarity(mean, features[stage][clip, second], dim=0)
                wanted[row, clip, second] = -torch.log(cosine.clamp(min=0) + 1e-6)
    found = matching_losses(logits, maps, features, [1, 3], pooling)
    torch.testing.assert_close(found, wanted)
    assert found[0, 1, 1].item() == pytest.approx(-np.log(1e-6), rel=1e-6)
    loss = matching_loss(logits, maps, features, [1, 3], pooling)
    torch.testing.assert_close(loss, wanted.mean())
    paired = torch.tensor([False, True])
    torch.testing.assert_close(matching_loss(logits, maps, features, [1, 3], pooling, paired), wanted[:, 1].mean())
    assert matching_loss(logits, maps, features, [1, 3], pooling, torch.zeros(2).bool()) == 0
    loss.backward()
    assert all(value.grad.isfinite().all() for value in (maps[1], maps[3], features[1], features[3]))


@pytest.mark.parametrize("stages", [[], [0], [1, 2]])
def test_matching_needs_stages_with_video_audio_attention(stages):
    features = [None, torch.rand(1, 1, 5), None, None]
    with pytest.raises(ValueError, match=r"video-audio attention, which this decoder has at \[1\]"):
        matching_loss(torch.zeros(1, 1, 4, 4), [torch.rand(1, 5, 2, 2)] * 4, features, stages)
    with pytest.raises(ValueError, match="`pooling` must be one of avg, max, got 'sum'"):
        matching_loss(torch.zeros(1, 1, 4, 4), [torch.rand(1, 5, 2, 2)] * 4, features, [1], "sum")


def test_localization_losses_by_hand():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, requires_grad=True), torch.randint(0, 5, (2, 4))
    one_hot = F.one_hot(labels, 5).float()
    bce = F.binary_cross_entropy(logits.softmax(-1), one_hot)
    torch.testing.assert_close(
        localization_loss(logits, labels), F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    )
    for kind in ("bce_of_probabilities", "bce_of_log_probabilities"):
        torch.testing.assert_close(localization_loss(logits, labels, kind), bce)
        torch.testing.assert_close(localization_loss(logits, one_hot, kind), bce)
        smooth = F.binary_cross_entropy(logits.softmax(-1), one_hot * 0.9 + 0.02)
        torch.testing.assert_close(localization_loss(logits, labels, kind, 0.1), smooth)
        ignored = labels.clone()
        ignored[0, 2:] = -100
        rest = F.binary_cross_entropy(logits.softmax(-1)[ignored >= 0], one_hot[ignored >= 0])
        torch.testing.assert_close(localization_loss(logits, ignored, kind), rest)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(localization_loss(logits, labels, kind), bce)
        assert localization_loss(logits, torch.full_like(labels, -100), kind) == 0
    with pytest.raises(ValueError, match="`kind` must be one of cross_entropy"):
        localization_loss(logits, labels, "mse")
    with pytest.raises(ValueError, match="`labels` must be class indices"):
        localization_loss(logits, labels[:, :3])


@pytest.mark.parametrize("gap", [0.0, 3.0, 18.0, 40.0, 200.0])
def test_log_complements_do_not_cancel(gap):
    logits = torch.tensor([[gap, 0.0, -1.0, 0.0]], requires_grad=True)
    wide = logits.detach().double()
    others = torch.stack([wide[0, [j for j in range(4) if j != i]].logsumexp(0) for i in range(4)])
    found = log_complements(logits)
    torch.testing.assert_close(found[0].double(), others - wide.logsumexp(-1), rtol=1e-5, atol=1e-7)
    found.sum().backward()
    assert logits.grad.isfinite().all()
