"""hub.export: the files of the folder, loading it, failed exports, and that classes and ordinary saves stay unchanged."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from equality import assert_outputs_of, assert_same_bits
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForVideoClassification, AutoProcessor, pipeline
from travellers import LABELS, mbt, traveller

import hf_avfusion
from hf_avfusion import MBTForAudioVisualClassification, MBTModel, hub
from hf_avfusion.tasks import task_of


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def code(folder: Path) -> set[str]:
    return {name for name in names(folder) if name.endswith(".py")}


@pytest.fixture
def exported(tmp_path) -> Path:
    return hub.export(*traveller("mbt"), tmp_path / "exported")


def test_export_holds_weights_code_maps_labels_and_card(exported):
    assert hf_avfusion.hub.export is hub.export  # `import hf_avfusion` is enough
    assert names(exported) - code(exported) == {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "README.md",
    }
    needed = {"configuration_mbt.py", "modeling_mbt.py", "layers_vit.py", "processing_mbt.py", "processing_avfusion.py"}
    needed |= {
        "video_processing_avfusion.py",
        "feature_extraction_avfusion.py",
        "reader.py",
        "pipelines.py",
    }
    assert needed <= code(exported)
    for name in code(exported):  # only relative imports differ from the package's files, and they resolve in the folder
        (original,) = (file for package in hub.EXPORTED_PACKAGES for file in (hub.PACKAGE / package).rglob(name))
        changed = set((exported / name).read_text().splitlines()) - set(original.read_text().splitlines())
        assert all(re.match(r"\s*from \.\w+ import", line) for line in changed)
        for module in re.findall(r"^\s*from (\.[\w.]*) import", (exported / name).read_text(), re.MULTILINE):
            assert f"{module[1:]}.py" in code(exported), (name, module)
    other_architecture = {"modeling_avmae.py", "layers_avmae.py", "processing_avmae.py"}
    assert not other_architecture & code(exported)
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_mbt.MBTConfig",
        "AutoModel": "modeling_mbt.MBTModel",
        "AutoModelForVideoClassification": "modeling_mbt.MBTForAudioVisualClassification",
    }
    assert config["custom_pipelines"]["audio-visual-classification"]["pt"] == ["AutoModelForVideoClassification"]
    assert list(config["id2label"].values()) == list(LABELS)
    saved = json.loads((exported / "processor_config.json").read_text())
    assert set(saved["auto_map"]) == {"AutoProcessor", "AutoVideoProcessor", "AutoFeatureExtractor"}
    assert set(saved["video_processor"]["auto_map"]) == {"AutoVideoProcessor"}
    assert set(saved["feature_extractor"]["auto_map"]) == {"AutoFeatureExtractor"}


def test_export_loads_as_classes_of_the_package_with_equal_weights(exported):
    model, processor = traveller("mbt")
    loaded, info = AutoModelForVideoClassification.from_pretrained(exported, output_loading_info=True)
    assert type(loaded) is MBTForAudioVisualClassification
    assert not any(info.values())
    assert_same_bits(loaded.state_dict(), model.state_dict())
    assert type(AutoModel.from_pretrained(exported)) is MBTModel
    assert AutoProcessor.from_pretrained(exported).to_dict() == processor.to_dict()
    for trusted in ({}, {"trust_remote_code": True}):
        classify = pipeline("audio-visual-classification", model=str(exported), device="cpu", **trusted)
        assert type(classify).__module__ == "hf_avfusion.processing.pipelines"


def test_export_does_not_change_ordinary_saves(tmp_path):
    """Later saves of the model, or of a checkpoint loaded from an export, hold no code and no maps to code."""
    model, processor = traveller("mbt")
    before, after, again = tmp_path / "before", tmp_path / "after", tmp_path / "again"
    for part in (model, processor):
        part.save_pretrained(before)
    hub.export(model, processor, tmp_path / "exported")
    for part in (model, processor):
        part.save_pretrained(after)
    for auto_class in (AutoModelForVideoClassification, AutoProcessor):
        auto_class.from_pretrained(tmp_path / "exported").save_pretrained(again)
    assert {file.name: file.read_bytes() for file in before.iterdir()} == {
        file.name: file.read_bytes() for file in after.iterdir()
    }
    assert names(again) == names(before) == {"config.json", "model.safetensors", "processor_config.json"}
    for file in ("config.json", "processor_config.json"):
        assert json.loads((again / file).read_text()) == json.loads((before / file).read_text())
    for part in (model, model.config, processor, processor.video_processor, processor.feature_extractor):
        assert type(part)._auto_class is None
    # Exporting the loaded checkpoint gives the same files.
    hub.export(
        AutoModelForVideoClassification.from_pretrained(again), AutoProcessor.from_pretrained(again), tmp_path / "b"
    )
    for name in names(tmp_path / "b") - {"README.md"}:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "exported" / name).read_bytes(), name


def test_large_weights_are_sharded(tmp_path):
    model, processor = traveller("mbt")
    folder = hub.export(model, processor, tmp_path / "exported", max_shard_size="10KB")
    shards = {name for name in names(folder) if name.endswith(".safetensors")}
    assert len(shards) > 2
    assert "model.safetensors" not in shards
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == shards
    loaded = AutoModelForVideoClassification.from_pretrained(folder)
    assert_same_bits(loaded.state_dict(), model.state_dict())


def test_a_base_model_has_no_pipeline(tmp_path):
    _, processor = traveller("mbt")
    base = mbt(MBTModel)
    assert task_of(base) is None
    folder = hub.export(base, processor, tmp_path / "exported")
    config = json.loads((folder / "config.json").read_text())
    assert "custom_pipelines" not in config
    assert "pipelines.py" not in code(folder)
    assert "AutoModelForVideoClassification" in config["auto_map"]  # to train a head on it


def test_adapter_is_exported_without_its_base_and_loads_on_it(tmp_path):
    model, processor = traveller("mbt")
    hub.export(model, processor, tmp_path / "base")
    base = AutoModelForVideoClassification.from_pretrained(tmp_path / "base").eval()
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    adapted = get_peft_model(base, lora).eval()
    folder = hub.export(adapted, processor, tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "README.md"} <= names(folder)
    assert "config.json" not in names(folder)
    fresh = AutoModelForVideoClassification.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(fresh, folder).eval()
    inputs = {"pixel_values": torch.rand(1, 4, 3, 16, 16), "input_features": torch.rand(1, 32, 16)}
    with torch.no_grad():
        found = loaded(**inputs).logits
        assert_outputs_of(adapted, found, lambda: adapted(**inputs).logits)
        assert not torch.allclose(found, model(**inputs).logits, atol=1e-3)
    unnamed = get_peft_model(mbt(), lora)
    with pytest.raises(ValueError, match="does not name its base checkpoint"):
        hub.export(unnamed, processor, tmp_path / "unnamed")
    assert not (tmp_path / "unnamed").exists()


def test_a_folder_with_other_files_is_refused(exported):
    model, processor = traveller("mbt")
    with pytest.raises(ValueError, match="overwrite=True"):
        hub.export(model, processor, exported)
    (exported / "checkpoint-5").mkdir()
    with pytest.raises(ValueError, match="checkpoint-5/"):
        hub.export(model, processor, exported, overwrite=True)
    (exported / "checkpoint-5").rmdir()
    for mine in ("notes.txt", "train.py", "recipe.json"):
        (exported / mine).write_text("mine")
        with pytest.raises(ValueError, match=mine):
            hub.export(model, processor, exported, overwrite=True)
        (exported / mine).unlink()
    hub.export(model, processor, exported, overwrite=True, max_shard_size="10KB")
    assert "model.safetensors" not in names(exported)
    with pytest.raises(ValueError, match="is a file"):
        hub.export(model, processor, exported / "config.json")


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_export_does_not_change_the_folder(existing, tmp_path):
    model, processor = traveller("mbt")
    folder = tmp_path / "exported"
    if existing:
        hub.export(model, processor, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if existing else None

    class Full(ModelCard):
        """Fails while the card is written, which is the last file."""

        def __str__(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        hub.export(model, processor, folder, card=Full("# Title"), overwrite=True)
    assert os.listdir(tmp_path) == (["exported"] if existing else [])
    if existing:
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_classes_of_other_packages_are_refused(tmp_path):
    model, processor = traveller("mbt")

    class Own(MBTForAudioVisualClassification):
        pass

    with pytest.raises(ValueError, match=r"Own is not a class of hf_avfusion.*register_for_auto_class"):
        hub.export(Own(model.config), processor, tmp_path / "a")
    with pytest.raises(ValueError, match="model must be a PreTrainedModel, got Linear"):
        hub.export(torch.nn.Linear(1, 1), processor, tmp_path / "a")
    with pytest.raises(ValueError, match="processor must be a ProcessorMixin, got AVFusionVideoProcessor"):
        hub.export(model, processor.video_processor, tmp_path / "a")
    assert not os.listdir(tmp_path)


def test_unnamed_labels_give_a_warning(tmp_path, caplog):
    _, processor = traveller("mbt")
    import logging

    logger = logging.getLogger("hf_avfusion.hub")
    logger.addHandler(caplog.handler)
    try:
        hub.export(mbt(id2label=None, label2id=None, num_labels=3), processor, tmp_path / "a")
    finally:
        logger.removeHandler(caplog.handler)
    assert "the labels have no names" in caplog.text
