"""The original's AVSBench checkpoints: to a folder with a processor that loads, to base and adapter, and strictly."""

import json
import re

import numpy as np
import pytest
import torch
from equality import assert_rounding
from peft import PeftModel
from safetensors.torch import load_file
from tiny_lavish import perturb, tiny_inputs, tiny_segmentation
from transformers import AutoModelForSemanticSegmentation, AutoProcessor

from hf_avfusion.conversion import lavish
from hf_avfusion.conversion.flax import ConversionError
from hf_avfusion.conversion.lavish_segmentation import decoder_rules, dropped_decoder_names
from hf_avfusion.models.lavish.modeling_lavish_heads import LavishForSegmentation

AVS = {"gate_before_post_norm": True, "ln_before_with_fusion": False, "token_init": "zeros", "gate_audio": False}
OWN = {
    "backbone_config": {"image_size": 64, "window_size": 4}, "num_segments": 2, "spectrogram_length": 64, "num_mel_bins": 64,
    "mask_size": 32, "drop_remainder": True,
}  # fmt: skip


def original_state(model: LavishForSegmentation) -> dict[str, torch.Tensor]:
    """The model's weights under the original's names, with tensors that it builds and never uses."""
    config, parts, streams = model.config, {"attn": "p1", "mlp": "p2"}, {"audio": "audio", "video": "vis"}
    adapters = {target: source for source, target in lavish._ADAPTER_NAMES.items()}
    rules = decoder_rules(config.tpavi_stages, config.tpavi_video_audio, prefix="decoder.")
    names = {target: source for source, (target, _) in rules.items()}
    names |= {f"lavish.{target}": source for source, (target, _) in lavish.backbone_rules(config).items()}
    state = {}
    for name, value in model.state_dict().items():
        adapter = re.fullmatch(r"lavish\.blocks\.(\d+)\.fusion_(\w+)\.(audio|video)\.(.+)", name)
        if adapter:
            source = adapters[adapter[4]]
            value = value[:, :, None, None] if source.endswith("_sampler.weight") else value
            names[name] = f"{streams[adapter[3]]}_adapter_blocks_{parts[adapter[2]]}.{adapter[1]}.{source}"
        elif re.fullmatch(r"tpavi_b\d\.(theta|phi|g|W_z\.0)\.weight", names[name]):
            value = value[:, :, None]
        state[names[name]] = value.clone()
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        rows = [state.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        state[name.replace(".q.", ".qkv.")] = torch.cat(rows)
    unused = {name: torch.zeros(3) for name in dropped_decoder_names(config.tpavi_stages, config.tpavi_video_audio)}
    if "audio_linear.weight" in unused:
        unused["audio_linear.weight"] = torch.zeros(16, 64)
    return {**state, **unused, "encoder_backbone.patch_embed1.proj.weight": torch.zeros(2)}


@pytest.fixture(params=[[], [0, 3]], ids=["published", "tpavi"])
def model(request) -> LavishForSegmentation:
    torch.manual_seed(0)
    adapter = {"num_tokens": 2, "reduction": 4, "use_bn": False, **AVS}
    model = LavishForSegmentation(tiny_segmentation(adapter=adapter, tpavi_stages=request.param)).eval()
    perturb(model)
    return model


def convert(folder, model, *arguments) -> None:
    torch.save(original_state(model), folder / "AVS.pt")
    (folder / "fields.json").write_text(json.dumps(OWN))
    own = ["--checkpoint", folder / "AVS.pt", "--config", folder / "fields.json", "--output", folder / "converted"]
    lavish.main([*map(str, [*own, *arguments])])


def test_the_command_writes_a_model_and_its_processor(model, tmp_path, capsys):
    convert(tmp_path, model)
    assert "masks of 32 x 32 pixels" in capsys.readouterr().out
    found = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").eval()
    assert {name: found.config.adapter[name] for name in AVS} == AVS
    assert all(torch.equal(found.state_dict()[name], value) for name, value in model.state_dict().items())
    inputs = tiny_inputs(model)
    with torch.no_grad():
        assert_rounding(found(**inputs).logits, model(**inputs).logits)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted")
    assert (processor.window["num_segments"], processor.window["segment_frame"]) == (2, 15 / 16)
    frames, sound = np.zeros((2, 20, 20, 3), np.uint8), np.zeros(32_000, np.float32)
    made = processor(videos=[frames], audio=[sound], sampling_rate=16_000, return_tensors="pt")
    assert made["pixel_values"].shape == (1, 2, 3, 32, 32)  # the size of the masks; the model resizes them
    with torch.no_grad():
        assert found(**made).logits.shape == (1, 2, 32, 32)


def test_the_command_writes_base_and_adapter(model, tmp_path):
    convert(tmp_path, model, "--adapter_output", tmp_path / "adapter")
    base = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").eval()
    assert base.config.adapter is None
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        assert not torch.allclose(base(**inputs).logits, expected)
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert_rounding(adapted(**inputs).logits, expected)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
        assert_rounding(loaded(**inputs).logits, expected)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert not [name for name in names if ".backbone." in name]
    assert [name for name in names if "decoder" in name]
    for folder in ("converted", "adapter"):
        AutoProcessor.from_pretrained(tmp_path / folder)


def test_wrong_outputs_are_refused(model, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert(tmp_path, model, "--adapter_output", tmp_path / "converted")
    assert "is the folder of --output" in capsys.readouterr().err
    plain = LavishForSegmentation(tiny_segmentation(adapter=None))
    with pytest.raises(SystemExit):
        convert(tmp_path, plain, "--adapter_output", tmp_path / "adapter")
    assert "the checkpoint has no adapters" in capsys.readouterr().err
    assert not (tmp_path / "converted").exists()


def test_conversion_is_strict(model, tmp_path):
    state = original_state(model)
    for change, message in (
        ({"conv2.conv2d_list.1.bias": None}, "source tensors missing: .*conv2.conv2d_list.1.bias"),
        ({"extra": torch.zeros(2)}, "source tensors without a target: .*extra"),
        (
            {"output_conv.4.bias": torch.zeros(7)},
            r"output_conv.4.bias has shape \(7,\), but decoder.mask_head.conv3.bias",
        ),
        ({"x1_linear.weight": None}, "x1_linear.weight"),
    ):
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        torch.save(changed, tmp_path / "odd.pt")
        with pytest.raises(ConversionError, match=rf"(?s)odd\.pt: .*{message}"):
            lavish.load_lavish(tmp_path / "odd.pt", OWN)


def test_a_recorded_model_gives_its_recorded_masks(shared, tmp_path):
    """The whole original model, from its own state dict, with the frames at 224 pixels."""
    golden = shared / "goldens" / "lavish" / "avs"
    record = json.loads(golden.with_suffix(".json").read_text())
    tensors = load_file(golden.with_suffix(".safetensors"))
    torch.save(
        {name.removeprefix("param/"): value for name, value in tensors.items() if name.startswith("param/")},
        tmp_path / "AVS.pt",
    )
    backbone = {name: record["backbone"][name] for name in ("image_size", "window_size", "layer_norm_eps")}
    audio = tensors["input/audio"].float()
    model = lavish.load_lavish(tmp_path / "AVS.pt", {"backbone_config": backbone, "num_segments": audio.shape[1]})
    frames = tensors["input/video_small"].float()
    resized = torch.nn.functional.interpolate(
        frames.flatten(0, 1), size=(224, 224), mode="bilinear", align_corners=False
    )
    with torch.no_grad():
        logits = model(resized.unflatten(0, frames.shape[:2]), audio).logits
    recorded = tensors["output/pred"]
    assert (logits.flatten(0, 1).unsqueeze(1) - recorded).abs().max() < 1e-4 * recorded.abs().max()
