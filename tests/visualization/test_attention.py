"""Attention rollout against explicit matrices, hand-worked cases and a small MBT."""

import numpy as np
import pytest
import torch
from PIL import Image
from rendering import render_clip

from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.visualization.attention import attention_rollout, explain, propagate_back

VIDEO, AUDIO, ROWS = 5, 3, 2


def random_attention(batch: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.softmax(2 * torch.randn(batch, rows, rows, generator=generator, dtype=torch.float64), dim=-1)


def two_streams(layers: int, fusion_layer: int, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    """Random attention of two samples, with bottleneck rows from `fusion_layer` on."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: [random_attention(2, n + (ROWS if layer >= fusion_layer else 0), generator) for layer in range(layers)]
        for name, n in (("video", VIDEO), ("audio", AUDIO))
    }


def rollout_matrix(attentions: dict, **kwargs) -> torch.Tensor:
    """The whole rollout matrix: all rows of the joint identity [video, audio, bottleneck], propagated back."""
    eye = torch.eye(VIDEO + AUDIO + ROWS, dtype=torch.float64).expand(2, -1, -1)
    video, audio, bottleneck = eye.split([VIDEO, AUDIO, ROWS], dim=-1)
    relevance, bottleneck = propagate_back({"video": video, "audio": audio}, bottleneck, attentions, **kwargs)
    return torch.cat([relevance["video"], relevance["audio"], bottleneck], dim=-1)


def joint_layer(video: torch.Tensor, audio: torch.Tensor, sizes: tuple[int, int, int], update: str) -> torch.Tensor:
    """One layer over [video, audio, bottleneck], built block by block, independently of the code under test."""
    num_video, num_audio, _ = sizes
    n = sum(sizes)
    own = {"video": slice(0, num_video), "audio": slice(num_video, num_video + num_audio)}
    b = slice(num_video + num_audio, n)
    half = {name: 0.5 * a + 0.5 * torch.eye(len(a), dtype=a.dtype) for name, a in (("video", video), ("audio", audio))}
    count = {"video": num_video, "audio": num_audio}
    if len(video) == num_video:
        matrix = torch.eye(n, dtype=video.dtype)
        for name in own:
            matrix[own[name], own[name]] = half[name]
        return matrix
    if update == "symmetric":
        matrix = torch.zeros(n, n, dtype=video.dtype)
        for name in own:
            k, m = count[name], half[name]
            matrix[own[name], own[name]], matrix[own[name], b] = m[:k, :k], m[:k, k:]
            matrix[b, own[name]] = m[k:, :k] / 2
            matrix[b, b] += m[k:, k:] / 2
        return matrix
    matrix = torch.eye(n, dtype=video.dtype)
    for name in ("video", "audio") if update == "video_first" else ("audio", "video"):
        k, m = count[name], half[name]
        stage = torch.eye(n, dtype=video.dtype)
        stage[own[name], own[name]], stage[own[name], b] = m[:k, :k], m[:k, k:]
        stage[b, own[name]], stage[b, b] = m[k:, :k], m[k:, k:]
        matrix = stage @ matrix
    return matrix


def joint_rollout(attentions: dict, sample: int, sizes: tuple[int, int, int], update: str) -> torch.Tensor:
    product = torch.eye(sum(sizes), dtype=attentions["video"][0].dtype)
    for video, audio in zip(attentions["video"], attentions["audio"]):
        product = joint_layer(video[sample], audio[sample], sizes, update) @ product
    return product


@pytest.mark.parametrize("update", ["symmetric", "video_first", "audio_first"])
@pytest.mark.parametrize("fusion_layer", [0, 2, 4])
def test_equals_product_of_joint_matrices(update, fusion_layer):
    attentions = two_streams(4, fusion_layer)
    rollout = rollout_matrix(attentions, update=update)
    for sample in range(2):
        expected = joint_rollout(attentions, sample, (VIDEO, AUDIO, ROWS), update)
        torch.testing.assert_close(rollout[sample], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(rollout.sum(-1), torch.ones_like(rollout.sum(-1)), rtol=0, atol=1e-12)
    assert (rollout >= 0).all()


def test_identity_attention_gives_identity():
    attentions = {
        name: [torch.eye(n + ROWS, dtype=torch.float64).expand(2, -1, -1)] * 3
        for name, n in (("video", VIDEO), ("audio", AUDIO))
    }
    expected = torch.eye(VIDEO + AUDIO + ROWS, dtype=torch.float64).expand(2, -1, -1)
    assert torch.equal(rollout_matrix(attentions), expected)


def test_relevance_crosses_streams_through_the_bottleneck_only():
    """One fusion layer and late fusion connect no streams (both read the old bottleneck); two fusion layers do."""
    cross = slice(VIDEO, VIDEO + AUDIO)
    assert rollout_matrix(two_streams(4, 4))[:, :VIDEO, cross].abs().max() == 0
    assert rollout_matrix(two_streams(4, 3))[:, :VIDEO, cross].abs().max() == 0
    assert rollout_matrix(two_streams(4, 2))[:, :VIDEO, cross].min() > 0
    # With a chained update, the second stream reads what the first wrote in the same layer.
    chained = rollout_matrix(two_streams(4, 3), update="video_first")
    assert chained[:, cross, :VIDEO].min() > 0
    assert chained[:, :VIDEO, cross].abs().max() == 0


def test_two_tokens_by_hand():
    """One token per stream and one bottleneck row; in both layers the token and the bottleneck attend to each other.

    Last layer: the video token is 1/2 itself and 1/2 the bottleneck. The first layer made the bottleneck 1/2 itself and,
    as a mean over both streams, 1/4 each token; and the video token again 1/2 itself, 1/2 bottleneck. So the video token
    gets 1/2 * 1/2 + 1/2 * 1/4 of itself, 1/2 * 1/4 of the audio token, 1/2 * 1/2 + 1/2 * 1/2 of the bottleneck.
    """
    attention = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    start = {"video": torch.ones(1, 1, 1), "audio": torch.zeros(1, 1, 1)}
    attentions = {"video": [attention] * 2, "audio": [attention] * 2}
    relevance, bottleneck = propagate_back(start, torch.zeros(1, 1, 1), attentions)
    assert relevance["video"].item() == 3 / 8
    assert relevance["audio"].item() == 1 / 8
    assert bottleneck.item() == 4 / 8


def test_full_self_attention_over_other_then_own():
    generator = torch.Generator().manual_seed(3)
    n = VIDEO + AUDIO
    own = {"video": VIDEO, "audio": AUDIO}
    attentions = {name: [random_attention(2, n, generator)[:, -own[name] :] for _ in range(3)] for name in own}
    expected = torch.eye(n, dtype=torch.float64).expand(2, -1, -1)
    for video, audio in zip(attentions["video"], attentions["audio"]):
        # The video block attends to [audio, video], the audio block to [video, audio].
        video_rows = torch.cat([video[..., AUDIO:], video[..., :AUDIO]], dim=-1)
        matrix = torch.cat([video_rows, audio], dim=1)
        expected = (0.5 * matrix + 0.5 * torch.eye(n, dtype=torch.float64)) @ expected
    video, audio = torch.eye(n, dtype=torch.float64).expand(2, -1, -1).split([VIDEO, AUDIO], dim=-1)
    relevance, _ = propagate_back({"video": video, "audio": audio}, None, attentions)
    torch.testing.assert_close(torch.cat([relevance["video"], relevance["audio"]], -1), expected, rtol=0, atol=1e-12)


def test_unknown_token_count_is_refused():
    attentions = two_streams(2, 1)
    attentions["video"][1] = attentions["video"][1][:, 1:, 1:]
    with pytest.raises(ValueError, match="layer 1 attends over"):
        rollout_matrix(attentions)


def tiny_model(seed: int = 0, **overrides) -> MBTForAudioVisualClassification:
    fields = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": [32, 48],
        "num_frames": 4,
        "num_mel_bins": 32,
        "spectrogram_length": 80,
        "fusion_layer": 2,
        "num_labels": 5,
    }
    torch.manual_seed(seed)
    model = MBTForAudioVisualClassification(MBTConfig(**{**fields, **overrides}))
    # Attention is nearly uniform at initialisation; sharper scores make a wrong row or column visible.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(4)
    return model.eval()


def tiny_inputs(batch: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.rand(batch, 4, 3, 32, 48, generator=generator) * 2 - 1,
        "input_features": torch.randn(batch, 80, 32, generator=generator),
    }


@pytest.mark.parametrize("readout", ["token", "mean"])
@pytest.mark.parametrize("update", ["symmetric", "video_first", "audio_first"])
def test_maps_of_a_model_equal_the_joint_product(readout, update):
    model, inputs = tiny_model(readout=readout, bottleneck_update=update), tiny_inputs()
    maps = attention_rollout(model, inputs)
    assert maps.video.shape == (2, 2, 2, 3)
    assert maps.audio.shape == (2, 5, 2)

    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    attentions = {
        "video": [layer.mean(1) for layer in outputs.attentions],
        "audio": [layer.mean(1) for layer in outputs.audio_attentions],
    }
    cls = int(readout == "token")
    sizes = (12 + cls, 10 + cls, 4 + cls)
    for sample in range(2):
        product = joint_rollout(attentions, sample, sizes, update)
        starts = [0, sizes[0]] if cls else range(sizes[0] + sizes[1])
        row = product[list(starts)].mean(0)
        torch.testing.assert_close(maps.video[sample].flatten(), row[cls : sizes[0]], rtol=0, atol=1e-6)
        torch.testing.assert_close(
            maps.audio[sample].flatten(), row[sizes[0] + cls : sizes[0] + sizes[1]], rtol=0, atol=1e-6
        )
    total = maps.video.flatten(1).sum(1) + maps.audio.flatten(1).sum(1) + maps.rest
    torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("overrides", [{}, {"readout": "max"}, {"share_encoder": True}], ids=["token", "max", "shared"])
def test_late_fusion_uses_one_modality_only(overrides):
    inputs = tiny_inputs()
    late = attention_rollout(tiny_model(fusion_layer=4, **overrides), inputs, relevance_of="video")
    assert late.audio.abs().max() == 0
    assert late.video.min() > 0
    fused = attention_rollout(tiny_model(fusion_layer=2, **overrides), inputs, relevance_of="video")
    assert fused.audio.min() > 0
    unused = attention_rollout(
        tiny_model(fusion_layer=2, test_with_bottlenecks=False, **overrides), inputs, relevance_of="audio"
    )
    assert unused.video.abs().max() == 0


def test_averaged_streams_have_equal_weight():
    maps = attention_rollout(tiny_model(fusion_layer=4, readout="stream_mean"), tiny_inputs())
    for each in (maps.video, maps.audio):  # 12 video and 10 audio tokens
        torch.testing.assert_close(each.flatten(1).sum(1), torch.full((2,), 0.5), rtol=0, atol=1e-6)
    pooled = attention_rollout(tiny_model(fusion_layer=4, readout="mean"), tiny_inputs())
    torch.testing.assert_close(pooled.video.flatten(1).sum(1), torch.full((2,), 12 / 22), rtol=0, atol=1e-6)


@pytest.mark.parametrize("share_encoder", [False, True])
@pytest.mark.parametrize("modalities", [("audio", "video"), ("video", "audio")])
def test_full_self_attention_models(share_encoder, modalities):
    model = tiny_model(fusion="self_attention", share_encoder=share_encoder, modalities=modalities)
    maps = attention_rollout(model, tiny_inputs(), relevance_of="video")
    total = maps.video.flatten(1).sum(1) + maps.audio.flatten(1).sum(1) + maps.rest
    torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=1e-6)
    assert maps.audio.min() > 0
    # One fusion layer: audio patches are reached from the last layer only, so they have at most half of the relevance.
    one = tiny_model(fusion="self_attention", share_encoder=share_encoder, modalities=modalities, fusion_layer=3)
    assert 0 < attention_rollout(one, tiny_inputs(), relevance_of="video").audio.sum(dim=(1, 2)).max() <= 0.5
    # Fusion in every layer: with a shared encoder, only the video stream's attentions are recorded.
    early = tiny_model(fusion="self_attention", share_encoder=share_encoder, modalities=modalities, fusion_layer=0)
    assert attention_rollout(early, tiny_inputs(), relevance_of="audio").video.min() > 0


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"fusion": "self_attention"},
        {"fusion": "self_attention", "share_encoder": True},
        {"bottleneck_update": "audio_first"},
    ],
)
def test_missing_modality_equals_the_clip_alone(overrides):
    model, inputs = tiny_model(**overrides), tiny_inputs(3)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    inputs["input_features"][1] = float("nan")
    maps = attention_rollout(model, {**inputs, "modality_mask": mask})
    both = attention_rollout(model, {name: values[:1] for name, values in inputs.items()})
    video = attention_rollout(model, {"pixel_values": inputs["pixel_values"][1:2]})
    audio = attention_rollout(model, {"input_features": inputs["input_features"][2:]})
    assert video.audio is None
    torch.testing.assert_close(maps.video[0], both.video[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.audio[0], both.audio[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.video[1], video.video[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.audio[2], audio.audio[0], rtol=0, atol=1e-6)
    assert maps.audio[1].abs().max() == 0
    assert maps.video[2].abs().max() == 0
    with pytest.raises(ValueError, match="relevance_of"):
        attention_rollout(model, {**inputs, "modality_mask": mask}, relevance_of="audio")


def test_single_modality_and_sampled_frames():
    audio_only = tiny_model(modalities=("audio",))
    maps = attention_rollout(audio_only, {"input_features": tiny_inputs()["input_features"]})
    assert maps.video is None
    assert maps.audio.shape == (2, 5, 2)
    # For 2 of 4 frames the original's rule selects 3; the map must have the selected frames.
    sampled = tiny_model(num_sampled_frames=2, tubelet_size=1)
    assert attention_rollout(sampled, tiny_inputs()).video.shape == (2, 3, 2, 3)
    with pytest.raises(ValueError, match="must contain a stream"):
        attention_rollout(audio_only, {"pixel_values": tiny_inputs()["pixel_values"]})


def test_relevance_follows_the_attention():
    """If every query prefers the key of one patch, that patch has the most relevance of its modality."""
    model, inputs = tiny_model(num_hidden_layers=1, fusion_layer=1, readout="mean"), tiny_inputs(1)
    block = model.mbt.layers[0].video.attention
    with torch.no_grad():
        tokens = model.mbt.layers[0].video.layernorm_before(model.mbt.video_embeddings(inputs["pixel_values"]))
        block.q_proj.weight.zero_()
        block.q_proj.bias.copy_(20 * torch.nn.functional.normalize(block.k_proj(tokens[0, 7]), dim=0))
    maps = attention_rollout(model, inputs)
    assert maps.video.flatten().argmax() == 7


def test_model_state_is_restored():
    model, inputs = tiny_model(), tiny_inputs()
    model.train()
    model.mbt.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    implementation = model.config._attn_implementation
    assert implementation == "sdpa"
    attention_rollout(model, inputs)
    assert model.config._attn_implementation == implementation
    assert {name: module.training for name, module in model.named_modules()} == before
    model.set_attn_implementation("eager")
    with torch.no_grad():
        heads = model(**inputs, output_attentions=True).attentions[0].shape[1]
    assert heads == 2, "the averaging over heads must not outlive the call"
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="num_frames"):
        attention_rollout(model, {"pixel_values": torch.zeros(1, 6, 3, 32, 48)})
    assert model.config._attn_implementation == "sdpa"


SHAPES, SOUNDS = ("circle", "square"), ("low", "high", "noise")


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(render_clip(num_frames=25, fps=12.5, size=(64, 48)))
    return path


def two_headed_model() -> MBTForAudioVisualClassification:
    labels = [*SHAPES, *SOUNDS]
    return tiny_model(
        image_size=[32, 32],
        class_splits={"shape": len(SHAPES), "sound": len(SOUNDS)},
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )


def small_processor() -> MBTProcessor:
    return MBTProcessor(
        video_processor=AVFusionVideoProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        feature_extractor=AVFusionFeatureExtractor(num_mel_bins=32, spectrogram_length=80),
        num_frames=4,
        audio_seconds=0.8,
    )


def test_explain_returns_every_head_and_writes_a_figure(clip_file, tmp_path):
    model, processor = two_headed_model(), small_processor()
    explained = explain(model, processor, clip_file, path=tmp_path / "figure.png")
    assert list(explained["predictions"]) == ["shape", "sound"]
    with torch.no_grad():
        logits = model(**processor(videos=str(clip_file), return_tensors="pt")).logits[0]
    for name, names, own in (("shape", SHAPES, logits[:2]), ("sound", SOUNDS, logits[2:])):
        best = explained["predictions"][name]
        assert [entry["label"] for entry in best] == [names[i] for i in own.argsort(descending=True)]
        assert sum(entry["score"] for entry in best) == pytest.approx(1, abs=1e-5)
        assert best[0]["score"] == pytest.approx(own.softmax(0).max().item(), abs=1e-5)
    assert explained["maps"].video.shape == (1, 2, 2, 2)
    assert explained["maps"].audio.shape == (1, 5, 2)
    image = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    assert image.shape[0] > 500
    assert image.shape[1] > 1200
    assert 0.2 < (image < 250).any(axis=-1).mean() < 0.95, "neither blank nor all ink"
    assert model.config._attn_implementation == "sdpa"

    one = explain(model, processor, clip_file.read_bytes(), head="sound", top_k=1)
    assert {name: len(best) for name, best in one["predictions"].items()} == {"sound": 1}
    assert one["path"] is None
    with pytest.raises(ValueError, match="'shape', 'sound'"):
        explain(model, processor, clip_file, head="verb")


@pytest.mark.parametrize("track", ["video", "audio"])
def test_explain_a_clip_with_one_modality(track, tmp_path):
    missing = {"audio": None} if track == "video" else {"num_frames": 0}
    media = render_clip(**{"num_frames": 25, "fps": 12.5, "size": (64, 48), **missing})
    explained = explain(two_headed_model(), small_processor(), media, path=tmp_path / "one.png")
    assert (explained["maps"].video is not None) == (track == "video")
    assert (explained["maps"].audio is not None) == (track == "audio")
    assert Image.open(tmp_path / "one.png").size[0] > 1200
