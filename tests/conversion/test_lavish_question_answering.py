"""The original's MUSIC-AVQA checkpoints: to a folder with a processor that loads, strictly, and back."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_lavish import perturb, tiny_inputs, tiny_questions
from transformers import AutoProcessor

from hf_avfusion.conversion import lavish
from hf_avfusion.conversion.flax import ConversionError
from hf_avfusion.conversion.lavish_question_answering import UNUSED, head_rules
from hf_avfusion.data.benchmarks.records import read_labels
from hf_avfusion.models.lavish.modeling_lavish_heads import LavishForQuestionAnswering

OWN = {
    "backbone_config": {"image_size": 32, "window_size": 4},
    "num_segments": 2,
    "spectrogram_length": 32,
    "num_mel_bins": 32,
}


def original_state(model: LavishForQuestionAnswering) -> dict[str, torch.Tensor]:
    """The model's weights under the original's names, with a few tensors that it never uses."""
    ours = model.state_dict()
    parts = {"attn": "p1", "mlp": "p2"}
    streams = {"audio": "audio", "video": "vis"}
    adapters = {target: source for source, target in lavish._ADAPTER_NAMES.items()}
    names = {target: source for source, (target, _) in head_rules("head.").items()}
    names |= {f"lavish.{target}": source for source, (target, _) in lavish.backbone_rules(model.config).items()}
    state = {}
    for name, value in ours.items():
        adapter = re.fullmatch(r"lavish\.blocks\.(\d+)\.fusion_(\w+)\.(audio|video)\.(.+)", name)
        if adapter:
            source = adapters[adapter[4]]
            value = value[:, :, None, None] if source.endswith("_sampler.weight") else value
            names[name] = f"{streams[adapter[3]]}_adapter_blocks_{parts[adapter[2]]}.{adapter[1]}.{source}"
        state[names[name]] = value.clone()
    for kind in ("weight", "bias"):
        for attention in ("attn_v", "attn_a"):
            rows = [state.pop(f"{attention}.in_proj_{kind}.{part}") for part in ("q_proj", "k_proj", "v_proj")]
            state[f"{attention}.in_proj_{kind}"] = torch.cat(rows)
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        rows = [state.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        state[name.replace(".q.", ".qkv.")] = torch.cat(rows)
    unused = {next(iter(sorted(UNUSED))): torch.zeros(3), "swin.layers.0.blocks.1.attn_mask": torch.zeros(1)}
    return {f"module.{name}": value for name, value in {**state, **unused}.items()}


@pytest.fixture
def model() -> LavishForQuestionAnswering:
    torch.manual_seed(0)
    model = LavishForQuestionAnswering(tiny_questions("swinv2", vocab_size=93, num_labels=42)).eval()
    perturb(model)
    return model


def test_the_command_writes_a_model_and_its_processor(model, tmp_path, capsys):
    torch.save(original_state(model), tmp_path / "AVQA.pt")
    (tmp_path / "fields.json").write_text(json.dumps(OWN))
    arguments = [
        "--checkpoint",
        tmp_path / "AVQA.pt",
        "--config",
        tmp_path / "fields.json",
        "--output",
        tmp_path / "converted",
    ]
    lavish.main([*map(str, arguments)])
    assert "LavishForQuestionAnswering" in capsys.readouterr().out
    found = LavishForQuestionAnswering.from_pretrained(tmp_path / "converted").eval()
    assert found.config.adapter["token_init"] == "zeros"
    assert all(torch.equal(found.state_dict()[name], value) for name, value in model.state_dict().items())
    inputs = {**tiny_inputs(model), "input_ids": torch.randint(93, (2, 14))}
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, model(**inputs).logits)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted")
    assert tuple(processor.vocab) == read_labels("music_avqa_words")
    assert (processor.window["num_segments"], processor.window["segment_seconds"]) == (2, 1.95)
    frames, sound = np.zeros((2, 20, 20, 3), np.uint8), np.zeros(32_000, np.float32)
    made = processor(
        videos=[frames], audio=[sound], sampling_rate=16_000, text="Where is the piano?", return_tensors="pt"
    )
    assert {name: tuple(value.shape[1:]) for name, value in made.items()} == {
        name: tuple(value.shape[1:]) for name, value in inputs.items()
    }


def test_words_must_be_those_of_the_checkpoint(tmp_path, capsys):
    model = LavishForQuestionAnswering(tiny_questions("swinv2"))  # 7 words
    torch.save(original_state(model), tmp_path / "AVQA.pt")
    (tmp_path / "fields.json").write_text(json.dumps(OWN))
    (tmp_path / "words.txt").write_text("\n".join(["<pad>", *"abcdef"]))
    arguments = [
        "--checkpoint",
        tmp_path / "AVQA.pt",
        "--config",
        tmp_path / "fields.json",
        "--output",
        tmp_path / "converted",
    ]
    with pytest.raises(SystemExit):
        lavish.main([*map(str, arguments)])
    assert "knows 7 words, but the published list of MUSIC-AVQA has 93" in capsys.readouterr().err
    assert not (tmp_path / "converted").exists()
    lavish.main([*map(str, [*arguments, "--words", tmp_path / "words.txt"])])
    assert AutoProcessor.from_pretrained(tmp_path / "converted").vocab == ["<pad>", *"abcdef"]


def test_conversion_is_strict(model, tmp_path):
    state = original_state(model)
    for change, message in (
        ({"module.fc_gl.bias": None}, "source tensors missing: .*fc_gl.bias"),
        ({"module.extra": torch.zeros(2)}, "source tensors without a target: .*extra"),
        ({"module.fc_ans.bias": torch.zeros(7)}, r"fc_ans.bias has shape \(7,\), but head.classifier.bias has \(42,\)"),
        ({"module.linear11.weight": None}, "lacks tensors of a LAVISH model for AVE, AVSBench-S4 or MUSIC-AVQA"),
    ):
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        torch.save(changed, tmp_path / "odd.pt")
        with pytest.raises(ConversionError, match=rf"(?s)odd\.pt: .*{message}"):
            lavish.load_lavish(tmp_path / "odd.pt", OWN)


def test_the_recorded_model_is_converted_whole(shared, tmp_path):
    recorded = load_file(shared / "goldens" / "lavish" / "avqa.safetensors")
    params = {name.removeprefix("param/"): value for name, value in recorded.items() if name.startswith("param/")}
    torch.save(params, tmp_path / "AVQA.pt")
    sizes = {"num_segments": 3, "spectrogram_length": 48, "num_mel_bins": 48}
    model = lavish.load_lavish(tmp_path / "AVQA.pt", {"backbone_config": {"image_size": 48, "window_size": 6}, **sizes})
    with torch.no_grad():
        found = model(
            recorded["input/video_positive"],
            recorded["input/audio"],
            input_ids=recorded["input/question"].long(),
            negative_pixel_values=recorded["input/video_negative"],
            labels=recorded["input/answer"].long(),
        )
    for value, name in ((found.logits, "answer_logits"), (found.loss, "loss")):
        expected = recorded[f"output/{name}"]
        assert (value - expected).abs().max() < 1e-4 * expected.abs().max(), name
