"""LAVISH's two streams: equal to transformers' own models, missing modalities, directions, options, starting from backbones."""

import copy

import pytest
import torch
from equality import assert_rounding, assert_same_bits
from huggingface_hub.errors import StrictDataclassError
from tiny_lavish import ADAPTER, BACKBONES, perturb, tiny_config, tiny_inputs, tiny_model
from transformers import (
    AutoModel,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
    ViTModel,
)

from hf_avfusion.models.lavish.layers_lavish import AdapterOptions, LavishAdapter, PresenceBatchNorm, TokenBatchNorm
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification, LavishTwoStreamModel

every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


# ---------------------------------------------------------------------------------------------------- the frozen backbone


@every_backbone
@torch.no_grad()
def test_without_adapters_a_stream_equals_transformers(backbone):
    model = tiny_model(backbone, LavishTwoStreamModel)
    inputs = tiny_inputs(model)
    frames = inputs["pixel_values"]
    takes_clips = model.config.backbone_steps.takes_clips
    expected = model.backbone(frames if takes_clips else frames.flatten(0, 1)).last_hidden_state
    if backbone == "resnet":
        expected = expected.flatten(2).transpose(1, 2)
    found = model(**inputs).video_hidden_state
    assert_same_bits(found if takes_clips else found.flatten(0, 1), expected)
    assert_same_bits(model.encode_frozen(frames), found)


@torch.no_grad()
def test_a_spectrogram_of_the_frames_size_equals_transformers_on_three_planes():
    model = tiny_model("vit", LavishTwoStreamModel, spectrogram_length=32, num_mel_bins=32)
    sound = tiny_inputs(model)["input_features"]
    expected = model.backbone(sound.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)).last_hidden_state
    assert_same_bits(model(input_features=sound).audio_hidden_state.flatten(0, 1), expected)


@torch.no_grad()
def test_positions_of_a_spectrogram():
    model = tiny_model("vit", LavishTwoStreamModel)  # 3 x 5 patches and a CLS token instead of 4 x 4
    table = model.backbone.embeddings.position_embeddings
    expected = torch.nn.functional.interpolate(table.transpose(1, 2), size=16, mode="linear").transpose(1, 2)
    silence = torch.zeros(1, 2, 26, 40)
    embedded = model._embed(model.audio_embeddings, silence)
    kernel_bias = model.backbone.embeddings.patch_embeddings.projection.bias
    torch.testing.assert_close(embedded[0, 1:], (expected[0, 1:] + kernel_bias), atol=1e-6, rtol=0)
    torch.testing.assert_close(embedded[0, 0], expected[0, 0] + model.backbone.embeddings.cls_token[0, 0])
    model.config.audio_positions = "2d"
    two = model._embed(model.audio_embeddings, silence)
    torch.testing.assert_close(two[0, 0], table[0, 0] + model.backbone.embeddings.cls_token[0, 0])
    assert not torch.allclose(two[0, 1:], embedded[0, 1:], atol=1e-3)


@torch.no_grad()
def test_stage_states_are_transformers_maps_before_downsampling():
    model = tiny_model("swinv2", LavishTwoStreamModel)
    inputs = tiny_inputs(model)
    stages = model(**inputs, output_stage_states=True).stage_states
    encoded = model.backbone.encoder(
        *model.backbone.embeddings(inputs["pixel_values"].flatten(0, 1)),
        output_hidden_states=True,
        output_hidden_states_before_downsampling=True,
    )
    assert len(stages) == 2
    assert_same_bits(stages[0].flatten(0, 1), encoded.hidden_states[1])
    assert_same_bits(stages[1].flatten(0, 1), model.backbone.layernorm(encoded.hidden_states[2]))


def test_stochastic_depth_of_the_backbone_acts_unless_switched_off():
    def differs(**fields) -> bool:
        model = tiny_model("swinv2", LavishTwoStreamModel, **fields)
        for module in model.backbone.modules():
            if type(module).__name__ == "Swinv2DropPath":
                module.drop_prob = 0.5
        inputs = tiny_inputs(model, batch=4)
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state
            return not torch.equal(model.train()(**inputs).last_hidden_state, expected)

    drops = copy.deepcopy(BACKBONES["swinv2"][0])
    drops.drop_path_rate = 0.5
    assert differs(backbone_config=drops)
    assert not differs(backbone_config=drops, use_stochastic_depth=False)


def test_a_resnet_keeps_its_statistics_in_training():
    model = tiny_model("resnet", adapter=ADAPTER).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(**tiny_inputs(model))
    moved = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert moved
    assert all(".fusion_block." in name for name in moved)


# ------------------------------------------------------------------------------------------------------------- adapters


@every_backbone
@torch.no_grad()
def test_fresh_adapters_change_nothing_and_trained_ones_do(backbone):
    plain = tiny_model(backbone, perturbed=False)
    adapted = tiny_model(backbone, perturbed=False, adapter=ADAPTER)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    inputs = tiny_inputs(plain)
    assert_same_bits(adapted(**inputs).logits, plain(**inputs).logits)
    perturb(adapted, ("fusion_",))
    assert not torch.allclose(adapted(**inputs).logits, plain(**inputs).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("direction", "video_hears", "audio_sees"),
    [("both", True, True), ("audio_to_video", True, False), ("video_to_audio", False, True), ("none", False, False)],
)
@torch.no_grad()
def test_directions(direction, video_hears, audio_sees):
    model = tiny_model("vit", LavishTwoStreamModel, adapter={**ADAPTER, "direction": direction})
    inputs = tiny_inputs(model)
    other = tiny_inputs(model, seed=2)
    base = model(**inputs)
    other_sound = model(inputs["pixel_values"], other["input_features"])
    other_frames = model(other["pixel_values"], inputs["input_features"])
    assert torch.equal(other_sound.video_hidden_state, base.video_hidden_state) is not video_hears
    assert torch.equal(other_frames.audio_hidden_state, base.audio_hidden_state) is not audio_sees


@torch.no_grad()
def test_no_layer_mixes_segments():
    model = tiny_model("vit", adapter={**ADAPTER, "use_bn": True})
    inputs = tiny_inputs(model)
    logits = model(**inputs).logits
    changed = {name: value.clone() for name, value in inputs.items()}
    for value in changed.values():
        value[:, 1] = torch.randn_like(value[:, 1])
    found = model(**changed).logits
    torch.testing.assert_close(found[:, 0], logits[:, 0], atol=1e-6, rtol=0)
    assert not torch.allclose(found[:, 1], logits[:, 1], atol=1e-3)


def naive_adapter(adapter: LavishAdapter, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The published adapter, sample by sample, with a grouped convolution and BatchNorm's running statistics."""
    rows = []
    for x, c in zip(own, other):
        latents = adapter.latents + (adapter.latents @ c.T).softmax(-1) @ c
        x = x + adapter.fusion_gate * ((x @ latents.T).softmax(-1) @ latents)
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], adapter.norm_in.weight, adapter.norm_in.bias)
        for dense, norm, activation in (
            (adapter.down, adapter.bn_down, torch.relu),
            (adapter.up, adapter.bn_up, torch.nn.Identity()),
        ):
            x = torch.nn.functional.conv1d(x.T[None], dense.weight[:, :, None], groups=dense.groups)[0].T
            x = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
            x = activation(x)
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], adapter.norm_out.weight, adapter.norm_out.bias)
        rows.append(adapter.gate * x)
    return torch.stack(rows)


@torch.no_grad()
def test_an_adapter_equals_the_published_formula():
    torch.manual_seed(0)
    adapter = LavishAdapter(24, "video", AdapterOptions(num_tokens=3, reduction=4, groups=2)).eval()
    perturb(adapter)
    own, other = torch.randn(3, 7, 24), torch.randn(3, 5, 24)
    torch.testing.assert_close(adapter(own, other), naive_adapter(adapter, own, other), atol=1e-5, rtol=1e-5)


def test_latents_that_start_as_zeros_stay_equal():
    def spread(token_init: str) -> float:
        torch.manual_seed(0)
        adapter = LavishAdapter(16, "video", AdapterOptions(num_tokens=4, reduction=4, token_init=token_init))
        for gate in (adapter.gate, adapter.fusion_gate):
            torch.nn.init.constant_(gate, 0.5)
        optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            adapter(torch.randn(4, 6, 16), torch.randn(4, 5, 16)).square().mean().backward()
            optimizer.step()
        return float(adapter.latents.detach().std(dim=0).max())

    assert spread("zeros") < 1e-6
    assert spread("uniform") > 0.1


@pytest.mark.parametrize("present", [[True, True, False], [False, True, False], [False, False, False]])
def test_batch_norm_counts_the_rows_that_are_present(present):
    torch.manual_seed(0)
    mask, values = torch.tensor(present), torch.randn(3, 5, 4)
    ours, reference = TokenBatchNorm(4).train(), PresenceBatchNorm(4).train()
    found = ours(values, mask)
    assert int(ours.num_batches_tracked) == int(any(present))
    if not any(present):
        assert_same_bits(ours.running_mean, torch.zeros(4))
        return
    expected = torch.nn.BatchNorm1d.forward(reference, values[mask].flatten(0, 1)).view(-1, 5, 4)
    torch.testing.assert_close(found[mask], expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.running_mean, reference.running_mean)
    torch.testing.assert_close(ours.running_var, reference.running_var)


@every_backbone
def test_filler_of_a_missing_track_reaches_nothing_in_training(backbone):
    def train(filler: float) -> tuple[dict, dict, torch.Tensor]:
        model = tiny_model(backbone, adapter=ADAPTER).train()
        inputs = tiny_inputs(model, batch=3)
        inputs["input_features"][0] = filler
        inputs["pixel_values"][1] = filler
        mask = torch.tensor([[True, False], [False, True], [True, True]])
        shape = (3,) if model.config.num_segments is None else (3, 2)
        loss = model(**inputs, modality_mask=mask, labels=torch.zeros(shape, dtype=torch.long)).loss
        loss.backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        return gradients, dict(model.named_buffers()), loss.detach()

    for found, expected in zip(train(float("nan")), train(0.0)):
        assert_same_bits(found, expected)


@torch.no_grad()
def test_a_missing_modality_has_a_feature_of_zeros():
    model = tiny_model("vit", LavishTwoStreamModel, adapter=ADAPTER)
    inputs = tiny_inputs(model)
    alone = model(pixel_values=inputs["pixel_values"])
    assert_same_bits(alone.pooler_output[..., :24], torch.zeros(2, 2, 24))  # audio first, as the original's ViT
    mask = torch.tensor([[True, False], [True, True]])
    mixed = model(**inputs, modality_mask=mask)
    torch.testing.assert_close(mixed.pooler_output[0], alone.pooler_output[0], atol=1e-5, rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("kind", ["cross_entropy", "bce_of_probabilities", "bce_of_log_probabilities"])
def test_localization_losses(kind):
    model = tiny_model("vit", localization_loss=kind)
    labels = torch.tensor([[1, 4], [0, 2]])
    output = model(**tiny_inputs(model), labels=labels)
    logits = output.logits.detach().double().flatten(0, 1)
    if kind == "cross_entropy":
        expected = torch.nn.functional.cross_entropy(logits, labels.flatten())
    else:
        one_hot = torch.nn.functional.one_hot(labels.flatten(), 5).double()
        expected = torch.nn.functional.binary_cross_entropy(logits.softmax(-1), one_hot)
    torch.testing.assert_close(output.loss.detach().double(), expected, atol=1e-6, rtol=1e-5)


def test_the_head_is_linear_in_both_features():
    model = tiny_model("vit")
    features = torch.randn(4, 48)
    torch.testing.assert_close(
        model._head(2 * features) - model._head(features),
        model._head(3 * features) - model._head(2 * features),
        atol=1e-5,
        rtol=1e-5,
    )
    assert tiny_model("vit", classifier_hidden_size=None).pre_classifier is None


@pytest.mark.parametrize("modalities", [("video",), ("audio",)])
@torch.no_grad()
def test_models_of_one_modality(modalities):
    model = tiny_model("vit", modalities=modalities, adapter=ADAPTER)
    output = model(**tiny_inputs(model))
    assert output.logits.shape == (2, 2, 5)
    assert not [name for name, _ in model.named_parameters() if "latents" in name]
    absent = ({"video", "audio"} - set(modalities)).pop()
    assert not [name for name, _ in model.named_parameters() if f".{absent}." in name]


# ------------------------------------------------------------------------------------------------ configs and backbones


@pytest.mark.parametrize(
    ("backbone", "fields", "message"),
    [
        ("vit", {"spectrogram_length": 26, "drop_remainder": False}, "`spectrogram_length` 26 is not a multiple of 8"),
        ("vit", {"spectrogram_length": 4}, "smaller than one patch"),
        ("vit", {"num_frames": 3}, "`num_frames` must be 2"),
        ("vit", {"image_size": 16}, "`image_size`.*differs from that of `backbone_config`"),
        ("vit", {"adapter": {"groups": 5}}, "`groups` .5. must divide"),
        ("vit", {"adapter": {"reduktion": 4}}, "no option 'reduktion'"),
        ("vit", {"adapter": {**ADAPTER, "slots": ["blocks.9.fusion_attn"]}}, "'blocks.9.fusion_attn'"),
        ("vit", {"adapter": {"num_tokens": 0}}, "`num_tokens` of the adapters must be at least 1"),
        ("vit", {"adapter": {"direction": "sideways"}}, "`direction` of the adapters must be one of 'both'"),
        ("vit", {"adapter": {"use_bn": 1}}, "`use_bn` of the adapters must be a bool"),
        ("vit", {"localization_loss": "bce"}, "`localization_loss` must be one of 'cross_entropy'"),
        (
            "vit",
            {"localization_loss": "bce_of_probabilities", "problem_type": "multi_label_classification"},
            "one label each",
        ),
        ("vit", {"audio_positions": "3d"}, "`audio_positions` must be one of '1d', '2d'"),
        ("vit", {"num_segments": 0}, "`num_segments` must be at least 1"),
        ("swinv2", {"num_mel_bins": 40}, "must be the `image_size`"),
        ("videomae", {"num_segments": 2}, "takes a whole clip"),
        ("videomae", {"num_frames": 8}, "`num_frames` must be 4"),
        ("vit", {"num_segments": 2**20}, "exceed"),
    ],
)
def test_contradictory_configs(backbone, fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(backbone, **fields)


def test_backbones_of_other_types_are_refused():
    with pytest.raises((ValueError, StrictDataclassError), match=r"one of the types vit.*got 'bert'"):
        tiny_config("vit", backbone_config={"model_type": "bert"})


@every_backbone
@torch.no_grad()
def test_from_backbone(backbone, tmp_path):
    config, fields = BACKBONES[backbone]
    torch.manual_seed(3)
    source = AutoModel.from_config(copy.deepcopy(config)).eval()
    source.save_pretrained(tmp_path)
    for given in (source, tmp_path):
        model = LavishForAudioVisualClassification.from_backbone(given, num_labels=3, **fields).eval()
        inputs = tiny_inputs(model)
        frames = inputs["pixel_values"]
        expected = source(frames if backbone == "videomae" else frames.flatten(0, 1)).last_hidden_state
        expected = expected.flatten(2).transpose(1, 2) if backbone == "resnet" else expected
        found = model.lavish(**inputs).video_hidden_state
        assert_rounding(found if backbone == "videomae" else found.flatten(0, 1), expected)
        assert model(**inputs).logits.shape[-1] == 3


def test_from_backbone_drops_a_head_and_keeps_a_norm_after_pooling(tmp_path):
    fields = BACKBONES["vit"][1]
    ViTForImageClassification(copy.deepcopy(BACKBONES["vit"][0])).save_pretrained(tmp_path / "vit")
    LavishForAudioVisualClassification.from_backbone(str(tmp_path / "vit"), **fields)
    config = copy.deepcopy(BACKBONES["videomae"][0])
    source = VideoMAEForVideoClassification(config)
    torch.nn.init.normal_(source.fc_norm.weight)
    source.save_pretrained(tmp_path / "videomae")
    for given in (source, tmp_path / "videomae"):
        model = LavishForAudioVisualClassification.from_backbone(given, **BACKBONES["videomae"][1])
        assert_same_bits(model.lavish.fc_norm.state_dict(), source.fc_norm.state_dict())


def test_from_backbone_refuses_what_it_cannot_use(tmp_path):
    config, fields = BACKBONES["vit"]
    model = ViTModel(copy.deepcopy(config))
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp.fc1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="would be random"):
        LavishForAudioVisualClassification.from_backbone(tmp_path, **fields)
    with pytest.raises(ValueError, match="`backbone_config` is that of the backbone"):
        LavishForAudioVisualClassification.from_backbone(model, backbone_config={"model_type": "vit"})


def test_saved_models_load_and_weights_keep_transformers_names(tmp_path):
    model = tiny_model("vit", adapter={**ADAPTER, "slots": ["blocks.1.fusion_mlp"]})
    model.save_pretrained(tmp_path)
    loaded = LavishForAudioVisualClassification.from_pretrained(tmp_path)
    assert_same_bits(loaded.state_dict(), model.state_dict())
    assert loaded.config.adapter == model.config.adapter
    own = {name.removeprefix("lavish.backbone.") for name in model.state_dict() if name.startswith("lavish.backbone.")}
    assert own == set(ViTModel(model.config.backbone_config, add_pooling_layer=False).state_dict())
    adapted = {name.split(".fusion_")[0] for name in model.state_dict() if ".fusion_" in name}
    assert adapted == {"lavish.blocks.1"}
