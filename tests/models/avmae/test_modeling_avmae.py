"""AV-MAE beyond its recorded cases: masks, targets, losses, missing modalities, strategies, heads, Auto classes."""

import math
import shutil

import numpy as np
import pytest
import torch
from equality import assert_outputs_of, assert_same_bits
from tiny_avmae import QUIET, STRATEGIES, TINY, inputs, masks, tiny
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    Trainer,
    TrainingArguments,
)

from hf_avfusion import AVMAEConfig, AVMAEForAudioVisualClassification, AVMAEForPreTraining, AVMAEModel
from hf_avfusion.models.avmae.layers_avmae import BatchStandardization
from hf_avfusion.models.avmae.patches_avmae import (
    fixed_noise,
    patch_loss,
    patches_to_frames,
    patches_to_spectrogram,
    spectrogram_patches,
    video_patches,
)
from hf_avfusion.models.shared.layers_vit import sinusoidal_positions

# ---------------------------------------------------------------------------------------------- Auto classes and saving


def test_auto_classes_know_avmae(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is AVMAEConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is AVMAEModel
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(loaded) is AVMAEForPreTraining
    given = {**inputs(), **masks(model)}
    with torch.no_grad():
        found = loaded(**given).video_predictions
        assert_outputs_of(model, found, lambda: model(**given).video_predictions)
    classifier = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(classifier) is AVMAEForAudioVisualClassification
    assert_same_bits(classifier.avmae.state_dict(), model.avmae.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["separate", "mid_fusion"])
def test_one_modality_of_a_pretrained_pair_can_be_loaded_alone(tmp_path, encoder):
    model = tiny(AVMAEModel, encoder_strategy=encoder, objective="modality_inpainting")
    model.save_pretrained(tmp_path)
    audio = AVMAEForAudioVisualClassification.from_pretrained(tmp_path, modalities=("audio",))
    features = inputs()["input_features"]
    expected = model(input_features=features).audio_hidden_state
    assert_outputs_of(audio.avmae, expected, lambda: audio.avmae(input_features=features).audio_hidden_state)
    with pytest.raises(ValueError, match="no video stream"):
        audio(**inputs())


@torch.no_grad()
def test_more_frames_than_in_pretraining_need_no_new_weights(tmp_path):
    tiny().save_pretrained(tmp_path)
    model, info = AVMAEModel.from_pretrained(tmp_path, num_frames=8, output_loading_info=True)
    assert not info["missing_keys"]
    assert model(torch.rand(1, 8, 3, 16, 16)).video_hidden_state.shape == (1, 64, 24)


# ------------------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("encoder", ["early", "shared", "separate", "mid_fusion"])
def test_masked_tokens_never_enter_the_encoder(encoder):
    model = tiny(encoder_strategy=encoder)
    given, chosen = inputs(), masks(model)
    seen = []
    handle = model.avmae.encoder.layers[0].register_forward_pre_hook(
        lambda module, args: seen.append((args[0].shape[1], args[1].shape[1]))
    )
    pixels = given["pixel_values"].clone().requires_grad_()
    features = given["input_features"].clone().requires_grad_()
    output = model(pixels, features, **chosen)
    handle.remove()
    assert seen == [(8, 12)]  # a quarter of 32, half of 24
    (output.video_hidden_state.square().sum() + output.audio_hidden_state.square().sum()).backward()
    config = model.config
    video = video_patches(pixels.grad, config.tubelet_size, config.patch_hw).abs().amax(dim=-1)
    audio = spectrogram_patches(features.grad[:, None], config.patch_hw).abs().amax(dim=-1)
    assert torch.equal((video == 0).float(), output.video_mask)
    assert torch.equal((audio == 0).float(), output.audio_mask)


@torch.no_grad()
def test_explicit_masks():
    model, given = tiny(), inputs()
    chosen = masks(model)
    output = model(**given, **chosen)
    bool_masks = {"video_mask": output.video_mask, "audio_mask": output.audio_mask}
    again = model(**given, **bool_masks)
    assert torch.equal(again.video_mask, output.video_mask)
    torch.testing.assert_close(again.video_predictions, output.video_predictions)  # order does not matter to attention
    torch.testing.assert_close(again.loss, output.loss)
    natural = chosen["video_visible"].sort(dim=1).indices[..., None].expand(-1, -1, 24)
    torch.testing.assert_close(again.video_hidden_state, output.video_hidden_state.gather(1, natural))
    with pytest.raises(ValueError, match="not both"):
        model(**given, **bool_masks, **chosen)
    uneven = output.video_mask.clone()
    uneven[0] = 1
    with pytest.raises(ValueError, match=r"`video_mask` must mask equally many.*\[32, 24\]"):
        model(**given, video_mask=uneven)
    with pytest.raises(ValueError, match=r"`audio_mask` must be bool"):
        model(**given, audio_mask=output.audio_mask[:, :-1])
    with pytest.raises(ValueError, match=r"`video_visible` must be long"):
        model(**given, video_visible=chosen["video_visible"][0])


def test_random_masks_follow_the_ratio_and_the_generator():
    model = tiny()
    first, second = masks(model, 64), masks(model, 64)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["video_visible"].shape == (64, 8)
    assert not torch.equal(first["video_visible"], masks(model, 64, seed=3)["video_visible"])
    counts = torch.bincount(first["video_visible"].flatten(), minlength=32)
    assert all(len(set(row.tolist())) == 8 for row in first["video_visible"])
    assert counts.min() > 4  # 16 expected at each position
    assert counts.max() < 32
    assert (first["video_visible"].diff(dim=1) < 0).any()  # in the order of the draw
    torch.manual_seed(5)
    drawn = model.draw_masks(2)
    torch.manual_seed(5)
    assert torch.equal(model.draw_masks(2)["audio_visible"], drawn["audio_visible"])


@torch.no_grad()
def test_evaluation_masks_are_the_same_each_time():
    model, given = tiny(), inputs()
    first, second = model(**given), model(**given)
    assert torch.equal(first.video_mask, second.video_mask)
    assert torch.equal(first.loss, second.loss)
    alone = model(**{name: value[:1] for name, value in given.items()})
    assert torch.equal(alone.video_mask[0], first.video_mask[0])  # independent of batch mates
    visible = model.draw_masks(512, fixed=True)["video_visible"]
    assert torch.equal(visible[:2], model.draw_masks(2, fixed=True)["video_visible"])
    counts = torch.bincount(visible.flatten(), minlength=32).float()
    assert counts.mean() == 128
    assert (counts - 128).abs().max() < 5 * (512 * 0.25 * 0.75) ** 0.5  # five standard deviations of a uniform draw
    together = torch.zeros(512, 32).scatter(1, visible, 1.0)
    pairs = (together.T @ together).fill_diagonal_(0)[~torch.eye(32, dtype=torch.bool)]
    assert (pairs - 512 * 8 * 7 / (32 * 31)).abs().max() < 30
    model.train()
    assert not torch.equal(model(**given).video_mask, model(**given).video_mask)


def test_tube_masks_have_the_same_positions_in_every_frame_group():
    model = tiny(video_masking="tube", video_mask_ratio=0.8)  # int(0.8 * 16) = 12 of each of 2 groups
    visible = masks(model, 8)["video_visible"]
    assert visible.shape == (8, 8)
    assert torch.equal(visible[:, 4:], visible[:, :4] + 16)
    assert (visible.diff(dim=1) > 0).all()
    assert model.config.num_visible_tokens("video") == 8
    assert len({tuple(row.tolist()) for row in visible}) > 1
    with torch.no_grad():
        assert model(**inputs()).video_mask.sum(dim=1).tolist() == [24, 24]


# ------------------------------------------------------------------------------------------------------ targets and losses


def test_patches_are_ordered_as_published_and_inverted():
    pixels = inputs()["pixel_values"]
    patches = video_patches(pixels, 2, (4, 4))
    by_hand = pixels[1, 2:4, :, 4:8, 8:12].permute(0, 2, 3, 1).flatten()  # frame, row, column, channel
    assert torch.equal(patches[1, 16 + 4 + 2], by_hand)
    assert torch.equal(patches_to_frames(patches, (2, 4, 4), (4, 4), 3), pixels)
    central = video_patches(pixels, 2, (4, 4), central_frame=True)
    assert torch.equal(patches_to_frames(central, (2, 4, 4), (4, 4), 3), pixels[:, 1::2])
    features = torch.randn(2, 26, 17)
    cut = spectrogram_patches(features[:, None], (4, 8))
    assert torch.equal(cut[0, 3], features[0, 4:8, 8:16].flatten())
    assert torch.equal(patches_to_spectrogram(cut, (6, 2), (4, 8)), features[:, :24, :16])


@pytest.mark.parametrize("standardization", ["patch", "patch_channels"])
def test_standardised_targets_follow_the_formula(standardization):
    model = tiny(target_standardization=standardization)
    given = inputs()
    raw = video_patches(given["pixel_values"], 2, (4, 4)).numpy()
    grouped = raw.reshape(2, 32, -1, 3) if standardization == "patch_channels" else raw[..., None]
    mean, variance = grouped.mean(axis=2, keepdims=True), grouped.var(axis=2, keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(raw.shape)
    np.testing.assert_allclose(model.targets("video", given["pixel_values"]).numpy(), expected, atol=1e-5)
    raw = spectrogram_patches(given["input_features"][:, None], (4, 4)).numpy()
    if standardization == "patch":
        raw = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(model.targets("audio", given["input_features"]).numpy(), raw, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"loss_on_visible_tokens": True}, {"average_over_features": False}])
def test_losses_by_hand(fields):
    model = tiny(video_loss_weight=0.3, audio_loss_weight=0.8, **fields)
    given = inputs(3)
    output = model(**given, **masks(model, 3), sample_mask=torch.tensor([True, True, False]))
    total = 0.0
    for modality, weight in (("video", 0.3), ("audio", 0.8)):
        target = model.targets(modality, given["pixel_values" if modality == "video" else "input_features"])
        errors = (target - output[f"{modality}_predictions"]).square().sum(-1)[:2]
        counted = torch.ones_like(errors, dtype=torch.bool)
        if "loss_on_visible_tokens" not in fields:
            counted = output[f"{modality}_mask"][:2].bool()
        loss = errors[counted].mean()
        loss = loss / target.shape[-1] if "average_over_features" not in fields else loss
        torch.testing.assert_close(output[f"{modality}_loss"], loss)
        total += weight * loss
    torch.testing.assert_close(output.loss, total)
    assert model(**given, return_loss=False).loss is None


def test_loss_without_weights_is_zero():
    assert patch_loss(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2)).item() == 0.0


@torch.no_grad()
def test_inpainting_reconstructs_each_modality_from_the_other():
    model = tiny(objective="modality_inpainting")
    given, chosen = inputs(), masks(model)
    output = model(**given, **chosen)
    other = model(**{**given, "pixel_values": -given["pixel_values"]}, **chosen)
    assert torch.equal(other.video_predictions, output.video_predictions)
    assert not torch.allclose(other.audio_predictions, output.audio_predictions)
    assert output.video_loss_mask.sum(dim=1).tolist() == [32 - 12] * 2  # the first 12 positions hold audio tokens
    assert not output.video_loss_mask[:, :12].any()
    assert output.video_mask.sum(dim=1).tolist() == [24] * 2
    mask = torch.tensor([[True, True], [True, False]])
    mixed = model(**given, **chosen, modality_mask=mask)
    alone = model(**{name: value[:1] for name, value in given.items()}, **{n: v[:1] for n, v in chosen.items()})
    torch.testing.assert_close(mixed.loss, alone.loss)
    assert not mixed.audio_loss_mask[1].any()
    with pytest.raises(ValueError, match="`input_features` was not given"):
        model(given["pixel_values"])


@torch.no_grad()
@pytest.mark.parametrize(
    "fields", [{}, {"target_standardization": "patch"}, {"target_standardization": "patch_channels"}]
)
def test_reconstruction_of_perfect_predictions_is_the_input(fields):
    model, given = tiny(**fields), inputs()
    output = model(**given)
    output.video_predictions = model.targets("video", given["pixel_values"])
    output.audio_predictions = model.targets("audio", given["input_features"])
    for keep in (True, False):
        frames, spectrogram = model.reconstruct(output, **given, keep_visible=keep)
        torch.testing.assert_close(frames, given["pixel_values"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(spectrogram, given["input_features"], atol=1e-5, rtol=1e-5)
    output.video_predictions = output.video_predictions + 1
    frames, _ = model.reconstruct(output, **given)
    changed = video_patches((frames - given["pixel_values"]).abs(), 2, (4, 4)).amax(dim=-1) > 1e-3
    assert torch.equal(changed.float(), output.video_mask)
    with pytest.raises(ValueError, match="so `input_features` is needed"):
        model.reconstruct(output, given["pixel_values"])


@torch.no_grad()
def test_central_frames_are_reconstructed_alone():
    model, given = tiny(central_frame_target=True), inputs()
    output = model(**given)
    assert output.video_predictions.shape == (2, 32, 48)
    assert model.reconstruct(output, **given)[0].shape == (2, 2, 3, 16, 16)


# --------------------------------------------------------------------------------------------------------- missing modalities


@QUIET
@torch.no_grad()
@pytest.mark.parametrize(("encoder", "decoder"), STRATEGIES)
def test_a_clip_pretrains_on_its_present_modalities(encoder, decoder):
    model = tiny(encoder_strategy=encoder, decoder_strategy=decoder)
    given, chosen = inputs(3), masks(model, 3)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    plain = model(**given, **chosen)
    given["input_features"][1], given["pixel_values"][2] = float("nan"), 1e30
    mixed = model(**given, **chosen, modality_mask=mask)
    assert_same_bits(mixed.video_predictions[0], plain.video_predictions[0])
    assert_same_bits(mixed.audio_predictions[0], plain.audio_predictions[0])
    errors = {"video": [], "audio": []}
    for i in range(3):
        alone = {}
        for modality, name in (("video", "pixel_values"), ("audio", "input_features")):
            if mask[i, int(modality == "audio")]:
                alone |= {name: given[name][i : i + 1], f"{modality}_visible": chosen[f"{modality}_visible"][i : i + 1]}
        single = model(**alone)
        for modality in errors:
            if f"{modality}_predictions" in single:
                torch.testing.assert_close(mixed[f"{modality}_predictions"][i], single[f"{modality}_predictions"][0])
                errors[modality].append(single[f"{modality}_loss"])
            else:
                assert not mixed[f"{modality}_loss_mask"][i].any()
    losses = {modality: torch.stack(values).mean() for modality, values in errors.items()}
    torch.testing.assert_close(mixed.loss, 0.5 * losses["video"] + 0.5 * losses["audio"])


def test_filler_of_missing_modalities_does_not_change_gradients():
    model = tiny(encoder_strategy="mid_fusion", decoder_strategy="concatenated").train()
    given, chosen = inputs(), masks(model)

    def gradients(filler):
        changed = {**given, "input_features": given["input_features"].clone()}
        changed["input_features"][1] = filler
        model.zero_grad()
        model(**changed, **chosen, modality_mask=torch.tensor([[True, True], [True, False]])).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    assert_same_bits(gradients(float("nan")), gradients(0.0))


@torch.no_grad()
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_single_modality_pretraining(modality):
    name = "pixel_values" if modality == "video" else "input_features"
    for encoder in ("early", "shared", "separate", "mid_fusion"):
        model = tiny(modalities=(modality,), encoder_strategy=encoder)
        output = model(**{name: inputs()[name]})
        weight = getattr(model.config, f"{modality}_loss_weight")
        torch.testing.assert_close(output.loss, weight * output[f"{modality}_loss"])
        assert set(output) & {"video_loss", "audio_loss"} == {f"{modality}_loss"}


# -------------------------------------------------------------------------------------------------------------- the network


@torch.no_grad()
def test_strategies_fuse_modalities_in_the_right_parts():
    given = inputs()
    other = {**given, "input_features": given["input_features"] + 1}
    for encoder, decoder, in_encoder, in_decoder in (
        ("separate", "shared", False, False),
        ("shared", "shared", False, False),
        ("separate", "concatenated", False, True),
        ("early", "shared", True, True),
        ("mid_fusion", "shared", True, True),
    ):
        model = tiny(encoder_strategy=encoder, decoder_strategy=decoder)
        chosen = masks(model)
        first, second = model(**given, **chosen), model(**other, **chosen)
        assert torch.equal(first.video_hidden_state, second.video_hidden_state) is not in_encoder
        assert torch.equal(first.video_predictions, second.video_predictions) is not in_decoder


def test_stochastic_depth_restarts_in_the_joint_stack():
    config = AVMAEConfig(
        **{**TINY, "num_hidden_layers": 6}, drop_path_rate=0.4, encoder_strategy="mid_fusion", num_fusion_layers=3
    )
    layers = AVMAEModel(config).encoder.layers
    assert [layer.block("video").drop_path_rate for layer in layers] == pytest.approx([0, 0.2, 0.4, 0, 0.2, 0.4])
    assert [layer.joint for layer in layers] == [False] * 3 + [True] * 3


def test_positions_follow_the_formula():
    table = sinusoidal_positions(7, 6)[0]
    for n in range(7):
        for i in range(3):
            angle = n * math.exp(-2 * i * math.log(10000) / 6)
            assert table[n, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[n, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_fresh_weights_follow_the_published_initialisation():
    torch.manual_seed(0)
    model = AVMAEForPreTraining(AVMAEConfig(**TINY, use_modality_tokens=True, position_embeddings="learned"))
    assert model.decoder.video.prediction.weight.abs().max() == 0
    assert model.decoder.audio.mask_token.abs().max() == 0
    assert model.avmae.video_embeddings.modality_token.abs().max() == 0
    assert model.avmae.audio_embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.2)
    bound = (6 / (24 + 16)) ** 0.5  # Xavier uniform
    weight = model.decoder.video.projection.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert model.decoder.video.projection.bias.abs().max() == 0
    assert AVMAEForAudioVisualClassification(AVMAEConfig(**TINY)).classifier.weight.abs().max() == 0


@QUIET
@pytest.mark.parametrize(("encoder", "decoder"), STRATEGIES)
def test_training_reaches_every_parameter(encoder, decoder):
    model = tiny(
        encoder_strategy=encoder,
        decoder_strategy=decoder,
        use_modality_tokens=True,
        position_embeddings="learned",
        decoder_position_embeddings="learned",
    ).train()
    model(**inputs()).loss.backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_of_pretraining_changes_nothing(use_reentrant):
    def gradients(checkpointing):
        model = tiny(encoder_strategy="mid_fusion").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**inputs(), **masks(model)).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_pretraining_compiles_to_one_graph():
    model = tiny(encoder_strategy="mid_fusion", num_hidden_layers=2, decoder_num_hidden_layers=1, num_fusion_layers=1)
    given = {**inputs(), **masks(model)}
    expected = model(**given)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # tests graph capture only
    torch.testing.assert_close(compiled(**given).loss, expected.loss)
    assert torch.isfinite(compiled(**inputs()).loss)  # masks drawn inside the graph


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (apt-get install g++)")
def test_masks_of_evaluation_compile_to_the_same_masks():
    """Inductor folds products of positions into one index, which must stay within 64 bits."""
    torch._dynamo.reset()
    drawn, expected = (
        [function(4, 9, salt << 40, "cpu") for salt in (0, 1)]
        for function in (torch.compile(fixed_noise, fullgraph=True), fixed_noise)
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(drawn, expected))


@torch.no_grad()
def test_attention_implementations_agree_in_the_decoder():
    model = tiny(decoder_strategy="concatenated")
    given = {**inputs(), **masks(model)}
    expected = model(**given).video_predictions
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**given).video_predictions, expected)
    block_of_decoder = model.decoder.transformer.layers[0].shared
    assert block_of_decoder.attention.config._attn_implementation == "eager"
    half = model.to(torch.bfloat16)(**given)
    assert half.video_predictions.dtype == torch.bfloat16
    assert half.loss.dtype == torch.float32
    assert (half.video_predictions.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_plain_trainer_pretrains_and_evaluates(tmp_path):
    given = inputs(4)
    rows = [{name: given[name][i] for name in given} for i in range(4)]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(tiny(), arguments, train_dataset=rows)
    trainer.train()
    assert trainer.evaluate(rows)["eval_loss"] > 0


# ------------------------------------------------------------------------------------------- classification with the encoder


@torch.no_grad()
@pytest.mark.parametrize(("readout", "reduce"), [("mean", torch.mean), ("max", torch.amax), ("sum", torch.sum)])
def test_logits_are_averages_over_modalities(readout, reduce):
    model = tiny(AVMAEForAudioVisualClassification, readout=readout, pooled_norm=True, representation_size=6)
    output, states = model(**inputs()), model.avmae(**inputs())
    for modality in ("video", "audio"):
        pooled = model.pooled_layernorm(reduce(states[f"{modality}_hidden_state"], dim=1))
        logits = model.classifier(torch.tanh(model.pre_logits(pooled)))
        torch.testing.assert_close(output[f"{modality}_logits"], logits)
    torch.testing.assert_close(output.logits, (output.video_logits + output.audio_logits) / 2)


def test_losses_of_each_modality_in_training():
    single = "single_label_classification"
    model = tiny(AVMAEForAudioVisualClassification, label_smoothing=0.2, problem_type=single).train()
    labels, audio_labels = torch.rand(2, 5).softmax(1), torch.rand(2, 5).softmax(1)
    output = model(**inputs(), labels=labels, audio_labels=audio_labels)
    entropy = torch.nn.functional.cross_entropy
    expected = entropy(output.video_logits, labels, label_smoothing=0.2)
    expected = (expected + entropy(output.audio_logits, audio_labels, label_smoothing=0.2)) / 2
    torch.testing.assert_close(output.loss, expected)
    evaluated = model.eval()(**inputs(), labels=torch.tensor([0, 3]))
    torch.testing.assert_close(evaluated.loss, entropy(evaluated.logits, torch.tensor([0, 3])))


def test_linear_probing_trains_the_head_alone(tmp_path):
    tiny().save_pretrained(tmp_path)
    model = AVMAEForAudioVisualClassification.from_pretrained(tmp_path, freeze_encoder=True, num_labels=5)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["classifier.weight", "classifier.bias"]
    model.train()
    model(**inputs(), labels=torch.tensor([0, 3])).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is not None] == trained
    torch.nn.init.normal_(model.classifier.weight)  # a zero head would make all logits equal
    model.save_pretrained(tmp_path / "probe")
    again = AVMAEForAudioVisualClassification.from_pretrained(tmp_path / "probe")
    assert again.probe_norms["video"].running_mean.abs().max() > 0
    with torch.no_grad():
        assert_outputs_of(model.eval(), again(**inputs()).logits, lambda: model(**inputs()).logits)


def test_batch_standardisation_equals_flax():
    norm, features = BatchStandardization(3).train(), torch.randn(8, 3) * 2 + 1
    present = torch.tensor([True] * 6 + [False] * 2)
    output = norm(features, present)
    present_rows = features[:6].numpy()
    expected = (features.numpy() - present_rows.mean(0)) / np.sqrt(present_rows.var(0) + 1e-6)
    np.testing.assert_allclose(output.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * present_rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 + 0.1 * present_rows.var(0), atol=1e-6)  # biased
    before = norm.running_mean.clone()
    norm(features, torch.zeros(8, dtype=torch.bool))  # no row has this modality
    assert torch.equal(norm.running_mean, before)
    evaluated = norm.eval()(features)
    torch.testing.assert_close(evaluated, (features - norm.running_mean) / (norm.running_var + 1e-6).sqrt())


def test_event_localisation_pools_each_second():
    config = AVMAEConfig(**{**TINY, "spectrogram_length": 26, "num_frames": 8}, num_segments=5, drop_remainder=True)
    torch.manual_seed(0)
    model = AVMAEForAudioVisualClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    shares = model.segments["video"].shares
    # Four frame groups over five seconds: the second second covers the end of group 1 and the start of group 2.
    expected = torch.tensor([[1, 0, 0, 0], [0.25, 0.75, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.75, 0.25], [0, 0, 0, 1.0]])
    torch.testing.assert_close(shares, expected)
    torch.testing.assert_close(model.segments["audio"].shares.sum(dim=1), torch.ones(5))
    given = {"pixel_values": torch.rand(2, 8, 3, 16, 16), "input_features": torch.randn(2, 26, 16)}
    labels = torch.tensor([[0, 1, 2, 3, 4], [4, 4, 4, 4, 0]])
    with torch.no_grad():
        output = model(**given, labels=labels)
        tokens = model.avmae(**given).video_hidden_state.reshape(2, 4, 16, -1).mean(dim=2)
        second = model.classifier(0.25 * tokens[:, 0] + 0.75 * tokens[:, 1])
    assert output.logits.shape == (2, 5, 5)
    torch.testing.assert_close(output.video_logits[:, 1], second)
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    )
    with pytest.raises(ValueError, match=r"\[batch, segments\]"):
        model(**given, labels=labels[:, :3])
    loss = model.train()(**given, labels=labels, modality_mask=torch.tensor([[True, True], [True, False]])).loss
    loss.backward()
    assert torch.isfinite(loss)


@torch.no_grad()
@pytest.mark.parametrize("readout", ["max", "sum"])
def test_event_localisation_with_other_readouts(readout):
    model = tiny(AVMAEForAudioVisualClassification, num_segments=2, readout=readout)
    tokens = model.avmae(**inputs()).video_hidden_state
    halves = tokens.unflatten(1, (2, 16))  # two frame groups, two segments
    pooled = halves.amax(dim=2) if readout == "max" else halves.sum(dim=2)
    torch.testing.assert_close(model(**inputs()).video_logits, model.classifier(pooled))
