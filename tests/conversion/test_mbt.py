"""The MBT converter on generated files: both spellings, both nestings, strictness, the command line, malicious files."""

import json
import re

import flax_files
import msgpack
import numpy as np
import pytest
import torch
from equality import assert_outputs_of, assert_same_bits
from flax_files import encode, nest, write
from forked import run_forked

from hf_avfusion import MBTConfig, MBTForAudioVisualClassification
from hf_avfusion.conversion.flax import ConversionError, read_train_state
from hf_avfusion.conversion.mbt import convert_mbt, load_mbt, main, mbt_rules

CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "num_mel_bins": 16,
    "spectrogram_length": 24,
    "fusion_layer": 1,
    "num_labels": 3,
}


def flax_params(model: MBTForAudioVisualClassification) -> dict[str, np.ndarray]:
    config = model.config
    return flax_files.flax_params(model.state_dict(), mbt_rules(config), lambda path: config.num_attention_heads)


def random_model(**fields) -> MBTForAudioVisualClassification:
    torch.manual_seed(0)
    model = MBTForAudioVisualClassification(MBTConfig(**{**CONFIG, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("nesting", ["optimizer", "params", "params_params"])
@pytest.mark.parametrize("suffix", ["_spectrogram", "_spec"])
@pytest.mark.parametrize("fields", [{}, {"readout": "mean", "share_encoder": True}])
def test_files_of_every_layout_convert(tmp_path, nesting, suffix, fields):
    model = random_model(**fields)
    params = {name.replace("_spectrogram", suffix): value for name, value in flax_params(model).items()}
    write(tmp_path / "checkpoint_3", params, nesting)
    known = {"image_size": 16, "num_mel_bins": 16, "fusion_layer": 1, **fields}
    loaded = load_mbt(tmp_path / "checkpoint_3", known)
    assert_same_bits(loaded.state_dict(), model.state_dict())
    inputs = torch.rand(2, 4, 3, 16, 16), torch.rand(2, 24, 16)
    with torch.no_grad():
        assert_outputs_of(model, loaded(*inputs).logits, lambda: model(*inputs).logits)


def test_single_modality_files_are_recognised(tmp_path):
    for modality in ("audio", "video"):
        model = random_model(modalities=(modality,))
        write(tmp_path / modality, flax_params(model))
        loaded = load_mbt(tmp_path / modality, {"image_size": 16, "num_mel_bins": 16})
        assert loaded.config.modalities == (modality,)
        assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_bfloat16_and_chunked_arrays(tmp_path):
    model = random_model()
    params = flax_params(model)
    tree = {name: encode(value) for name, value in params.items()}
    halves = params["output_projection/bias"].astype(np.float32).view(np.uint32) >> 16
    tree["output_projection/bias"] = encode(halves, "bfloat16", halves.astype("<u2").tobytes())
    kernel = params["embedding/kernel"]
    flat = kernel.ravel()
    tree["embedding/kernel"] = {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(kernel.shape)},
        "chunks": {"0": encode(flat[:100]), "1": encode(flat[100:])},
    }
    path = tmp_path / "checkpoint"
    path.write_bytes(msgpack.packb({"params": nest(tree)}))
    loaded = load_mbt(path, {"image_size": 16, "num_mel_bins": 16, "fusion_layer": 1})
    expected = (halves << 16).view(np.float32)
    assert np.array_equal(loaded.classifier.bias.detach().numpy(), expected)
    assert not np.array_equal(expected, params["output_projection/bias"])  # the truncation changes values
    name = "mbt.video_embeddings.patch_embeddings.projection.weight"
    assert torch.equal(loaded.state_dict()[name], model.state_dict()[name])


def test_every_mismatch_is_reported():
    model = random_model()
    params = flax_params(model)
    extra = {**params, "Transformer/surprise/kernel": np.zeros(2)}
    with pytest.raises(ConversionError, match=r"without a target.*Transformer/surprise/kernel"):
        convert_mbt(extra, model.config)
    fewer = {name: value for name, value in params.items() if name != "clsspectrogram"}
    with pytest.raises(ConversionError, match=r"missing.*clsspectrogram"):
        convert_mbt(fewer, model.config)
    wrong = {**params, "bottleneck": np.zeros((1, 9, 16), np.float32)}
    with pytest.raises(ConversionError, match=r"bottleneck has shape \(1, 9, 16\)"):
        convert_mbt(wrong, model.config)
    both = {**params, "embedding_spec/bias": params["embedding_spectrogram/bias"]}
    with pytest.raises(ConversionError, match="both spellings"):
        convert_mbt(both, model.config)


def test_unused_bottleneck_of_the_original_is_dropped():
    model = random_model(fusion_layer=2)
    params = {**flax_params(model), "bottleneck": np.zeros((1, 5, 16), np.float32)}
    assert set(convert_mbt(params, model.config)) == set(model.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a Flax MessagePack"),
        (b"hello", "not a Flax MessagePack|holds a"),
        (msgpack.packb({"opt": 1}), "expected `optimizer/target`"),
        (msgpack.packb({"params": {}}), "empty"),
        (msgpack.packb([1, 2]), "holds a list"),
        (msgpack.packb({"params": {"a": msgpack.ExtType(9, b"x")}}), "unknown extension type 9"),
        (msgpack.packb({"params": {"a": encode(np.zeros(2), "object")}}), "object"),
        (msgpack.packb({"params": {"a": encode(np.zeros(2)[None].repeat(1, 0), None, b"12345678")}}), "cannot reshape"),
    ],
)
def test_malicious_files_raise_an_error_with_the_file_name(tmp_path, content, message):
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=message) as error:
        read_train_state(path)
    assert str(path) in str(error.value)


@pytest.mark.slow  # a process of its own
def test_command_line_writes_a_folder_that_loads(tmp_path, capsys):
    model = random_model()
    write(tmp_path / "checkpoint_100", flax_params(model))
    known = {"image_size": 16, "num_mel_bins": 16, "fusion_layer": 1, "id2label": {"0": "dog", "1": "cat", "2": "rain"}}
    (tmp_path / "config.json").write_text(json.dumps(known))
    arguments = ["--checkpoint", str(tmp_path / "checkpoint_100")]
    arguments += ["--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "out")]
    module = tmp_path / "module.py"
    module.write_text(
        "import runpy; runpy.run_module('hf_avfusion.conversion.mbt', run_name='__main__', alter_sys=True)"
    )
    done = run_forked(tmp_path / "printed", module, *arguments)
    assert done.returncode == 0, done.stderr
    assert "fusion bottleneck from layer 1 of 2" in done.stdout
    loaded = MBTForAudioVisualClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label == {0: "dog", 1: "cat", 2: "rain"}
    assert torch.equal(loaded.mbt.bottleneck, model.mbt.bottleneck)
    (tmp_path / "config.json").write_text(json.dumps({**known, "num_bottleneck_tokens": 7}))
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    assert "bottleneck has shape (1, 5, 16)" in capsys.readouterr().err


def test_command_line_does_not_write_into_a_file(tmp_path, capsys):
    write(tmp_path / "checkpoint", flax_params(random_model()))
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit):
        main(["--checkpoint", str(tmp_path / "checkpoint"), "--output", str(tmp_path / "out")])
    assert "is a file; give a folder to write" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fusion_layr": 1}, r"fields that MBTConfig does not have: \['fusion_layr'\]"),
        ({"fusion_layer": 7}, "`fusion_layer` must lie between 0"),
        ([1], "holds a JSON list"),
        ({"id2label": {"0": "dog"}}, "has 3 classes, so `id2label` must have the keys"),
        ({"id2label": ["dog", "cat", "rain"]}, "has 3 classes, so `id2label` must have the keys"),
        ({"image_size": None}, r"config.json does not describe a model: "),
        ({"classifier": "gap", "hidden_size": 16}, r"scenic config lacks \['mlp_dim', 'num_classes', .*'spec_time'\]"),
        ({"classifier": "0"}, "has no counterpart"),
        ({"classifier": "gap", "modality_fusion": ["flow"]}, "has no counterpart"),
    ],
)
def test_command_line_reports_errors_in_the_config(tmp_path, capsys, config, message):
    if isinstance(config, dict) and "classifier" in config and "hidden_size" not in config:
        scenic = {
            "hidden_size": 16,
            "num_heads": 2,
            "mlp_dim": 24,
            "num_layers": 2,
            "num_classes": 3,
            "patches": [8, 8, 2],
        }
        config = {**scenic, "spec_time": 24, "spec_freq": 16, **config}
    elif isinstance(config, dict) and "classifier" not in config:
        config = {"image_size": 16, "num_mel_bins": 16, **config}
    write(tmp_path / "checkpoint", flax_params(random_model()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    paths = {"checkpoint": tmp_path / "checkpoint", "config": tmp_path / "config.json", "output": tmp_path / "out"}
    with pytest.raises(SystemExit) as stopped:
        main([part for name, path in paths.items() for part in (f"--{name}", str(path))])
    assert stopped.value.code in (1, 2)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_scenic_fields_are_read_flat_and_nested(tmp_path):
    model = random_model()
    write(tmp_path / "checkpoint", flax_params(model))
    scenic = {
        "hidden_size": 16,
        "num_heads": 2,
        "mlp_dim": 24,
        "num_layers": 2,
        "num_classes": 3,
        "classifier": "token",
    }
    scenic |= {"patches": {"size": [8, 8, 2]}, "modality_fusion": ["spectrogram", "rgb"], "fusion_layer": 1}
    scenic |= {"use_bottleneck": True, "num_frames": 4, "height": 16, "width": 16, "spec_time": 24, "spec_freq": 16}
    for config in (scenic, {"case": "x", "config": scenic}):
        loaded = load_mbt(tmp_path / "checkpoint", config)
        assert torch.equal(loaded.mbt.bottleneck, model.mbt.bottleneck)
        assert loaded.config.fusion_layer == 1
