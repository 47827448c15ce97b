"""A task that the package does not know fits by one `Task`: trainer, evaluation, checkpoints and card take it as it is.

One outlines objects: logits are masks, too large to be kept until the end of an evaluation. Another stands for question
answering: its transform and its collator add a text to the inputs.
"""

import ast
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rendering import render_clip
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from travellers import processor as make_processor

from hf_avfusion import AVTrainer, AVTrainingArguments
from hf_avfusion.data import collating, transforms
from hf_avfusion.data.benchmarks.splits import SplitRows
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.clips import EvaluationSet, label_rows
from hf_avfusion.evaluation.costs import PeakMemory
from hf_avfusion.evaluation.reports import make_results, read_results, write_report
from hf_avfusion.evaluation.runs import Condition, evaluate_checkpoint, load_checkpoint, protocol_for
from hf_avfusion.evaluation.views import ViewProtocol
from hf_avfusion.model_card import CardDetails, build_card
from hf_avfusion.tasks import TASKS, task_of, task_of_config
from hf_avfusion.tasks.task import RowLabels, ShownMetric, Task
from hf_avfusion.training.recipes.building_runs import RunData, build_run
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.training.recipes.options import DataOptions

SIDE = 16


class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    modalities = ("video",)


class ToyForOutlines(PreTrainedModel):
    """Bright pixels are the object; the threshold is learnt."""

    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.threshold = torch.nn.Parameter(torch.zeros(()))
        self.post_init()

    def forward(self, pixel_values, labels=None, modality_mask=None):
        logits = pixel_values.mean(dim=2) - self.threshold
        loss = None if labels is None else masks_loss(logits, labels, self.config).mean()
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class Masks(RowLabels):
    def __call__(self, row):
        return torch.from_numpy(np.asarray(row[self.columns[0]], dtype=np.float32))


def masks_loss(logits, labels, config):
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses.flatten(1).mean(dim=1)


def intersection_and_union(logits, labels, config):
    found, real = logits.flatten(1) > 0, labels.flatten(1) > 0
    return (found & real).sum(dim=1), (found | real).sum(dim=1)


def mean_iou(intersection, union, config):
    assert intersection.shape == union.shape == (len(union),)  # one number a clip is all that was kept
    return {"miou": (intersection / union.clamp(min=1)).mean().item()}


def share_of_object(config, logits, *, top_k=5):
    return {"object": [{"label": "area", "score": (logits > 0).float().mean().item()}]}


OUTLINING = Task(
    name="outlining",
    heads=("ForOutlines",),
    auto_class=AutoModelForSemanticSegmentation,
    title="outlining",
    needs="a mask for every frame",
    benchmark_tasks=("outlining",),
    choose_columns=lambda config, kinds, features: ("masks",),
    read_labels=lambda columns, fields: Masks(columns),
    join_views=lambda logits, labels, aggregation, config: logits[:, 0],
    loss=masks_loss,
    reduce=intersection_and_union,
    metrics=mean_iou,
    headline=("miou",),
    show_metric=lambda name: ShownMetric("mIoU", axis="mean intersection over union", percent=True),
    answer=share_of_object,
    hub_task="mask-generation",
)


@pytest.fixture(autouse=True)
def outlining(monkeypatch):
    monkeypatch.setitem(TASKS, "outlining", OUTLINING)
    AutoConfig.register("toy", ToyConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(ToyConfig, ToyForOutlines, exist_ok=True)


def rows(number: int, side: int = SIDE) -> list[dict]:
    frames = torch.randint(
        0, 255, (number, 4, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return [
        {"clip_id": f"clip-{n}", "video": clip.numpy(), "masks": (clip.float().mean(-1) > 128).numpy()}
        for n, clip in enumerate(frames)
    ]


def transform(row, generator=None):
    """Stands for decoding: the frames are there already."""
    pixels = torch.from_numpy(row["video"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = OUTLINING.read_labels(("masks",), {})(row)
    return {"pixel_values": pixels, "has_video": True, "has_audio": False, "labels": labels, "clip_id": row["clip_id"]}


def make_trainer(folder, made, **options):
    args = AVTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, per_device_eval_batch_size=2, max_steps=2, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", **options,
    )  # fmt: skip
    stream = ClipStream(made, transform)
    return AVTrainer(ToyForOutlines(ToyConfig()), args, train_dataset=stream, eval_dataset=stream)


def test_it_trains_and_is_scored_clip_by_clip(tmp_path):
    trainer = make_trainer(tmp_path, rows(8))
    assert trainer.task is OUTLINING
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_miou"] > 0.95
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape == (8, 4, SIDE, SIDE)  # whole answers, and the same metrics
    assert predicted.metrics["test_miou"] == pytest.approx(metrics["eval_miou"])


def test_large_answers_do_not_pile_up(tmp_path):
    """Masks of 4 MiB a clip: forty more of them need no more memory."""
    (row,) = rows(1, 512)
    trainer = make_trainer(tmp_path, [row])
    peaks = []
    for number in (10, 10, 50):  # the first evaluation grows the allocator's heap
        clips = ClipStream([{**row, "clip_id": f"clip-{n}"} for n in range(number)], transform)
        with PeakMemory("cpu", 0.0) as peak:  # of the process: the heap may shrink in between
            trainer.evaluate(clips)
        peaks.append(peak.mib)
    if None in peaks:
        pytest.skip("this system does not report peak memory")
    assert peaks[2] - peaks[1] < 100  # kept to the end, logits and labels would need 320 MiB more


def test_it_is_evaluated_by_its_checkpoint(tmp_path, monkeypatch):
    ToyForOutlines(ToyConfig()).save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    model, processor = load_checkpoint(str(tmp_path))
    assert task_of(model) is task_of_config(model.config) is OUTLINING
    made = Rows()
    for number in range(3):
        video = {"bytes": render_clip(seconds=0.8, num_frames=20 + number), "path": None}
        frames = processor(videos=video, return_tensors="pt")["pixel_values"][0]
        made.append({"clip_id": number, "video": video, "masks": (frames.mean(dim=1) > 0).numpy()})
    split = SplitRows(name="mine", title="mine", split="test", rows=made, num_rows=3)
    clips = label_rows(split, model.config)
    assert clips.columns == ("masks",)
    protocol = protocol_for(model.config, "mine")
    found = evaluate_checkpoint(
        "toy", model, processor, clips, given=("v",), protocol=protocol, conditions=(Condition(), Condition(span=0.2))
    )
    assert found[0]["metrics"] == {"miou": 1.0}
    assert found[0]["per_class"] == {}
    table, figures = report(clips, found, tmp_path / "report", monkeypatch)
    assert "| mIoU (%)" in table
    assert "| 100.00 " in table
    assert figures == {"span_sweep.png": "mean intersection over union (%)"}
    results = read_results(tmp_path / "report")
    assert results["benchmark"]["task"] == "outlining"
    monkeypatch.delitem(TASKS, "outlining")
    with pytest.raises(ValueError, match="the results are of the task 'outlining', which is not known"):
        read_results(tmp_path / "report")


def test_metrics_without_a_headline_are_reported(tmp_path, monkeypatch):
    """The first metric is drawn, and a metric is called by its name."""
    task = replace(OUTLINING, headline=(), show_metric=Task.show_metric)
    monkeypatch.setitem(TASKS, "outlining", task)
    about = {"name": "mine", "title": "mine", "split": "test", "rows": None, "num_rows": 3}
    clips = EvaluationSet(**about, task=task, columns=("masks",), names={}, fields={})
    settings = {"model_type": "toy", "trained_span": 1.0, "trained_synchronous": True}
    each = {
        "checkpoint": "toy", "settings": settings, "given": "v", "sampling": "spread", "views": 1, "crops": 1,
        "aggregation": "mean_logits", "seed": 0, "clips": 3, "skipped": 0, "lacking": 0, "per_class": {},
    }  # fmt: skip
    evaluations = [{**each, "span": span, "metrics": {"f_score": 0.5, "miou": 0.25}} for span in (1.0, 2.0)]
    table, figures = report(clips, evaluations, tmp_path, monkeypatch)
    assert "| f score | miou  |" in table
    assert "| 0.500   | 0.250 |" in table
    assert figures == {"span_sweep.png": "f score"}
    assert report(clips, [{**each, "span": 1.0, "metrics": {}}], tmp_path / "none", monkeypatch)[1] == {}


def report(clips, evaluations, folder, monkeypatch):
    """The table, and the label of the metric in each figure."""
    labels = {}

    def draw(path, series, x, y, **options):
        labels[path.name.removesuffix(".partial")] = y
        path.write_bytes(b"")

    monkeypatch.setattr("hf_avfusion.evaluation.figures.draw_lines", draw)
    written = write_report(make_results(clips, {}, evaluations, 0), folder)
    return written[1].read_text(), labels


def test_it_is_trained_with_the_transform_and_collator_that_it_names(tmp_path, monkeypatch):
    """By the code of `training/` that knows nothing of it: `parse_with_recipe` and `build_run`."""

    class MaskTransform(ClipTransform):
        def __call__(self, row, generator=None):
            return {**super().__call__(row, generator), "from_mask_transform": True}

    class MaskCollator(AVCollator):
        def __call__(self, samples):
            assert all(sample["from_mask_transform"] for sample in samples)
            return super().__call__(samples)

    monkeypatch.setattr(transforms, "MaskTransform", MaskTransform, raising=False)
    monkeypatch.setattr(collating, "MaskCollator", MaskCollator, raising=False)
    own = {"transform": "transforms:MaskTransform", "collator": "collating:MaskCollator"}
    task = replace(OUTLINING, **own, plain_recipe={"spec_augment": None, "frame_augmentation": None})
    monkeypatch.setitem(TASKS, "outlining", task)
    ToyForOutlines(ToyConfig(class_splits=None)).save_pretrained(tmp_path / "toy")
    make_processor().save_pretrained(tmp_path / "toy")
    flags = [
        "--model", str(tmp_path / "toy"), "--data", str(tmp_path), "--output_dir", str(tmp_path / "run"), "--max_steps", "1",
        "--use_cpu", "True", "--report_to", "none", "--per_device_train_batch_size", "2", "--disable_tqdm", "True",
    ]  # fmt: skip
    run, options, args = parse_with_recipe(DataOptions, AVTrainingArguments, flags, task="outlining")
    assert (run.recipe.task, run.recipe.frame_augmentation) == ("outlining", None)
    video = {"bytes": render_clip(seconds=0.8), "path": None}
    clips = Rows({"clip_id": n, "video": video, "masks": np.ones((4, SIDE, SIDE), bool)} for n in range(4))
    split = SplitRows(name="mine", title="mine", split="train", rows=clips, num_rows=4)
    trainer = build_run(task, run, options, args, RunData(split, split), ("masks",))
    assert isinstance(trainer.data_collator, MaskCollator)
    assert isinstance(trainer.train_dataset.transform, MaskTransform)
    assert isinstance(trainer.eval_dataset.transform, MaskTransform)
    trainer.train()
    assert trainer.state.global_step == 1


class ToyForAnswers(ToyForOutlines):
    """The second word of the question is the answer."""

    def forward(self, pixel_values, question, labels=None, modality_mask=None):
        words = torch.nn.functional.one_hot(question[:, 1], 3) * (1 + self.threshold)
        logits = words + pixel_values.mean(dim=(1, 2, 3, 4))[:, None]
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class Answer(RowLabels):
    def __call__(self, row):
        return torch.tensor(row[self.columns[0]])


class QuestionTransform(ClipTransform):
    def __call__(self, row, generator=None):
        return {**super().__call__(row, generator), "question": torch.tensor(row["question"])}


class QuestionCollator(AVCollator):
    def __call__(self, samples):
        return {**super().__call__(samples), "question": torch.stack([sample["question"] for sample in samples])}


ANSWERS = Task(
    name="answers",
    heads=("ForAnswers",),
    auto_class=AutoModelForSemanticSegmentation,
    title="question answering",
    choose_columns=lambda config, kinds, features: ("answer",),
    read_labels=lambda columns, fields: Answer(columns),
    join_views=lambda logits, labels, aggregation, config: logits.mean(dim=1),
    loss=lambda logits, labels, config: torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
    metrics=lambda logits, labels, config: {"right": (logits.argmax(1) == labels).float().mean().item()},
    transform="transforms:QuestionTransform",
    collator="collating:QuestionCollator",
)


@pytest.mark.parametrize("views", [1, 2])
def test_inputs_of_its_collator_reach_the_model(tmp_path, monkeypatch, views):
    """In training, in evaluation with one view and with several, in prediction and in the score of a checkpoint."""
    monkeypatch.setitem(TASKS, "answers", ANSWERS)
    monkeypatch.setattr(transforms, "QuestionTransform", QuestionTransform, raising=False)
    monkeypatch.setattr(collating, "QuestionCollator", QuestionCollator, raising=False)
    made, model, processor = (
        Rows(),
        ToyForAnswers(ToyConfig(architectures=["ToyForAnswers"], num_labels=3)),
        make_processor(),
    )
    for number, answer in enumerate([2, 0, 1, 1]):
        video = {"bytes": render_clip(seconds=1.0), "path": None}
        made.append({"clip_id": number, "video": video, "question": [1, answer, 0], "answer": answer})
    protocol = ViewProtocol(views, 1, "mean_logits", "test")
    make = partial(ANSWERS.transform_class, processor, Answer("answer"), modalities=("video",))
    args = AVTrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, per_device_eval_batch_size=3, max_steps=1, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", eval_num_views=views,
    )  # fmt: skip
    evaluated = ClipStream(made, make(num_views=views))
    trainer = AVTrainer(model, args, train_dataset=ClipStream(made, make(mode="train")), eval_dataset=evaluated)
    trainer.train()
    assert trainer.evaluate()["eval_right"] == 1.0
    assert trainer.predict(evaluated).metrics["test_right"] == 1.0

    split = SplitRows(name="mine", title="mine", split="test", rows=made, num_rows=4)
    clips = label_rows(split, model.config)
    found = evaluate_checkpoint("toy", model, processor, clips, given=("v",), protocol=protocol, batch_size=3)
    assert [each["metrics"] for each in found] == [{"right": 1.0}]


class Rows(list):
    """Rows of a split, with the columns that `datasets` would state."""

    features = {"masks": None}


def test_its_card():
    card = build_card(ToyForOutlines(ToyConfig()), make_processor(), CardDetails(), "org/toy")
    assert card.data.pipeline_tag == "mask-generation"
    assert "This checkpoint has no labels." in card.content


ROOT = Path(__file__).resolve().parents[2]
ASKING = [
    *(ROOT / "hf_avfusion/evaluation").glob("*.py"), ROOT / "hf_avfusion/training/trainer.py",
    ROOT / "hf_avfusion/model_card.py", ROOT / "examples/evaluate.py", ROOT / "examples/predict.py",
]  # fmt: skip
OF_ONE_TASK = {
    "num_segments", "problem_type", "class_splits", "verb", "noun", "top1", "d_prime", "auc", "accuracy", "audio classification",
    *TASKS, *(task.name.upper() for task in TASKS.values()),
}  # fmt: skip


@pytest.mark.parametrize("file", ASKING, ids=lambda file: file.name)
def test_code_outside_of_tasks_names_no_single_task(file):
    """Names, attributes, keywords and strings, without docstrings."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        value = [getattr(node, field, None) for field in ("id", "attr", "arg", "value", "name")]
        names |= {each for each in value if isinstance(each, str)}
    assert not names & OF_ONE_TASK
