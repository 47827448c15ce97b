"""What every architecture must do beyond transformers' own common tests; a new one adds one line to ARCHITECTURES."""

import json

import pytest
import torch
from equality import assert_outputs_of, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves
from transformers import AutoModel

from hf_avfusion import AutoModelForAudioVisualClassification, AVMAEConfig, MBTConfig

MBT_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "num_mel_bins": 16,
    "spectrogram_length": 24,
    "fusion_layer": 1,
    "num_labels": 5,
}

AVMAE_TINY = {key: value for key, value in MBT_TINY.items() if key != "fusion_layer"}

# Name of the variant -> its config. Inputs and outputs of all architectures are the same (design: pixel_values,
# input_features, modality_mask -> logits), so nothing else is needed.
ARCHITECTURES = {
    "mbt": MBTConfig(**MBT_TINY),
    "mbt-mean": MBTConfig(**MBT_TINY, readout="mean"),
    "mbt-shared": MBTConfig(**MBT_TINY, share_encoder=True, readout="max"),
    "mbt-video-first": MBTConfig(**MBT_TINY, bottleneck_update="video_first"),
    "mbt-audio-first": MBTConfig(**MBT_TINY, bottleneck_update="audio_first"),
    "mbt-self-attention": MBTConfig(**MBT_TINY, fusion="self_attention"),
    "mbt-self-attention-shared": MBTConfig(**MBT_TINY, fusion="self_attention", share_encoder=True, readout="sum"),
    "mbt-late": MBTConfig(**{**MBT_TINY, "fusion_layer": 3}),
    "mbt-early": MBTConfig(**{**MBT_TINY, "fusion_layer": 0}),
    "avmae": AVMAEConfig(**AVMAE_TINY),
    "avmae-early": AVMAEConfig(**AVMAE_TINY, encoder_strategy="early", position_embeddings="learned", pooled_norm=True),
    "avmae-mid-fusion": AVMAEConfig(**AVMAE_TINY, encoder_strategy="mid_fusion", use_modality_tokens=True),
}

pytestmark = pytest.mark.parametrize("name", ARCHITECTURES)


def build(name: str, attn_implementation: str = "sdpa", **changes) -> torch.nn.Module:
    config = type(ARCHITECTURES[name])(**{**ARCHITECTURES[name].to_dict(), **changes})
    torch.manual_seed(0)
    model = AutoModelForAudioVisualClassification.from_config(config, attn_implementation=attn_implementation).eval()
    with torch.no_grad():  # heads start at zero by the published recipe, which would make logits prove nothing
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(model: torch.nn.Module, size: int, seed: int = 1) -> dict[str, torch.Tensor]:
    config, generator = model.config, torch.Generator().manual_seed(seed)
    frames = (size, config.num_frames, config.num_channels, config.image_size, config.image_size)
    return {
        "pixel_values": torch.rand(frames, generator=generator) * 2 - 1,
        "input_features": torch.randn(size, config.spectrogram_length, config.num_mel_bins, generator=generator),
    }


def rows(inputs: dict[str, torch.Tensor], index) -> dict[str, torch.Tensor]:
    return {key: value[index] for key, value in inputs.items()}


@torch.no_grad()
def test_samples_do_not_depend_on_batch_mates(name):
    model = build(name)
    inputs = batch(model, 3)
    together = model(**inputs).logits
    for i in range(3):
        torch.testing.assert_close(model(**rows(inputs, slice(i, i + 1))).logits[0], together[i], rtol=1e-5, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(pattern=st.lists(st.sampled_from([(True, True), (True, False), (False, True)]), min_size=1, max_size=4))
@torch.no_grad()
def test_mixed_missing_modalities_equal_one_by_one(name, pattern):
    model = build(name)
    inputs = batch(model, len(pattern))
    mask = torch.tensor(pattern)
    inputs["pixel_values"][~mask[:, 0]] = float("nan")  # whatever stands in for a missing track must not matter
    inputs["input_features"][~mask[:, 1]] = 1e30
    mixed = model(**inputs, modality_mask=mask)
    for i, (video, audio) in enumerate(pattern):
        alone = rows(inputs, slice(i, i + 1))
        alone = {k: v for k, v in alone.items() if (video if k == "pixel_values" else audio)}
        torch.testing.assert_close(mixed.logits[i], model(**alone).logits[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_complete_samples_are_untouched_by_the_mask(name):
    model = build(name)
    inputs = batch(model, 4)
    plain = model(**inputs).logits
    mask = torch.tensor([[True, True], [True, False], [True, True], [False, True]])
    masked = model(**inputs, modality_mask=mask).logits
    assert_same_bits(masked[[0, 2]], plain[[0, 2]])
    assert_same_bits(model(**inputs, modality_mask=torch.ones(4, 2, dtype=torch.bool)).logits, plain)
    assert not torch.allclose(masked[1], plain[1], atol=1e-3)
    assert not torch.allclose(masked[3], plain[3], atol=1e-3)


def test_missing_tracks_leave_no_trace_in_gradients(name):
    model = build(name).train()
    inputs = batch(model, 2)
    mask = torch.tensor([[True, True], [True, False]])

    def gradients(filler):
        changed = {**inputs, "input_features": inputs["input_features"].clone()}
        changed["input_features"][1] = filler
        model.zero_grad()
        model(**changed, modality_mask=mask, labels=torch.tensor([1, 2])).loss.backward()
        return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}

    first, second = gradients(0.0), gradients(float("nan"))
    assert_same_bits(first, second)


def test_nothing_given_is_an_error(name):
    model = build(name)
    with pytest.raises(ValueError, match="got neither"):
        model()
    with pytest.raises(ValueError, match=r"Samples \[1\] have neither"):
        model(**batch(model, 2), modality_mask=torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ValueError, match="modality_mask"):
        model(**batch(model, 2), modality_mask=torch.ones(3, 2, dtype=torch.bool))
    wrong = batch(model, 2)
    with pytest.raises(ValueError, match=r"pixel_values.*num_frames"):
        model(**{**wrong, "pixel_values": wrong["pixel_values"][:, :2]})
    with pytest.raises(ValueError, match=r"input_features.*spectrogram_length"):
        model(**{**wrong, "input_features": wrong["input_features"][:, :-1]})


@torch.no_grad()
def test_bf16_follows_float32(name):
    model = build(name)
    inputs = batch(model, 2)
    expected = model(**inputs).logits
    model = model.to(torch.bfloat16)
    logits = model(**inputs).logits  # float32 inputs are taken as they come from the processor
    assert logits.dtype == torch.bfloat16
    scale = expected.abs().max()
    assert (logits.float() - expected).abs().max() < 0.025 * scale  # measured: at most 0.0144


@torch.no_grad()
def test_sdpa_equals_eager(name):
    sdpa, eager = build(name), build(name, attn_implementation="eager")
    inputs = batch(sdpa, 2)
    torch.testing.assert_close(sdpa(**inputs).logits, eager(**inputs).logits, rtol=1e-5, atol=1e-5)
    streams = eager(**inputs, output_attentions=True, output_hidden_states=True)
    layers = eager.config.num_hidden_layers
    assert len(streams.hidden_states) == len(streams.audio_hidden_states) == layers + 1
    assert len(streams.attentions) == layers
    for weights in tree_leaves((streams.attentions, streams.audio_attentions)):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@torch.no_grad()
def test_compiles_to_one_graph(name):
    model = build(name)
    inputs = batch(model, 2)
    expected = model(**inputs).logits
    torch._dynamo.reset()
    # Graph capture is what is at stake; the code generator behind it needs a C++ compiler and minutes.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
    mask = torch.tensor([[True, True], [False, True]])
    expected = model(**inputs, modality_mask=mask).logits
    torch.testing.assert_close(compiled(**inputs, modality_mask=mask).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_exports_with_a_dynamic_batch(name):
    model = build(name)
    size = torch.export.Dim("batch", min=2, max=64)
    inputs = batch(model, 3)
    program = torch.export.export(model, (), inputs, dynamic_shapes={key: {0: size} for key in inputs}, strict=False)
    for count in (2, 5):
        other = batch(model, count, seed=count)
        torch.testing.assert_close(program.module()(**other).logits, model(**other).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(name, use_reentrant):
    def gradients(checkpointing):
        model = build(name).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        inputs = batch(model, 2)
        model(**inputs, labels=torch.tensor([0, 3])).loss.backward()
        return {key: value.grad for key, value in model.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    for key, value in plain.items():
        assert (value is None) == (checkpointed[key] is None), key
        if value is not None:
            torch.testing.assert_close(checkpointed[key], value, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_saves_and_loads_the_same_weights(name, tmp_path):
    model = build(name)
    inputs = batch(model, 2)
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} == {path.name for path in tmp_path.iterdir()}
    loaded = AutoModelForAudioVisualClassification.from_pretrained(tmp_path)  # built on the meta device
    assert_same_bits(loaded.state_dict(), model.state_dict())
    assert_outputs_of(model, loaded(**inputs).logits, lambda: model(**inputs).logits)
    base = AutoModel.from_pretrained(tmp_path)
    found = base(**inputs).last_hidden_state
    assert_outputs_of(model.base_model, found, lambda: model.base_model(**inputs).last_hidden_state)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == model.config.model_type


def test_every_parameter_has_a_meta_safe_initialisation(name, tmp_path):
    """Weights that a checkpoint lacks are drawn anew, not left as the memory they were built in."""
    model = build(name)
    model.base_model.save_pretrained(tmp_path)  # the head is missing
    loaded, info = AutoModelForAudioVisualClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {
        key for key in loaded.state_dict() if not key.startswith(loaded.base_model_prefix)
    }
    assert not info["unexpected_keys"]
    assert all(torch.isfinite(value).all() for value in loaded.state_dict().values())
    assert loaded.classifier.weight.abs().max() == 0  # published initialisation of the head


@torch.no_grad()
def test_evaluation_is_deterministic(name):
    model = build(name, drop_path_rate=0.5, hidden_dropout_prob=0.1)
    inputs = batch(model, 2)
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_training_reaches_every_parameter(name):
    model = build(name).train()
    model(**batch(model, 2), labels=torch.tensor([0, 3])).loss.backward()
    assert not [key for key, value in model.named_parameters() if value.grad is None]
