"""A checkpoint and an exported folder that the package wrote before its rooms were moved: both load, with equal results.

`old_layout/` was written at commit d425a1c: the model and processor of `travellers.traveller("mbt")`, saved and exported,
and the model's logits for two random clips.
"""

import shutil
from pathlib import Path

import pytest
import torch
from equality import assert_outputs_of
from rendering import render_clip
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForVideoClassification, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from travellers import traveller

from hf_avfusion import MBTForAudioVisualClassification, MBTModel, MBTProcessor, hub

OLD = Path(__file__).parent / "old_layout"


@pytest.fixture
def expected() -> dict[str, torch.Tensor]:
    return load_file(OLD / "expected.safetensors")


@pytest.mark.parametrize("folder", ["checkpoint", "exported"])
def test_old_folders_load_as_classes_of_the_package(folder, expected):
    logits = expected.pop("logits")
    model = AutoModelForVideoClassification.from_pretrained(OLD / folder)
    assert type(model) is MBTForAudioVisualClassification
    assert type(AutoModel.from_pretrained(OLD / folder)) is MBTModel
    assert_outputs_of(model, logits, lambda: model(**expected).logits)
    processor = AutoProcessor.from_pretrained(OLD / folder)
    assert type(processor) is MBTProcessor
    assert processor.to_dict() == traveller("mbt")[1].to_dict()


def test_the_code_of_an_old_export_still_runs(expected, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    logits = expected.pop("logits")
    code = get_class_from_dynamic_module("modeling_mbt.MBTForAudioVisualClassification", str(OLD / "exported"))
    assert code.__module__.startswith("transformers_modules")
    model = code.from_pretrained(OLD / "exported")
    assert_outputs_of(model, logits, lambda: model(**expected).logits)


def test_an_old_export_is_replaced_by_a_new_one(tmp_path):
    folder = shutil.copytree(OLD / "exported", tmp_path / "exported")
    model, processor = traveller("mbt")
    hub.export(model, processor, folder, overwrite=True)
    assert not (folder / "media_avfusion.py").exists()
    assert (folder / "reader.py").exists()
    (answer,) = pipeline("audio-visual-classification", model=str(folder), device="cpu")(
        [render_clip(seconds=0.8)], top_k=1
    )
    assert answer[0]["label"] in model.config.id2label.values()
