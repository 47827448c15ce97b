"""The original's LAVISH checkpoints, from a file to a folder that loads; strictness; files that are no such checkpoints."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from tiny_lavish import tiny_config
from transformers import AutoProcessor

from hf_avfusion.conversion.flax import ConversionError
from hf_avfusion.conversion.lavish import convert_lavish, infer_config, load_lavish, main, normalize_names, read_state
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification

GOLDEN = Path(__file__).parents[1] / "goldens" / "lavish" / "ave_vit"
# What the tensors do not tell: the heads, and the sizes of the inputs.
FIELDS = {
    "backbone_config": {"num_attention_heads": 3},
    "num_segments": 2,
    "spectrogram_length": 26,
    "num_mel_bins": 40,
}


def tensors(prefix: str) -> dict[str, torch.Tensor]:
    recorded = load_file(GOLDEN.with_suffix(".safetensors"))
    return {name.removeprefix(prefix): value for name, value in recorded.items() if name.startswith(prefix)}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "AVE.pt"
    torch.save({f"module.{name}": value for name, value in tensors("param/").items()}, path)
    return path


def test_the_command_writes_a_folder_that_loads(checkpoint, tmp_path, capsys):
    (tmp_path / "fields.json").write_text(json.dumps(FIELDS), encoding="utf-8")
    output = tmp_path / "converted"
    main(["--checkpoint", str(checkpoint), "--config", str(tmp_path / "fields.json"), "--output", str(output)])
    assert "backbone vit" in capsys.readouterr().out
    model = LavishForAudioVisualClassification.from_pretrained(output).eval()
    recorded = tensors("")
    with torch.no_grad():
        logits = model(pixel_values=recorded["input/video"], input_features=recorded["input/audio"]).logits
    torch.testing.assert_close(logits.flatten(0, 1), recorded["output/logits"], atol=1e-5, rtol=0)
    assert model.config.adapter["num_tokens"] == 2
    assert model.config.adapter["unimodal_activation"] == "none"


def test_the_command_writes_base_and_adapter(checkpoint, tmp_path):
    (tmp_path / "fields.json").write_text(json.dumps(FIELDS), encoding="utf-8")
    folders = {"--output": tmp_path / "base", "--adapter_output": tmp_path / "adapter"}
    command = ["--checkpoint", checkpoint, "--config", tmp_path / "fields.json"]
    main([str(each) for each in [*command, *(part for pair in folders.items() for part in pair)]])
    model = LavishForAudioVisualClassification.from_pretrained(tmp_path / "adapter").eval()
    recorded = tensors("")
    with torch.no_grad():
        logits = model(pixel_values=recorded["input/video"], input_features=recorded["input/audio"]).logits
    torch.testing.assert_close(logits.flatten(0, 1), recorded["output/logits"], atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "base" / "config.json").read_text())["adapter"] is None
    for folder in folders.values():
        processor = AutoProcessor.from_pretrained(folder)
        assert (processor.window["num_segments"], processor.feature_extractor.mean) == (2, -4.1426)


def test_what_the_original_never_uses_is_dropped(checkpoint):
    used = normalize_names(read_state(checkpoint))
    assert not [name for name in used if ".head." in name or "attn_mask" in name or ".qkv." in name]
    assert "ViT.v.blocks.0.attn.q.weight" in used


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mlp_class.bias"), "source tensors missing: .*mlp_class.bias"),
        (lambda state: state.update(extra=torch.zeros(2)), "source tensors without a target: .*extra"),
        (
            lambda state: state.update({"mlp_class_2.bias": torch.zeros(7)}),
            r"mlp_class_2.bias has shape \(7,\), but classifier.bias has \(29,\)",
        ),
        (lambda state: state.pop("ViT.v.cls_token"), "neither `ViT.v` nor `swin`"),
        (lambda state: state.pop("mlp_class.weight"), "lacks tensors of a LAVISH model"),
        (
            lambda state: state.update({"ViT.v.blocks.0.attn.qkv.weight": torch.zeros(70, 24)}),
            "has 70 rows, expected queries, keys and values",
        ),
    ],
)
def test_conversion_is_strict(change, message, tmp_path):
    state = tensors("param/")
    change(state)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ConversionError, match=rf"(?s)odd\.pt: .*{message}"):
        load_lavish(tmp_path / "odd.pt", FIELDS)


def test_files_that_are_no_checkpoints(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "code.pt").write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "junk.pt").write_bytes(b"\x00junk" * 100)
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    for name in ("code.pt", "junk.pt", "list.pt", "absent.pt"):
        with pytest.raises(ConversionError, match=name.replace(".", r"\.")):
            read_state(tmp_path / name)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: torch.full_like(value, torch.nan), "holds values that are NaN or infinite"),
        (lambda value: value.to(torch.complex64), "no dense tensor of real numbers"),
        (lambda value: value.flatten(1).to_sparse(), "no dense tensor of real numbers"),
        (lambda value: value.to("meta"), "no dense tensor of real numbers"),
    ],
    ids=["NaN", "complex", "sparse", "meta"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_that_hold_no_weights_are_refused(change, message, tmp_path):
    state = tensors("param/")
    name = next(name for name in state if "up_sampler" in name)
    state[name] = change(state[name])
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ConversionError, match=rf"(?s)odd\.pt: .*{message}"):
        load_lavish(tmp_path / "odd.pt", FIELDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "fields.json: it is nested too deeply"),
        (json.dumps({**FIELDS, "mask_sise": 5}), "mask_sise; did you mean mask_size"),
        (json.dumps({**FIELDS, "nonsense": 5}), "has no field nonsense"),
        (json.dumps({**FIELDS, "backbone_config": 5}), "does not describe a model: TypeError"),
    ],
    ids=["deep", "misspelt", "unknown", "wrong type"],
)
def test_wrong_fields_end_in_one_line(checkpoint, tmp_path, capsys, fields, message):
    (tmp_path / "fields.json").write_text(fields, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(
            [
                "--checkpoint",
                str(checkpoint),
                "--config",
                str(tmp_path / "fields.json"),
                "--output",
                str(tmp_path / "out"),
            ]
        )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tensor_without_axes_ends_in_one_line(tmp_path, capsys):
    torch.save({**tensors("param/"), "ViT.v.blocks.0.attn.qkv.weight": torch.tensor(3.0)}, tmp_path / "odd.pt")
    with pytest.raises(SystemExit):
        main(["--checkpoint", str(tmp_path / "odd.pt"), "--output", str(tmp_path / "out")])
    assert "odd.pt does not describe a model" in capsys.readouterr().err


def test_other_backbones_are_refused():
    config = tiny_config("resnet")
    with pytest.raises(ConversionError, match="has the backbones vit and swinv2, not 'resnet'"):
        convert_lavish({}, config)


def test_fields_that_contradict_the_tensors():
    params = normalize_names({name: value.numpy() for name, value in tensors("param/").items()})
    assert infer_config(params, **FIELDS).num_labels == 29
    with pytest.raises(StrictDataclassError, match="`image_size`"):
        infer_config(params, **{**FIELDS, "image_size": 64})
    with pytest.raises(ConversionError, match="`vggish` is set, but the original's checkpoints hold no VGGish"):
        infer_config(params, **FIELDS, vggish=True)
