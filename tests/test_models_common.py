"""What every architecture must do beyond transformers' own common tests; a new one adds one line to ARCHITECTURES."""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import accelerate
import peft
import pytest
import torch
from equality import assert_outputs_of, assert_rounding, assert_same_bits
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_net import SegmentNetConfig
from tiny_lavish import ADAPTER, VGGISH, tiny_config, tiny_questions, tiny_segmentation
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    PreTrainedConfig,
    PreTrainedModel,
    TorchAoConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_avfusion import (
    AutoModelForAudioVisualClassification,
    AutoModelForAudioVisualQuestionAnswering,
    AutoModelForAudioVisualSegmentation,
    AVMAEConfig,
    LavishForQuestionAnswering,
    LavishForSegmentation,
    MBTConfig,
)
from hf_avfusion.evaluation.costs import count_flops
from hf_avfusion.media.modalities import INPUT_MODALITIES, MODALITIES, MODEL_INPUTS
from hf_avfusion.models.shared.configuration_shared import as_pair
from hf_avfusion.models.shared.vggish import EXAMPLE_SHAPE
from hf_avfusion.tasks import task_of

MBT_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": (16, 24),
    "patch_size": 8,
    "num_frames": 4,
    "num_mel_bins": 16,
    "spectrogram_length": 24,
    "fusion_layer": 1,
    "num_labels": 5,
}

AVMAE_TINY = {key: value for key, value in MBT_TINY.items() if key != "fusion_layer"}

# Name of the variant -> a tiny config. The model is the one that an Auto class for classification builds from it, or the one of
# `HEADS`. Its inputs follow from `config.input_axes`, `config.modalities` and the sizes in the config or its sub-configs.
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "mbt": MBTConfig(**MBT_TINY),
    "mbt-shared": MBTConfig(**MBT_TINY, share_encoder=True, readout="max"),
    "mbt-video-first-mean": MBTConfig(**MBT_TINY, readout="mean", bottleneck_update="video_first"),
    "mbt-audio-first-early": MBTConfig(**{**MBT_TINY, "fusion_layer": 0}, bottleneck_update="audio_first"),
    "mbt-self-attention": MBTConfig(**MBT_TINY, fusion="self_attention"),
    "mbt-self-attention-shared": MBTConfig(**MBT_TINY, fusion="self_attention", share_encoder=True, readout="sum"),
    "mbt-late": MBTConfig(**{**MBT_TINY, "fusion_layer": 3}),
    "mbt-video-only": MBTConfig(**MBT_TINY, modalities=("video",)),
    "avmae": AVMAEConfig(**AVMAE_TINY),
    "avmae-early": AVMAEConfig(**AVMAE_TINY, encoder_strategy="early", position_embeddings="learned", pooled_norm=True),
    "avmae-mid-fusion": AVMAEConfig(**AVMAE_TINY, encoder_strategy="mid_fusion", use_modality_tokens=True),
    # With a backbone that trains: a frozen one has no gradients to test.
    "lavish": tiny_config("vit", freeze_backbone=False),
    "lavish-built-in": tiny_config("vit", adapter=ADAPTER, freeze_backbone=False),
    "lavish-vggish": tiny_config("vit", adapter=ADAPTER, **VGGISH, freeze_backbone=False),
    "lavish-swin": tiny_config("swinv2", adapter={**ADAPTER, "use_bn": False}, freeze_backbone=False),
    "lavish-videomae": tiny_config("videomae", adapter=ADAPTER, freeze_backbone=False),
    "lavish-audio-only": tiny_config("dinov2", adapter=ADAPTER, modalities=("audio",), freeze_backbone=False),
    "lavish-segmentation": tiny_segmentation(freeze_backbone=False),
    "lavish-segmentation-video-only": tiny_segmentation(
        modalities=("video",), tpavi_video_audio=False, tpavi_video_video=True, freeze_backbone=False
    ),
    "lavish-questions": tiny_questions(freeze_backbone=False),
    "lavish-questions-video-only": tiny_questions(modalities=("video",), freeze_backbone=False),
    "segment-net": SegmentNetConfig(num_labels=5),
    "segment-net-audio-only": SegmentNetConfig(num_labels=5, modalities=("audio",)),
}

# One variant of each model class, for the longest tests; the others are tried with `-m further`.
FAMILIES = ("mbt", "avmae-mid-fusion", "lavish-built-in", "lavish-segmentation", "lavish-questions", "segment-net")

# Variants whose model is not one for classification.
HEADS: dict[str, type] = {
    "lavish-questions": AutoModelForAudioVisualQuestionAnswering,
    "lavish-questions-video-only": AutoModelForVisualQuestionAnswering,
    "lavish-segmentation": AutoModelForAudioVisualSegmentation,
    "lavish-segmentation-video-only": AutoModelForSemanticSegmentation,
}
AUTO_CLASSES = (
    AutoModelForAudioVisualClassification,
    AutoModelForVideoClassification,
    AutoModelForAudioClassification,
)
# Axis -> config field with its size; height and width are both in `image_size`.
AXIS_FIELDS = {
    "views": "num_views",
    "clips": "num_clips",
    "segments": "num_segments",
    "frames": "num_frames",
    "channels": "num_channels",
    "time": "spectrogram_length",
    "mel": "num_mel_bins",
}

pytestmark = pytest.mark.parametrize("name", ARCHITECTURES)


def auto_class(name: str) -> type:
    return HEADS.get(name) or next(each for each in AUTO_CLASSES if type(ARCHITECTURES[name]) in each._model_mapping)


def build(name: str, attn_implementation: str = "sdpa", auto: type | None = None, **changes: Any) -> PreTrainedModel:
    config = type(ARCHITECTURES[name])(**{**ARCHITECTURES[name].to_dict(), **changes})
    torch.manual_seed(0)
    auto = auto_class(name) if auto is None else auto
    model = auto.from_config(config, attn_implementation=attn_implementation).eval()
    with torch.no_grad():  # some published heads start at zero, which would make logits prove nothing
        for key, parameter in model.named_parameters():  # audio reaches masks through norms that start at zero
            spread = 0.7 if key.endswith("batch_norm.weight") else 0.05
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def every_model(name: str) -> Iterator[PreTrainedModel]:
    """The base model, the head for classification and, where there is one, that for pretraining."""
    config = ARCHITECTURES[name]
    for auto in (AutoModel, AutoModelForPreTraining, auto_class(name)):
        if type(config) in auto._model_mapping:
            yield build(name, auto=auto)


def field(config: PreTrainedConfig, modality: str, name: str) -> Any:
    """A field of the modality's sub-config, or of the config itself."""
    own = getattr(config, f"{modality}_config", None)
    return getattr(own if hasattr(own, name) else config, name)


def input_names(config: PreTrainedConfig) -> dict[str, str]:
    """Modality -> input of the model."""
    streams = getattr(config, "modalities", MODALITIES)
    return {m: name for m, name in MODEL_INPUTS.items() if m in streams and name in config.input_axes}


def takes(model: PreTrainedModel) -> torch.Tensor:
    """bool [2] (video, audio): the modalities that the model takes."""
    return torch.tensor([modality in input_names(model.config) for modality in MODALITIES])


def inputs_of(modality: str) -> list[str]:
    """Every input that carries a modality."""
    return [name for name, other in INPUT_MODALITIES.items() if other == modality]


def axis_size(config: PreTrainedConfig, modality: str, axis: str) -> int:
    if axis in ("height", "width"):
        return as_pair("image_size", field(config, modality, "image_size"))[axis == "width"]
    return field(config, modality, AXIS_FIELDS[axis])


def batch(model: PreTrainedModel, size: int, seed: int = 1) -> dict[str, torch.Tensor]:
    config, generator = model.config, torch.Generator().manual_seed(seed)
    inputs = {}
    for modality, name in input_names(config).items():
        shape = (size, *(axis_size(config, modality, axis) for axis in config.input_axes[name]))
        inputs[name] = torch.rand(shape, generator=generator) * 2 - 1
    if getattr(config, "vggish", False):
        shape = (size, config.num_segments, *EXAMPLE_SHAPE)
        inputs["vggish_features"] = torch.rand(shape, generator=generator) * 4 - 2
    if isinstance(model, LavishForQuestionAnswering):
        inputs["input_ids"] = torch.randint(config.vocab_size, (size, 4), generator=generator)
    return inputs


def beside_streams(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs that belong to no modality, such as questions."""
    return {name: values for name, values in inputs.items() if name not in INPUT_MODALITIES}


def labelled(model: PreTrainedModel, size: int) -> dict[str, torch.Tensor]:
    """A batch with a label for each row of logits: one a clip, or one a segment; or for each pixel, 0 or 1."""
    inputs = batch(model, size)
    with torch.no_grad():
        *shape, classes = model(**inputs).logits.shape
    if isinstance(model, LavishForSegmentation):
        shape, classes = (*shape, classes), 2
    if isinstance(model, LavishForQuestionAnswering) and len(input_names(model.config)) == 2:
        inputs["negative_pixel_values"] = batch(model, size, seed=3)["pixel_values"]  # for the match loss
    return {**inputs, "labels": torch.randint(classes, shape, generator=torch.Generator().manual_seed(2))}


def masks(model: PreTrainedModel) -> torch.Tensor:
    """Every row of `modality_mask` (video, audio) that leaves the model what it needs: at most [3, 2]."""
    every = torch.tensor([[True, True], [True, False], [False, True]])
    needed = getattr(task_of(model), "needed_modalities", ())
    every = every[every[:, [modality in needed for modality in MODALITIES]].all(dim=1)]
    return every[(every & takes(model)).any(dim=1)]


def fill_missing(inputs: dict[str, torch.Tensor], mask: torch.Tensor, *fillers: float) -> dict[str, torch.Tensor]:
    """Copies of the inputs with fillers, of video and of audio, in the rows of missing modalities."""
    inputs = {name: values.clone() for name, values in inputs.items()}
    for column, (modality, filler) in enumerate(zip(MODALITIES, fillers)):
        for name in inputs_of(modality):
            if name in inputs:
                inputs[name][~mask[:, column]] = filler
    return inputs


def rows(inputs: dict[str, torch.Tensor], index) -> dict[str, torch.Tensor]:
    return {key: value[index] for key, value in inputs.items()}


@torch.no_grad()
def test_samples_do_not_depend_on_batch_mates(name):
    model = build(name)
    inputs = batch(model, 3)
    together = model(**inputs).logits
    for i in range(3):
        torch.testing.assert_close(model(**rows(inputs, slice(i, i + 1))).logits[0], together[i], rtol=1e-5, atol=1e-5)


@lru_cache(maxsize=1)
def built_once(name: str) -> PreTrainedModel:
    """`build` for the examples of one test, none of which changes the model."""
    return build(name)


@settings(max_examples=12, deadline=None)
@given(pattern=st.lists(st.integers(0, 2), min_size=1, max_size=4))
@torch.no_grad()
def test_mixed_missing_modalities_equal_one_by_one(name, pattern):
    model = built_once(name)
    possible = masks(model)
    mask = possible[[i % len(possible) for i in pattern]]
    # The filler of a missing track must not matter, whatever it is.
    inputs = fill_missing(batch(model, len(pattern)), mask, float("nan"), 1e30)
    mixed = model(**inputs, modality_mask=mask)
    for i, present in enumerate(mask):
        names = {name for modality, there in zip(MODALITIES, present) if there for name in inputs_of(modality)}
        clip = rows(inputs, slice(i, i + 1))
        alone = {key: value for key, value in clip.items() if key in {*names, *beside_streams(clip)}}
        torch.testing.assert_close(mixed.logits[i], model(**alone).logits[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_complete_samples_are_untouched_by_the_mask(name):
    model = build(name)
    mask = masks(model)[[0, 1, 0, -1]]
    inputs = batch(model, 4)
    plain = model(**inputs).logits
    masked = model(**inputs, modality_mask=mask).logits
    complete = (mask | ~takes(model)).all(dim=1)
    assert_same_bits(masked[complete], plain[complete])
    assert_same_bits(model(**inputs, modality_mask=torch.ones(4, 2, dtype=torch.bool)).logits, plain)
    for i in (~complete).nonzero().flatten():
        assert not torch.allclose(masked[i], plain[i], atol=1e-3)


def test_missing_tracks_leave_no_trace_in_gradients(name):
    model = build(name)
    mask = masks(model)
    inputs = labelled(model, len(mask))
    model.train()

    def gradients(filler: float) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**fill_missing(inputs, mask, filler, filler), modality_mask=mask).loss.backward()
        return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}

    first, second = gradients(0.0), gradients(float("nan"))
    assert_same_bits(first, second)
    assert all(torch.isfinite(value).all() for value in first.values())


def test_nothing_given_is_an_error(name):
    model = build(name)
    with pytest.raises(ValueError, match="got neither"):
        model()
    with pytest.raises(ValueError, match=r"Samples \[1\] have neither"):
        model(**batch(model, 2), modality_mask=torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ValueError, match="modality_mask"):
        model(**batch(model, 2), modality_mask=torch.ones(3, 2, dtype=torch.bool))
    inputs = batch(model, 2)
    for key, axis in (("pixel_values", "frames"), ("input_features", "time")):
        if key in inputs:
            place = 1 + model.config.input_axes[key].index(axis)
            short = inputs[key].narrow(place, 0, inputs[key].shape[place] - 1)
            with pytest.raises(ValueError, match=rf"{key}.*{AXIS_FIELDS[axis]}"):
                model(**{**inputs, key: short})


@torch.no_grad()
def test_bf16_follows_float32(name):
    model = build(name)
    inputs = batch(model, 2)
    expected = model(**inputs).logits
    model = model.to(torch.bfloat16)
    logits = model(**inputs).logits  # float32 inputs are taken as they come from the processor
    assert logits.dtype == torch.bfloat16
    scale = expected.abs().max()
    # measured: at most 0.0144, 0.0371 with the unscaled soft-maxes of LAVISH's adapters, and 0.058 of 4,096 pixels after the
    # convolutions of its decoder, all in bfloat16
    bound = 0.08 if "segmentation" in name else 0.05 if "lavish" in name else 0.025
    assert (logits.float() - expected).abs().max() < bound * scale


@pytest.mark.by_default(*FAMILIES)
@torch.no_grad()
def test_int8_weights_follow_float32(name, torchao, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.utils import TorchAOBaseTensor

    model = build(name)
    inputs = batch(model, 2)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "float32")
    loading = auto_class(name).from_pretrained
    quantized = loading(tmp_path / "float32", quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    logits = quantized(**inputs).logits
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()  # measured: at most 0.028
    quantized.save_pretrained(tmp_path / "int8")
    loaded = loading(tmp_path / "int8")
    assert_rounding(loaded(**inputs).logits, logits)
    for each in (quantized, loaded):
        dense = [layer.weight for layer in each.base_model.modules() if isinstance(layer, torch.nn.Linear)]
        assert dense
        assert all(isinstance(weight, TorchAOBaseTensor) for weight in dense)


@torch.no_grad()
def test_sdpa_equals_eager(name):
    sdpa, eager = build(name), build(name, attn_implementation="eager")
    inputs = batch(sdpa, 2)
    torch.testing.assert_close(sdpa(**inputs).logits, eager(**inputs).logits, rtol=1e-5, atol=1e-5)
    streams = eager(**inputs, output_attentions=True, output_hidden_states=True)
    recorded = {key: value for key, value in streams.items() if key.endswith(("hidden_states", "attentions"))}
    prefixes = {"video": "", "audio": "audio_"}
    for modality in input_names(eager.config):
        layers = field(eager.config, modality, "num_hidden_layers")
        assert len(recorded.pop(f"{prefixes[modality]}hidden_states")) == layers + 1
        # A layer with one sequence for both streams has one map, which stands with those of the video.
        attentions = recorded.pop(f"{prefixes[modality]}attentions", ())
        assert len(attentions) == layers or (modality == "audio" and streams.attentions)
    assert not recorded  # nothing of a stream that the model lacks
    for weights in tree_leaves([maps for maps in (streams.attentions, streams.audio_attentions) if maps]):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(name, use_reentrant):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor | None]:
        model = build(name)
        inputs = labelled(model, 2)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.train()(**inputs).loss.backward()
        return {key: value.grad for key, value in model.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    for key, value in plain.items():
        assert (value is None) == (checkpointed[key] is None), key
        if value is not None:
            torch.testing.assert_close(checkpointed[key], value, rtol=1e-5, atol=1e-6)


def test_a_config_can_switch_gradient_checkpointing_on(name):
    config = type(ARCHITECTURES[name])(**ARCHITECTURES[name].to_dict())
    config.gradient_checkpointing = True
    assert auto_class(name).from_config(config).is_activation_checkpointing


@torch.no_grad()
def test_saves_and_loads_the_same_weights(name, tmp_path):
    model = build(name)
    inputs = batch(model, 2)
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} == {path.name for path in tmp_path.iterdir()}
    loaded = auto_class(name).from_pretrained(tmp_path)  # built on the meta device
    assert_same_bits(loaded.state_dict(), model.state_dict())
    assert_outputs_of(model, loaded(**inputs).logits, lambda: model(**inputs).logits)
    base = AutoModel.from_pretrained(tmp_path)
    streams = {key: value for key, value in inputs.items() if key not in beside_streams(inputs)}
    found = base(**streams).last_hidden_state
    assert_outputs_of(model.base_model, found, lambda: model.base_model(**streams).last_hidden_state)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == model.config.model_type


def test_every_parameter_has_a_meta_safe_initialisation(name, tmp_path):
    """Weights that a checkpoint lacks are initialised, not left as the memory they were built in."""
    model = build(name)
    model.base_model.save_pretrained(tmp_path)  # the head is missing
    loaded, info = auto_class(name).from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {
        key for key in loaded.state_dict() if not key.startswith(loaded.base_model_prefix)
    }
    assert not info["unexpected_keys"]
    assert all(torch.isfinite(value).all() for value in loaded.state_dict().values())
    fresh, other = (auto_class(name).from_config(model.config).state_dict() for _ in range(2))
    for key in info["missing_keys"]:
        found, expected = loaded.state_dict()[key], fresh[key]
        if torch.equal(expected, other[key]):  # a constant
            assert torch.equal(found, expected), key
        elif expected.numel() < 5:  # too few for a deviation
            largest = torch.stack([expected, other[key]]).abs().max()
            assert 0 < found.abs().max() < 4 * largest, key
        else:
            torch.testing.assert_close(found.std(), expected.std(), rtol=0.5, atol=0, msg=key)


@torch.no_grad()
def test_evaluation_is_deterministic(name):
    def with_dropout(value: Any, key: Any = "") -> Any:
        if isinstance(value, dict):
            return {key: with_dropout(each, key) for key, each in value.items()}
        return 0.5 if isinstance(value, float) and "drop" in key else value

    model = build(name, **with_dropout(ARCHITECTURES[name].to_dict()))
    inputs = batch(model, 2)
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_training_reaches_every_parameter(name):
    model = build(name)
    inputs = labelled(model, 2)
    model.train()(**inputs).loss.backward()
    assert not [key for key, value in model.named_parameters() if value.grad is None]


@torch.no_grad()
def test_every_parameter_is_used_by_its_own_module(name):
    """Hooks, offloading, adapters and quantised layers act on calls of a module."""
    for model in every_model(name):
        called = set()
        for key, module in model.named_modules():
            module.register_forward_hook(lambda *_, key=key, called=called: called.add(key))
        model(**batch(model, 2))
        owners = {key.rpartition(".")[0] for key, _ in model.named_parameters()}
        assert not owners - called, type(model).__name__


@pytest.mark.by_default(*FAMILIES)
@torch.no_grad()
def test_offloaded_weights_give_the_same(name, tmp_path):
    for i, model in enumerate(every_model(name)):
        inputs = batch(model, 2)
        expected = model(**inputs)
        model.save_pretrained(tmp_path / f"saved{i}")
        loading = {"device_map": {"": "disk"}, "offload_folder": tmp_path / f"loaded{i}"}
        loaded = type(model).from_pretrained(tmp_path / f"saved{i}", **loading)
        assert_rounding(loaded(**inputs), expected)
        accelerate.cpu_offload(model, torch.device("cpu"))
        assert all(value.is_meta for value in model.parameters())
        assert_same_bits(model(**inputs), expected)
        model = type(model).from_pretrained(tmp_path / f"saved{i}")
        accelerate.disk_offload(model, tmp_path / f"disk{i}", torch.device("cpu"))
        assert_rounding(model(**inputs), expected)


@pytest.mark.by_default(*FAMILIES)
@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_on_every_layer_train_and_merge(name, use_dora):
    for model in every_model(name):
        if model is model.base_model:
            continue  # no loss
        layers = [
            key
            for key, module in model.named_modules()
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d))
            and set(getattr(module, "dilation", ())) <= {1}  # peft's LoRA ignores it
        ]
        inputs = batch(model, 2) if "PreTraining" in type(model).__name__ else labelled(model, 2)
        with torch.no_grad():
            before = model(**inputs)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=layers, use_dora=use_dora))
        trained = {key: value for key, value in adapted.named_parameters() if value.requires_grad}
        assert len(trained) == len(layers) * (3 if use_dora else 2)
        optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
        for _ in range(2):  # the first step moves only B, since B starts at 0
            optimizer.zero_grad()
            adapted(**inputs).loss.backward()
            optimizer.step()
        assert not [key for key, value in trained.items() if value.grad is None or not value.grad.any()]
        adapted.eval()
        with torch.no_grad():
            tuned = adapted(**inputs)
            merged = adapted.merge_and_unload()(**inputs)
        assert not torch.allclose(tuned.loss, before.loss, rtol=1e-3)
        for key, value in tuned.items():
            torch.testing.assert_close(merged[key], value, rtol=1e-4, atol=1e-4, msg=key)


@torch.no_grad()
def test_meta_model_has_its_computed_tables_after_loading(name):
    for model in every_model(name):
        inputs = batch(model, 2)
        expected = model(**inputs)
        for assign in (False, True):
            with torch.device("meta"):
                empty = type(model)(model.config).eval()
            if not assign:
                empty.to_empty(device="cpu")
                for value in (*empty.parameters(), *empty.buffers()):
                    value.fill_(float("nan") if value.is_floating_point() else -1)
            empty.load_state_dict(model.state_dict(), assign=assign)
            assert_same_bits(empty(**inputs), expected)


def test_flops_are_counted_without_memory(name):
    model = build(name)
    inputs = {key: value for key, value in batch(model, 2).items() if key != "modality_mask"}
    with torch.device("meta"):
        empty = type(model)(model.config).eval()
    counted = count_flops(lambda: empty(**{key: value.to("meta") for key, value in inputs.items()}))
    assert counted == count_flops(lambda: model(**inputs)) > 0


def test_one_stream_alone_gets_gradients_on_frozen_embeddings(name):
    for modality in input_names(ARCHITECTURES[name]):
        if not {*task_of(build(name)).needed_modalities} <= {modality}:
            continue
        found = []
        for use_reentrant in (None, True):
            model = build(name).train()
            inputs = labelled(model, 2)
            inputs.pop("negative_pixel_values", None)  # needs both
            model.requires_grad_(False)
            layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
            for layer in layers:
                layer.requires_grad_(True)
            model.enable_input_require_grads()
            if use_reentrant:
                model.gradient_checkpointing_enable({"use_reentrant": True})
            alone = {key: inputs[key] for key in inputs_of(modality) if key in inputs}
            model(**alone, **beside_streams(inputs)).loss.backward()
            found.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
        assert found[0], modality
        torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_gives_tuples_on_request(name, tmp_path):
    for model in every_model(name):
        inputs = batch(model, 2)
        expected = dict(enumerate(model(**inputs).to_tuple()))
        assert_same_bits(dict(enumerate(model(**inputs, return_dict=False))), expected)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, return_dict=False)
        found = loaded(**inputs)
        assert isinstance(found, tuple)
        assert_rounding(dict(enumerate(found)), expected)


def test_a_misspelt_input_is_refused(name):
    for model in every_model(name):
        inputs = batch(model, 2)
        for key in inputs:
            misspelt = "pixels_values" if key == "pixel_values" else key[:-1]
            rest = {other: value for other, value in inputs.items() if other != key}
            with pytest.raises(ValueError, match=f"no input `{misspelt}`. Did you mean `{key}`"):
                model(**rest, **{misspelt: inputs[key]})


def test_fields_set_after_construction_are_checked(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    for changes in ({"id2label": {0: "a", 2: "b"}}, {"num_labels": 3, "class_splits": {"a": 1, "b": 1}}):
        with pytest.raises((ValueError, StrictDataclassError), match=r"id2label|class_splits"):
            auto_class(name).from_pretrained(tmp_path, ignore_mismatched_sizes=True, **changes)
    config = type(model.config).from_pretrained(tmp_path)
    config.problem_type = "multi_head_classification"
    with pytest.raises((ValueError, StrictDataclassError), match="class_splits"):
        type(model)(config)
