"""Exported and pushed checkpoints of every architecture load without hf_avfusion and give the same outputs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from equality import assert_outputs_of, assert_rounding
from local_hub import LocalHub
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

import json, os, torch, traceback, transformers, transformers.modeling_utils, transformers.pipelines
from safetensors.torch import save_file
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))  # as in the tests
trusted = {"trust_remote_code": True}


def load(job):
    for where, source in job["sources"].items():
        processor = transformers.AutoProcessor.from_pretrained(source, **trusted)
        whole = where == "folder"  # a load from the Hub asks it for each file of code; there, what a user calls
        if whole:
            transformers.AutoVideoProcessor.from_pretrained(source, **trusted)
            transformers.AutoFeatureExtractor.from_pretrained(source, **trusted)
        inputs = processor(videos="clip.mp4", **job["text"], return_tensors="pt")
        save_file({name: value.contiguous() for name, value in inputs.items()}, f"{where}-inputs.safetensors")
        for auto_class in job["auto_classes"] if whole else job["own_auto_classes"]:
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
            unnamed = transformers.pipeline(**options) if whole else by_task
            (again,) = unnamed(["clip.mp4"], **job["options"])
            as_lists = {"default": lambda value: value.tolist()}  # masks
            json.dump([answers, again], open(f"{where}-answers.json", "w"), **as_lists)
    assert not any(name.partition(".")[0] == "hf_avfusion" for name in sys.modules)


# Every checkpoint is loaded in a copy of this process as it is after its imports, so none finds code that another brought.
for name, job in json.load(open("jobs.json")).items():
    copy = os.fork()
    if not copy:
        try:
            os.chdir(name)
            load(job)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(copy, 0)[1]:
        sys.exit(name)
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


def job_of(name, model, exported):
    """What the other process loads of a traveller, and how."""
    auto_map = json.loads((exported / "config.json").read_text())["auto_map"]
    task, own = task_of(model), f".{type(model).__name__}"
    text = QUESTION if task.takes_text else {}
    return {
        "sources": {"folder": str(exported), "hub": f"org/{name}"},
        "auto_classes": [auto_class for auto_class in auto_map if auto_class != "AutoConfig"],
        "own_auto_classes": [auto_class for auto_class, code in auto_map.items() if code.endswith(own)][:1],
        "class": type(model).__name__,
        "text": text,
        "pipeline": task.pipeline and task.pipeline.name,
        "options": OPTIONS[task.pipeline and task.pipeline.name],
    }


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    """Exports and pushes all travellers and loads them elsewhere, in one process, since its imports take 10 s.

    Gives the folder with a folder of results per traveller. A process that starts there does not have this repository in its
    path.
    """
    away, exported, homes = (tmp_path_factory.mktemp(name) for name in ("away", "exported", "homes"))
    jobs = {}
    with LocalHub() as local_hub, local_hub.connected(homes / "here"):
        for name in TRAVELLERS:
            model, processor = traveller(name)
            jobs[name] = job_of(name, model, hub.export(model, processor, exported / name))
            hub.push(model, processor, f"org/{name}")
            (away / name).mkdir()
            (away / name / "clip.mp4").write_bytes(render_clip(seconds=1.0))  # VGGish needs 0.975
        (away / "jobs.json").write_text(json.dumps(jobs))
        not_there = ("PYTHONPATH", "HF_MODULES_CACHE", "HF_HUB_CACHE")
        environment = {key: value for key, value in os.environ.items() if key not in not_there}
        environment |= local_hub.environment(homes / "fresh")
        command = [sys.executable, "-I", "-c", ELSEWHERE]
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return away


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAVELLERS)
def test_loads_without_the_package_from_folder_and_hub(name, away):
    model, processor = traveller(name)
    away, job = away / name, json.loads((away / "jobs.json").read_text())[name]
    inputs = processor(videos=str(away / "clip.mp4"), **job["text"], return_tensors="pt")

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
