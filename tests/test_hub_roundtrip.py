"""Exported and pushed checkpoints of every architecture load without hf_avfusion and give the same outputs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from equality import assert_outputs_of, assert_rounding
from rendering import render_clip
from safetensors.torch import load_file
from transformers import pipeline
from travellers import TRAVELLERS, traveller

from hf_avfusion import hub
from hf_avfusion.auto import ARCHITECTURES
from hf_avfusion.tasks import task_of

ELSEWHERE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_avfusion":
            raise ModuleNotFoundError("No module named 'hf_avfusion'", name=name)
sys.meta_path.insert(0, Refuse())

import json, os, torch, transformers
from safetensors.torch import save_file
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))  # as in the tests
job = json.load(open("job.json"))
trusted = {"trust_remote_code": True}
for where, source in job["sources"].items():
    processor = transformers.AutoProcessor.from_pretrained(source, **trusted)
    transformers.AutoVideoProcessor.from_pretrained(source, **trusted)
    transformers.AutoFeatureExtractor.from_pretrained(source, **trusted)
    inputs = processor(videos="clip.mp4", **job["text"], return_tensors="pt")
    save_file({name: value.contiguous() for name, value in inputs.items()}, f"{where}-inputs.safetensors")
    for auto_class in job["auto_classes"]:
        model, info = getattr(transformers, auto_class).from_pretrained(source, output_loading_info=True, **trusted)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        if type(model).__name__ == job["class"]:
            assert not any(info.values()), info
            torch.manual_seed(1)
            with torch.no_grad():
                outputs = {n: v.clone().contiguous() for n, v in model.eval()(**inputs).items() if torch.is_tensor(v)}
            save_file(outputs, f"{where}-outputs.safetensors")
    if job["pipeline"]:
        options = {"model": source, "device": "cpu", **trusted}
        by_task = transformers.pipeline(job["pipeline"], **options)
        assert type(by_task).__module__.startswith("transformers_modules"), type(by_task)
        answers = by_task("clip.mp4", **job["options"])
        (again,) = transformers.pipeline(**options)(["clip.mp4"], **job["options"])
        as_lists = {"default": lambda value: value.tolist()}  # masks
        json.dump([answers, again], open(f"{where}-answers.json", "w"), **as_lists)
assert not any(name.partition(".")[0] == "hf_avfusion" for name in sys.modules)
"""

QUESTION = {"text": "What can be heard?"}
# Pipeline -> the arguments of its call; None for a model without one.
OPTIONS = {
    None: {},
    "audio-visual-classification": {"top_k": None, "return_modalities": True},
    "audio-visual-event-localization": {"return_modalities": True},
    "audio-visual-question-answering": {"top_k": None, **QUESTION},
    "audio-visual-segmentation": {},
}


def test_every_architecture_has_a_checkpoint_in_travellers():
    """A new architecture needs one line in travellers.py."""
    travelling = {type(traveller(name)[0].config) for name in TRAVELLERS}
    assert {config for config, *_ in ARCHITECTURES} <= travelling


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAVELLERS)
def test_loads_without_the_package_from_folder_and_hub(name, local_hub, tmp_path):
    model, processor = traveller(name)
    folder = hub.export(model, processor, tmp_path / "exported")
    hub.push(model, processor, f"org/{name}")
    away = tmp_path / "away"  # a process that starts here does not have this repository in its path
    away.mkdir()
    (away / "clip.mp4").write_bytes(render_clip(seconds=0.8))
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    task = task_of(model)
    text = QUESTION if task.takes_text else {}
    job = {
        "sources": {"folder": str(folder), "hub": f"org/{name}"},
        "auto_classes": [auto_class for auto_class in auto_map if auto_class != "AutoConfig"],
        "class": type(model).__name__,
        "text": text,
        "pipeline": task.pipeline and task.pipeline.name,
        "options": OPTIONS[task.pipeline and task.pipeline.name],
    }
    (away / "job.json").write_text(json.dumps(job))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_MODULES_CACHE", "HF_HUB_CACHE")}
    environment |= local_hub.environment(tmp_path / "fresh_home")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE], cwd=away, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]

    inputs = processor(videos=str(away / "clip.mp4"), **text, return_tensors="pt")

    def run():
        torch.manual_seed(1)
        return {key: value for key, value in model(**inputs).items() if torch.is_tensor(value)}

    with torch.no_grad():
        outputs = run()
    for where in job["sources"]:
        for kind, expected in (("inputs", dict(inputs)), ("outputs", outputs)):
            assert_rounding(load_file(away / f"{where}-{kind}.safetensors"), expected)
        assert_outputs_of(model, load_file(away / f"{where}-outputs.safetensors"), run)
        if job["pipeline"]:
            here = pipeline(job["pipeline"], model=model, processor=processor, device="cpu")
            expected = scored_answers(here(str(away / "clip.mp4"), **job["options"]))
            for answers in json.loads((away / f"{where}-answers.json").read_text()):
                found = scored_answers(answers)
                assert [name for name, _ in found] == [name for name, _ in expected]
                assert_rounding(*(torch.tensor([score for _, score in each]) for each in (found, expected)))


def scored_answers(answer: dict | list) -> list[tuple[str, float]]:
    """The names and scores of an answer in order, of all modalities and segments if it has these."""
    if isinstance(answer, dict) and "score" in answer:
        return [(answer.get("label", answer.get("answer")), answer["score"])]
    parts = answer.values() if isinstance(answer, dict) else answer
    return [entry for part in parts if isinstance(part, (dict, list)) for entry in scored_answers(part)]


def test_outputs_differ_between_clips():
    """Otherwise the equality above would prove little."""
    model, processor = traveller("mbt")
    clips = [
        processor(videos=render_clip(seconds=0.8, audio=audio), return_tensors="pt") for audio in ("chirp", "clicks")
    ]
    first, second = (model(**clip).logits for clip in clips)
    assert (first - second).abs().max() > 1e-3
