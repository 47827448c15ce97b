"""The AV-MAE converter on generated files: every strategy, both train states, both spellings, strictness, command line."""

import json
import re

import numpy as np
import pytest
import torch
from flax_files import flax_params, write

from hf_avfusion import (
    AVMAEConfig,
    AVMAEForAudioVisualClassification,
    AVMAEForPreTraining,
    MBTConfig,
    MBTForAudioVisualClassification,
)
from hf_avfusion.conversion.avmae import (
    classifier_rules,
    convert_avmae,
    finetuning_rules,
    load_avmae,
    main,
    normalize_names,
    pretraining_rules,
)
from hf_avfusion.conversion.flax import ConversionError

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "num_mel_bins": 16,
    "spectrogram_length": 24,
}
DECODER = {
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 20,
}
KNOWN = {name: SIZES[name] for name in ("image_size", "num_frames", "num_mel_bins", "spectrogram_length")}


def random(cls, config) -> torch.nn.Module:
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2.0)
    return model


def params_of(model) -> dict[str, np.ndarray]:
    config = model.config
    rules = {
        AVMAEForPreTraining: pretraining_rules,
        AVMAEForAudioVisualClassification: classifier_rules,
        MBTForAudioVisualClassification: finetuning_rules,
    }[type(model)](config)
    decoder_heads = getattr(config, "decoder_num_attention_heads", 0)
    return flax_params(
        model.state_dict(),
        rules,
        lambda path: decoder_heads if path.startswith("Decoder") else config.num_attention_heads,
    )


def pretrained(**fields) -> AVMAEForPreTraining:
    return random(AVMAEForPreTraining, AVMAEConfig(**{**SIZES, **DECODER, **fields}))


def finetuned(**fields) -> MBTForAudioVisualClassification:
    given = {"readout": "stream_mean", "position_embeddings": "sinusoidal", "num_audio_channels": 1, "fusion_layer": 1}
    return random(
        MBTForAudioVisualClassification,
        MBTConfig(**{**SIZES, **given, "modalities": ("video", "audio"), "num_labels": 3, **fields}),
    )


def check_same(loaded, model) -> None:
    assert type(loaded) is type(model)
    assert set(loaded.state_dict()) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.filterwarnings("ignore:.*two autoencoders that share")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"encoder_strategy": "mid_fusion", "decoder_strategy": "separate", "use_modality_tokens": True},
        {"encoder_strategy": "early", "decoder_strategy": "concatenated"},
        {"encoder_strategy": "shared", "decoder_projection_bias": False, "final_norm": False},
        {"position_embeddings": "learned", "central_frame_target": True},
        {"decoder_position_embeddings": "learned", "decoder_strategy": "separate"},
        {"modalities": ("audio",), "num_audio_channels": 3},
        {"modalities": ("video",), "encoder_strategy": "mid_fusion", "num_fusion_layers": 1},
    ],
)
def test_pretraining_checkpoints_of_every_strategy_convert(tmp_path, fields):
    model = pretrained(**fields)
    write(tmp_path / "checkpoint_3", params_of(model), "optimizer")
    known = {k: v for k, v in fields.items() if v in ("early", "concatenated")}
    loaded = load_avmae(tmp_path / "checkpoint_3", {**KNOWN, **known})
    check_same(loaded, model)
    for name in (*fields, *DECODER, "hidden_size", "num_attention_heads", "num_hidden_layers", "patch_size"):
        expected, found = getattr(model.config, name), getattr(loaded.config, name)
        assert (list(found) == [expected] * 2) if name == "patch_size" else found == expected, name


@pytest.mark.parametrize("nesting", ["params", "params_params"])
@pytest.mark.parametrize("spelling", ["embedding_spec", "embedding_spectrogram"])
def test_both_spellings_of_the_audio_embedding_convert(tmp_path, nesting, spelling):
    model = finetuned(use_modality_tokens=True, representation_size=8)
    params = params_of(model)
    assert "Transformer/encoderblock_0_spectrogram/LayerNorm_0/scale" in params
    # As published: `_spec` on the blocks, either name for the embedding.
    params = {name.replace("_spectrogram/LayerNorm", "_spec/LayerNorm"): value for name, value in params.items()}
    params = {name.replace("_spectrogram/M", "_spec/M"): value for name, value in params.items()}
    params = {name.replace("embedding_spectrogram/", f"{spelling}/"): value for name, value in params.items()}
    write(tmp_path / "checkpoint", params, nesting)
    check_same(load_avmae(tmp_path / "checkpoint", {**KNOWN, "fusion_layer": 1}), model)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_blocks_without_suffix_belong_to_the_only_modality(tmp_path, modality):
    model = finetuned(modalities=(modality,))
    params = {**params_of(model), "bottleneck": np.zeros((1, 4, 16), np.float32)}  # present, but unused
    assert not any("encoderblock_0_spec" in name for name in params)
    assert ("embedding_spectrogram/kernel" in params) == (modality == "audio")
    write(tmp_path / "checkpoint", params, "params")
    loaded = load_avmae(tmp_path / "checkpoint", KNOWN)
    check_same(loaded, model)
    assert loaded.config.modalities == (modality,)


def test_blocks_without_suffix_belong_to_the_first_modality(tmp_path):
    model = finetuned(modalities=("audio", "video"), readout="stream_max")
    params = params_of(model)
    assert "Transformer/encoderblock_0_rgb/LayerNorm_0/scale" in params
    write(tmp_path / "checkpoint", params, "params")
    loaded = load_avmae(tmp_path / "checkpoint", {**KNOWN, "fusion_layer": 1, "readout": "stream_max"})
    check_same(loaded, model)
    assert loaded.config.modalities == ("audio", "video")


@pytest.mark.parametrize(
    "fields",
    [
        {"modalities": ("video",), "pooled_norm": True, "final_norm": False},
        {"modalities": ("audio",), "readout": "token", "representation_size": 6, "use_modality_tokens": True},
        {"modalities": ("video",), "pooled_norm": True, "position_embeddings": "learned"},
        {"modalities": ("audio",), "pooled_norm": True, "freeze_encoder": True},
    ],
)
def test_single_modality_classifiers_convert(tmp_path, fields):
    model = random(AVMAEForAudioVisualClassification, AVMAEConfig(**{**SIZES, "num_labels": 3, **fields}))
    params = params_of(model)
    statistics = {name: params.pop(name) for name in list(params) if name.startswith("batch_stats/")}
    write(tmp_path / "checkpoint", params, "params", model_state=statistics)
    loaded = load_avmae(tmp_path / "checkpoint", KNOWN)
    check_same(loaded, model)
    for name, value in fields.items():
        assert getattr(loaded.config, name) == value, name


def test_names_of_the_single_modality_autoencoder():
    model = pretrained(modalities=("video",))
    bare = {
        name.replace("_rgb/", "/").replace("mask_token_rgb", "mask_token"): value
        for name, value in params_of(model).items()
    }
    assert "decoder_projection/kernel" in bare
    assert "Transformer/encoderblock_0/LayerNorm_0/scale" in bare
    state = convert_avmae(bare, model.config)
    assert set(normalize_names(bare)) == set(params_of(model))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_every_mismatch_is_reported():
    model = pretrained()
    params = params_of(model)
    with pytest.raises(ConversionError, match=r"without a target.*Transformer_concat/surprise"):
        convert_avmae({**params, "Transformer_concat/surprise": np.zeros(2)}, model.config)
    fewer = {name: value for name, value in params.items() if name != "mask_token_rgb"}
    with pytest.raises(ConversionError, match=r"missing.*mask_token_rgb"):
        convert_avmae(fewer, model.config)
    wrong = {**params, "mask_token_rgb": np.zeros((1, 1, 5), np.float32)}
    with pytest.raises(ConversionError, match=r"mask_token_rgb has shape \(1, 1, 5\)"):
        convert_avmae(wrong, model.config)
    with pytest.raises(ConversionError, match="both spellings"):
        convert_avmae({**params, "embedding_spec/bias": params["embedding_spectrogram/bias"]}, model.config)
    with pytest.raises(ConversionError, match="Not a checkpoint of av_mae"):
        convert_avmae({"some/kernel": np.zeros(2)}, model.config)


def test_project_configs_are_read(tmp_path):
    sizes = {"num_frames": 4, "height": 16, "width": 16, "spec_time": 24, "spec_freq": 16}
    block = {"hidden_size": 16, "num_heads": 2, "mlp_dim": 24, "num_layers": 3, "patches": {"size": [8, 8, 2]}}
    decoder = {"hidden_size": 12, "num_heads": 3, "mlp_dim": 20, "num_layers": 2}
    model = pretrained(encoder_strategy="early")
    write(tmp_path / "pretrained", params_of(model))
    scenic = {"model": {**block, "encoder_strategy": "concat_and_encode", "decoder_config": decoder}, **sizes}
    scenic["masked_feature_loss"] = {"token_mask_probability_dict": {"rgb": 0.5, "spectrogram": 0.25}}
    loaded = load_avmae(tmp_path / "pretrained", scenic)
    check_same(loaded, model)
    assert (loaded.config.encoder_strategy, loaded.config.audio_mask_ratio) == ("early", 0.25)
    model = finetuned()
    write(tmp_path / "finetuned", params_of(model), "params")
    scenic = {"model": {**block, "fusion_layer": 1, "use_bottleneck": True}, "label_smoothing": 0.3, **sizes}
    loaded = load_avmae(tmp_path / "finetuned", scenic)
    check_same(loaded, model)
    assert (loaded.config.fusion_layer, loaded.config.label_smoothing) == (1, 0.3)
    two_heads = {**scenic, "dataset_configs": {"class_splits": [1, 2], "split_names": ["verb", "noun"]}}
    assert load_avmae(tmp_path / "finetuned", two_heads).config.class_splits == {"verb": 1, "noun": 2}
    with pytest.raises(ConversionError, match=r"lacks \['spec_time'\]"):
        load_avmae(tmp_path / "finetuned", {name: value for name, value in scenic.items() if name != "spec_time"})
    scenic["model"]["classifier"] = "token"
    with pytest.raises(ConversionError, match="classifier 'token' has no counterpart"):
        load_avmae(tmp_path / "finetuned", scenic)


def test_command_line_writes_a_folder_that_loads(tmp_path, capsys):
    model = pretrained(encoder_strategy="mid_fusion", num_fusion_layers=1)
    write(tmp_path / "checkpoint", params_of(model))
    (tmp_path / "config.json").write_text(json.dumps({**KNOWN, "audio_mask_ratio": 0.7}))
    paths = {"checkpoint": tmp_path / "checkpoint", "config": tmp_path / "config.json", "output": tmp_path / "out"}
    main([part for name, path in paths.items() for part in (f"--{name}", str(path))])
    assert "AVMAEForPreTraining" in capsys.readouterr().out
    loaded = AVMAEForPreTraining.from_pretrained(tmp_path / "out")
    check_same(loaded, model)
    assert loaded.config.audio_mask_ratio == 0.7


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mask_ratio": 0.5}, r"fields that AVMAEConfig does not have: \['mask_ratio'\]"),
        ({"encoder_strategy": "late"}, "`encoder_strategy` must be one of"),
        ([1], "holds a JSON list"),
    ],
)
def test_command_line_reports_errors_in_the_config(tmp_path, capsys, config, message):
    write(tmp_path / "checkpoint", params_of(pretrained()))
    (tmp_path / "config.json").write_text(json.dumps({**KNOWN, **config} if isinstance(config, dict) else config))
    paths = {"checkpoint": tmp_path / "checkpoint", "config": tmp_path / "config.json", "output": tmp_path / "out"}
    with pytest.raises(SystemExit) as stopped:
        main([part for name, path in paths.items() for part in (f"--{name}", str(path))])
    assert stopped.value.code in (1, 2)
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
