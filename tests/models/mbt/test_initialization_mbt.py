"""Less common rules of initialising MBT from a ViT or an AV-MAE, which the recorded cases do not cover."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DeiTConfig,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_avfusion import AVMAEConfig, AVMAEForPreTraining, MBTConfig, MBTForAudioVisualClassification, MBTModel

TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 24,
    "patch_size": 8,
    "num_frames": 4,
    "num_mel_bins": 16,
    "spectrogram_length": 40,
    "fusion_layer": 1,
}
VIT = {name: TINY[name] for name in list(TINY)[:6]}


def make_vit(cls=ViTModel, grid: int = 3, **fields):
    torch.manual_seed(3)
    vit = cls(ViTConfig(**{**VIT, "image_size": grid * 8, **fields}))
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_()
    return vit


def make_mbt(vit, cls=MBTModel, method: str = "resize_tile", **fields):
    return cls.from_vit(vit, MBTConfig(**{**TINY, **fields}), position_resize=method)


def grid_of(vit) -> torch.Tensor:
    return vit.base_model.embeddings.position_embeddings[0, 1:]


def test_the_only_stream_gets_the_cls_token():
    vit = make_vit()
    for modality in ("audio", "video"):
        model = make_mbt(vit, modalities=(modality,))
        embeddings = getattr(model, f"{modality}_embeddings")
        assert torch.equal(embeddings.cls_token, vit.embeddings.cls_token)
    assert make_mbt(vit).audio_embeddings.cls_token.abs().max() == 0


def test_equally_many_positions_are_copied_across_readouts():
    vit = make_vit()  # 9 patches and a CLS
    model = make_mbt(vit, readout="mean", spectrogram_length=40, num_mel_bins=16)  # 10 patches, no CLS
    assert torch.equal(model.audio_embeddings.position_embeddings, vit.embeddings.position_embeddings)
    model = make_mbt(vit, readout="mean", num_bottleneck_tokens=10)
    assert torch.equal(model.bottleneck, vit.embeddings.position_embeddings)


def test_tile_repeats_the_grid_in_both_streams_if_it_fits():
    vit = make_vit()
    model = make_mbt(vit, method="tile", spectrogram_length=72, num_mel_bins=16)  # 9 x 2 = twice 9
    twice = torch.cat([vit.embeddings.position_embeddings, grid_of(vit)[None]], dim=1)
    assert torch.equal(model.video_embeddings.position_embeddings, twice)
    assert torch.equal(model.audio_embeddings.position_embeddings, twice)
    fallback = make_mbt(vit, method="tile").audio_embeddings.position_embeddings  # 5 x 2 patches
    assert torch.equal(fallback, make_mbt(vit).audio_embeddings.position_embeddings)
    with pytest.raises(ValueError, match=r'Frames: 9 positions cannot be repeated to 8 tokens .* use .*"resize_tile"'):
        make_mbt(vit, method="tile", image_size=16)


def test_sampled_frames_divide_the_tokens_by_the_requested_frames():
    """For 2 of 8 frames the rule selects 3, but initialisation divides by 2: 3 x 4 tokens become 2 x (2 x 3)."""
    vit = make_vit()
    fields = {"num_frames": 8, "tubelet_size": 1, "image_size": 16}
    model = make_mbt(vit, num_sampled_frames=2, **fields)
    positions = model.video_embeddings.position_embeddings[0, 1:]
    assert torch.equal(positions[:6], positions[6:])
    corners = grid_of(vit)[[0, 2, 6, 8]]
    torch.testing.assert_close(positions[[0, 2, 3, 5]], corners)
    # For 6 frames it selects 7: 28 tokens cannot be divided by 6 into a grid, so each frame keeps its own 2 x 2.
    positions = make_mbt(vit, num_sampled_frames=6, **fields).video_embeddings.position_embeddings[0, 1:]
    torch.testing.assert_close(positions, corners.repeat(7, 1))


def test_wide_frames_keep_their_grid_if_no_near_square_grid_fits():
    vit = make_vit()
    positions = make_mbt(vit, image_size=(16, 56)).video_embeddings.position_embeddings[0, 1:]  # 2 x 7 patches, 2 steps
    torch.testing.assert_close(positions[[0, 6, 7, 13]], grid_of(vit)[[0, 2, 6, 8]])
    assert torch.equal(positions[:14], positions[14:])


def test_pooler_becomes_the_dense_layer_before_the_head(tmp_path):
    vit = make_vit()
    head = MBTForAudioVisualClassification
    model = make_mbt(vit, head, representation_size=12)
    assert torch.equal(model.pre_logits.weight, vit.pooler.dense.weight)
    assert torch.equal(model.pre_logits.bias, vit.pooler.dense.bias)
    assert make_mbt(vit, head).pre_logits is None
    other = make_mbt(vit, head, representation_size=8).pre_logits
    assert other.bias.abs().max() == 0  # another width: newly initialised

    vit.save_pretrained(tmp_path / "pooled")
    fields = {name: value for name, value in TINY.items() if name not in VIT}
    model = head.from_vit(str(tmp_path / "pooled"), representation_size=12, **fields)
    assert torch.equal(model.pre_logits.weight, vit.pooler.dense.weight)
    make_vit(ViTForImageClassification).save_pretrained(tmp_path / "classifier")
    model = head.from_vit(str(tmp_path / "classifier"), representation_size=12, **fields)
    assert model.pre_logits.bias.abs().max() == 0  # that file holds no pooler


def test_missing_query_key_value_biases_become_zero():
    vit = make_vit(qkv_bias=False)
    attention = make_mbt(vit).layers[1].audio.attention
    assert torch.equal(attention.q_proj.weight, vit.layers[1].attention.q_proj.weight)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert projection.bias.abs().max() == 0


def test_other_models_are_refused():
    deit = DeiTModel(DeiTConfig(**VIT))
    with pytest.raises(ValueError, match="distillation_token"):
        MBTModel.from_vit(deit, MBTConfig(**TINY))
    bert = BertModel(BertConfig(vocab_size=5, hidden_size=12, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"got BertModel, whose config lacks.*image_size"):
        MBTModel.from_vit(bert)


def test_every_plain_vit_class_and_dtype_works():
    for cls in (ViTForImageClassification, ViTForMaskedImageModeling):
        vit = make_vit(cls)
        model = make_mbt(vit)
        for name, value in vit.base_model.layers[1].state_dict().items():
            assert torch.equal(model.layers[1].audio.state_dict()[name], value), name
    model = make_mbt(make_vit().to(torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        output = model(torch.rand(1, 4, 3, 24, 24), torch.rand(1, 40, 16)).last_hidden_state
    assert torch.isfinite(output).all()


def make_avmae(**fields) -> AVMAEForPreTraining:
    torch.manual_seed(4)
    sizes = {name: value for name, value in TINY.items() if name != "fusion_layer"}
    model = AVMAEForPreTraining(AVMAEConfig(**{**sizes, "num_hidden_layers": 3, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("encoder", ["early", "shared", "separate", "mid_fusion"])
def test_avmae_layers_are_copied_to_the_streams_at_their_own_depth(encoder, tmp_path):
    fields = {"num_fusion_layers": 1} if encoder == "mid_fusion" else {}
    avmae = make_avmae(encoder_strategy=encoder, **fields)
    avmae.save_pretrained(tmp_path)
    model = MBTForAudioVisualClassification.from_avmae(str(tmp_path), num_labels=7, drop_path_rate=0.3)
    config, source = model.config, avmae.avmae.encoder
    assert (config.readout, config.position_embeddings, config.num_audio_channels) == ("stream_mean", "sinusoidal", 1)
    assert (config.num_frames, config.num_labels, config.fusion_layer) == (4, 7, 2)
    for index, layer in enumerate(model.mbt.layers):
        for stream in ("video", "audio"):
            for name, value in source.layers[index].block(stream).state_dict().items():
                assert torch.equal(getattr(layer, stream).state_dict()[name], value), (index, stream, name)
    if encoder == "separate":  # the norms of each modality are dropped, MBT's norm is newly initialised
        assert (model.mbt.layernorm.weight == 1).all()
        assert (model.mbt.layernorm.bias == 0).all()
    else:
        assert torch.equal(model.mbt.layernorm.weight, source.layernorm.weight)
    kernel = avmae.avmae.audio_embeddings.patch_embeddings.projection.weight
    assert torch.equal(model.mbt.audio_embeddings.patch_embeddings.projection.weight, kernel)
    assert model.classifier.weight.abs().max() == 0
    assert 0 < model.mbt.bottleneck.abs().max() < 0.2
    assert torch.isfinite(model(torch.rand(1, 4, 3, 24, 24), torch.rand(1, 40, 16)).logits).all()


def test_avmae_tokens_positions_and_channels_are_copied():
    avmae = make_avmae(use_modality_tokens=True, position_embeddings="learned")
    model = MBTModel.from_avmae(avmae, num_audio_channels=3)
    for modality in ("video", "audio"):
        ours, theirs = getattr(model, f"{modality}_embeddings"), getattr(avmae.avmae, f"{modality}_embeddings")
        assert torch.equal(ours.modality_token, theirs.modality_token)
        assert torch.equal(ours.position_embeddings, theirs.position_embeddings)
    kernel = avmae.avmae.audio_embeddings.patch_embeddings.projection.weight
    assert torch.equal(model.audio_embeddings.patch_embeddings.projection.weight, kernel.repeat(1, 3, 1, 1))
    without = MBTModel.from_avmae(avmae, use_modality_tokens=False)
    assert without.video_embeddings.modality_token is None


def test_avmae_with_more_frames_or_one_modality():
    avmae = make_avmae(encoder_strategy="mid_fusion")
    model = MBTModel.from_avmae(avmae, num_frames=8, modalities=("video",))
    assert model.audio_embeddings is None
    assert model(torch.rand(1, 8, 3, 24, 24)).video_hidden_state.shape == (1, 36, 12)
    alone = make_avmae(modalities=("audio",))
    assert MBTModel.from_avmae(alone).config.modalities == ("audio",)
    shared = MBTModel.from_avmae(make_avmae(encoder_strategy="shared"), share_encoder=True)
    assert "layers.0.shared.mlp.fc1.weight" in shared.state_dict()


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ({"modalities": ("audio",)}, {"modalities": ("audio", "video")}, r"has no tensors for \['video'\]"),
        ({}, {"num_hidden_layers": 2}, "must have the same depth"),
        ({}, {"share_encoder": True}, "do not fit an MBT with `share_encoder=True`"),
        ({}, {"patch_size": 4}, r"projection.weight.*do not fit this config"),
        ({"position_embeddings": "learned"}, {"position_embeddings": "sinusoidal"}, "has learned positions"),
        ({"position_embeddings": "learned"}, {"num_frames": 8}, "position_embeddings.*do not fit"),
    ],
)
def test_from_avmae_names_what_does_not_fit(source, fields, message):
    with pytest.raises(ValueError, match=message):
        MBTModel.from_avmae(make_avmae(**source), **fields)


def test_from_avmae_refuses_other_models():
    with pytest.raises(ValueError, match="got ViTModel"):
        MBTModel.from_avmae(make_vit())
    with pytest.raises(ValueError, match="either `config` or single fields"):
        MBTModel.from_avmae(make_avmae(), MBTConfig(**TINY), num_labels=3)
