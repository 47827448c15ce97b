"""Attention rollout of AV-MAE: every encoder strategy against explicit matrices, readouts, segments, and figures of files."""

import pytest
import torch
from PIL import Image
from rendering import render_clip
from tiny_avmae import inputs, tiny

from hf_avfusion import AVMAEForAudioVisualClassification, AVMAEForPreTraining, AVMAEModel, AVMAEProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.visualization.attention import _heads_averaged, attention_rollout, explain
from hf_avfusion.visualization.token_layouts import token_layout

VIDEO, AUDIO = 2 * 4 * 4, 6 * 4  # tokens of the tiny model
ENCODERS = ("early", "shared", "separate", "mid_fusion")


def classifier(**changes) -> AVMAEForAudioVisualClassification:
    model = tiny(AVMAEForAudioVisualClassification, **changes)
    with torch.no_grad():  # attention is nearly uniform at first; sharper scores make a wrong row or column visible
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(6)
    return model


def rollout_matrix(model, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The product of the layers' matrices over [video, audio], built independently of the code under test."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**given, output_attentions=True)
    model.set_attn_implementation("sdpa")
    video = [layer.mean(1) for layer in outputs.attentions]
    audio = [layer.mean(1) for layer in outputs.audio_attentions or ()]
    product = torch.eye(VIDEO + AUDIO).expand(2, -1, -1)
    for index, of_video in enumerate(video):
        joint = of_video
        if of_video.shape[-1] == VIDEO:
            joint = torch.zeros(2, VIDEO + AUDIO, VIDEO + AUDIO)
            joint[:, :VIDEO, :VIDEO], joint[:, VIDEO:, VIDEO:] = of_video, audio[index]
        product = (0.5 * joint + 0.5 * torch.eye(VIDEO + AUDIO)) @ product
    return product


@pytest.mark.parametrize("readout", ["mean", "max"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_maps_equal_the_product_of_joint_matrices(encoder, readout):
    model, given = classifier(encoder_strategy=encoder, readout=readout), inputs()
    maps = attention_rollout(model, given)
    assert maps.video.shape == (2, 2, 4, 4)
    assert maps.audio.shape == (2, 6, 4)
    product = rollout_matrix(model, given)
    # Each modality is pooled separately, and their logits are averaged.
    expected = (product[:, :VIDEO].mean(1) + product[:, VIDEO:].mean(1)) / 2
    torch.testing.assert_close(maps.video.flatten(1), expected[:, :VIDEO], rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.audio.flatten(1), expected[:, VIDEO:], rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.rest, torch.zeros(2), rtol=0, atol=1e-6)

    heard = attention_rollout(model, given, relevance_of="audio")
    torch.testing.assert_close(heard.video.flatten(1), product[:, VIDEO:, :VIDEO].mean(1), rtol=0, atol=1e-6)
    assert (heard.video.max() > 0) == (encoder in ("early", "mid_fusion")), "only joint layers connect the modalities"
    base = attention_rollout(model.avmae, given)
    assert torch.equal(base.video, maps.video)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_missing_modality_equals_the_clip_alone(encoder):
    model, given = classifier(encoder_strategy=encoder), inputs(3)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    given["input_features"][1] = float("nan")
    maps = attention_rollout(model, {**given, "modality_mask": mask})
    video = attention_rollout(model, {"pixel_values": given["pixel_values"][1:2]})
    audio = attention_rollout(model, {"input_features": given["input_features"][2:]})
    assert video.audio is None
    assert audio.video is None
    torch.testing.assert_close(maps.video[1:2], video.video, rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.audio[2:], audio.audio, rtol=0, atol=1e-6)
    assert maps.audio[1].abs().max() == maps.video[2].abs().max() == 0


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_cls_token_of_one_modality(modality):
    model = classifier(modalities=(modality,), readout="token")
    name = {"video": "pixel_values", "audio": "input_features"}[modality]
    given = {name: inputs()[name]}
    maps = attention_rollout(model, given)
    found = maps.video if modality == "video" else maps.audio
    assert (maps.audio is None) == (modality == "video")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**given, output_attentions=True)
    layers = [layer.mean(1) for layer in (outputs.attentions if modality == "video" else outputs.audio_attentions)]
    product = torch.eye(layers[0].shape[-1])
    for layer in layers:
        product = (0.5 * layer + 0.5 * torch.eye(layer.shape[-1])) @ product
    torch.testing.assert_close(found.flatten(1), product[:, 0, 1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.rest, product[:, 0, 0], rtol=0, atol=1e-6)


def test_event_localiser_has_maps_of_the_whole_clip():
    """Equal segments weigh all steps alike, except a last step that also stands for a remainder of the spectrogram."""
    model, given = classifier(encoder_strategy="mid_fusion", num_segments=3), inputs()
    maps, product = attention_rollout(model, given), rollout_matrix(model, given)
    expected = (product[:, :VIDEO].mean(1) + product[:, VIDEO:].mean(1)) / 2
    torch.testing.assert_close(maps.video.flatten(1), expected[:, :VIDEO], rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.audio.flatten(1), expected[:, VIDEO:], rtol=0, atol=1e-6)

    rest = tiny(
        AVMAEForAudioVisualClassification, num_segments=2, spectrogram_length=26, drop_remainder=True, readout="sum"
    )
    weights = token_layout(rest).readout["audio"].reshape(6, 4)
    torch.testing.assert_close(weights.sum(dim=1), torch.tensor([4.0] * 5 + [6.0]) / 26)


def test_pretraining_has_no_maps():
    for refused in (attention_rollout, lambda model, given: token_layout(model)):
        with pytest.raises(ValueError, match=r"AVMAEForAudioVisualClassification.*got a AVMAEForPreTraining"):
            refused(tiny(AVMAEForPreTraining), inputs())


def test_only_attention_weights_are_averaged_over_heads():
    """Their place in what a layer returns counts, not their number of axes."""

    class Layer(torch.nn.Module):
        def forward(self, tokens):
            return tokens, None, torch.ones(2, 5, 4, 4), torch.ones(2, 3, 4, 4), tokens

    model = tiny(AVMAEModel)
    recorders = {
        name: type(recorder)(Layer, index=recorder.index)
        for name, recorder in type(model)._can_record_outputs.items()
        if name in ("attentions", "audio_attentions")
    }
    model.layer, model._can_record_outputs = Layer(), recorders
    with _heads_averaged(model):
        averaged = model.layer(torch.rand(2, 7, 4, 4))
    assert averaged[0].shape == averaged[4].shape == (2, 7, 4, 4)
    assert averaged[2].shape == averaged[3].shape == (2, 1, 4, 4)


def small_processor() -> AVMAEProcessor:
    return AVMAEProcessor(
        video_processor=AVFusionVideoProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}),
        feature_extractor=AVFusionFeatureExtractor(num_mel_bins=16, spectrogram_length=24),
        num_frames=4,
        audio_seconds=0.24,
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_explain_writes_a_figure(encoder, tmp_path):
    model = classifier(encoder_strategy=encoder)
    explained = explain(model, small_processor(), render_clip(num_frames=25), path=tmp_path / "figure.png")
    assert len(explained["predictions"]["label"]) == 3
    assert explained["maps"].video.shape == (1, 2, 4, 4)
    assert Image.open(tmp_path / "figure.png").size[0] > 1200


def test_explain_names_the_parts_of_an_event_localiser(tmp_path):
    model = classifier(num_segments=4)
    explained = explain(model, small_processor(), render_clip(num_frames=25), path=tmp_path / "figure.png", top_k=2)
    assert {name: len(best) for name, best in explained["predictions"].items()} == {
        f"part {number}": 2 for number in (1, 2, 3, 4)
    }
    assert (tmp_path / "figure.png").stat().st_size > 10_000
