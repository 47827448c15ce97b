"""Model cards: their content, validation on the Hub, their code examples, and reading results and recipes from files."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from local_hub import card_errors
from rendering import render_clip
from travellers import LABELS, mbt, processor, traveller

from hf_avfusion import MBTModel, hub
from hf_avfusion.auto import ARCHITECTURES
from hf_avfusion.model_card import (
    CARDS,
    CardDetails,
    Evaluation,
    architecture_sections,
    build_card,
    read_recipe,
    read_results,
)

EVALUATION = Evaluation(
    "SoundingShapes", "test", {"top1": 0.9125, "map": 0.5}, "org/sounding-shapes", views=4, seeds=(0, 1), num_clips=480,
    skipped_clips=2,
)  # fmt: skip
DETAILS = CardDetails(
    title="MBT on SoundingShapes",
    license="cc-by-4.0",
    training_data="3,000 rendered clips.",
    datasets=["org/sounding-shapes"],
    recipe={"optimizer": "momentum_sgd", "epochs": 50},
    label_source="the dataset",
    evaluation=[EVALUATION],
    base_model="org/base",
    limits="Recognizes four shapes.",
)


def card_of(details: CardDetails = DETAILS, model=None) -> ModelCard:
    return build_card(model or traveller("mbt")[0], processor(), details, "org/mbt-shapes")


def test_a_full_card_holds_all_details_and_can_be_parsed():
    text = str(card_of())
    for heading in ("Use it", "Inputs", "Labels", "Training", "Evaluation", "Limits", "Licence and citation"):
        assert f"\n## {heading}\n" in text
    for part in (
        "arXiv 2107.00135",
        "@inproceedings{nagrani2021attention",
        "cc-by-4.0",
        "3,000 rendered clips.",
        "momentum_sgd",
    ):
        assert part in text
    for part in (
        "4 RGB frames, spread over 0.32 s",
        "16000 Hz mono",
        "16 mel bands",
        "Recognizes four shapes.",
        "`a dog`",
        "the dataset",
    ):
        assert part in text
    assert (
        "| SoundingShapes | test | both modalities | 4 | 0, 1 | 480 (and 2 that could not be decoded) | top1 | 0.9125 |"
        in text
    )
    data = ModelCard(text).data
    assert data.license == "cc-by-4.0"
    assert data.pipeline_tag == "audio-visual-classification"
    assert data.base_model == "org/base"
    assert {"hf_avfusion", "mbt"} <= set(data.tags)
    first, second = data.eval_results
    assert (first.dataset_name, first.dataset_type, first.dataset_split) == (
        "SoundingShapes",
        "org/sounding-shapes",
        "test",
    )
    assert (first.metric_type, first.metric_name, first.metric_value) == ("accuracy", "top1", 0.9125)
    assert first.metric_args == {"views": 4, "seeds": [0, 1], "clips": 480, "skipped_clips": 2}
    assert second.metric_value == 0.5


def test_an_empty_card_marks_unknown_facts():
    text = str(card_of(CardDetails(), mbt(id2label=None, label2id=None, num_labels=3)))
    for part in (
        "Nothing was measured",
        "Data: not stated.",
        "Recipe: not stated.",
        "licence of the weights is not stated",
    ):
        assert part in text
    assert "3 labels, whose names are not stated" in text
    assert "model-index" not in text
    assert ModelCard(text).data.eval_results is None


@pytest.mark.parametrize("details", [DETAILS, CardDetails()])
def test_cards_validate(local_hub, details):
    card = card_of(details)
    card.validate()  # sends a request to the local Hub server of the tests
    assert ("POST", "/api/validate-yaml", 200) in local_hub.requests
    assert card_errors(str(card)) == []


def test_card_errors_finds_faults():
    text = str(card_of())
    assert card_errors(text.replace("      type: org/sounding-shapes\n", "")) != []
    assert card_errors(text.replace("library_name: transformers", "library_name: [unclosed")) != []
    assert card_errors(re.sub(r"    - type: accuracy\n", "    - ", text)) != []


def test_labels_are_escaped():
    text = str(card_of())
    assert LABELS[2] == "{{ curly }}"
    assert "`{{ curly }}`" in text  # not evaluated as a template
    assert "`a \\| bar`" in text
    assert "`'tick'`" in text
    names = {0: "x\n---\nlicense: mit\n---", 1: "<script>"}
    text = str(
        card_of(CardDetails(license="cc-by-4.0"), mbt(id2label=names, label2id={n: i for i, n in names.items()}))
    )
    assert "x --- license: mit ---" in text
    assert ModelCard(text).data.license == "cc-by-4.0"


def test_labels_of_multi_head_and_multi_label_models():
    names = dict(enumerate("abcde"))
    heads = mbt(class_splits={"verb": 3, "noun": 2}, id2label=names, label2id={n: i for i, n in names.items()})
    assert "verb: 3 (one per clip): `a`, `b`, `c`." in str(card_of(CardDetails(), heads))
    many = mbt(id2label={i: f"class {i}" for i in range(50)}, label2id={f"class {i}": i for i in range(50)})
    assert "and 30 more (`id2label` in `config.json`)" in str(card_of(CardDetails(), many))
    several = mbt(problem_type="multi_label_classification")
    assert "several per clip" in str(card_of(CardDetails(), several))


@pytest.mark.parametrize("kind", ["classifier", "base"])
def test_the_code_example_of_the_card_runs(kind, tmp_path, monkeypatch):
    model, its_processor = traveller("mbt")
    model = model if kind == "classifier" else mbt(MBTModel)
    folder = hub.export(model, its_processor, tmp_path / "exported")
    (tmp_path / "clip.mp4").write_bytes(render_clip(seconds=0.8))
    monkeypatch.chdir(tmp_path)
    lines = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    assert len([line for line in lines.splitlines() if line]) <= 5
    names = {}
    exec(lines, names)
    if kind == "classifier":
        assert {entry["label"] for entry in names["answer"]} == set(LABELS)
    else:
        assert names["outputs"].last_hidden_state.shape[0] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.9", None, True])
def test_metrics_must_be_finite_numbers(value):
    with pytest.raises(ValueError, match="is not a finite number"):
        Evaluation("x", "test", {"top1": value})


def test_results_of_the_evaluation_example(tmp_path):
    def one(checkpoint, given, top1, **more):
        about = {"span": 2.0, "sampling": "spread", "views": 4, "crops": 1, "aggregation": "mean_logits", "seed": 3}
        counts = {"clips": 480, "skipped": 1, "lacking": 0}
        metrics = {"top1": top1, "d_prime": None}
        return {"checkpoint": checkpoint, "given": given, **about, **counts, "metrics": metrics, **more}

    results = {
        "benchmark": {"name": "sounding_shapes", "title": "SoundingShapes", "split": "test"},
        "evaluations": [one("runs/a", "av", 0.9), one("runs/a", "a", 0.5), one("runs/a", "av", 0.8, sampling="sync")],
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    found = read_results(path)
    assert [(e.condition, e.metrics) for e in found] == [
        (None, {"top1": 0.9}),
        ("audio only", {"top1": 0.5}),
        ("random windows (sync), span 2 s", {"top1": 0.8}),
    ]
    assert (found[0].dataset, found[0].split, found[0].views, found[0].seeds) == ("SoundingShapes", "test", 4, (3,))
    assert (found[0].num_clips, found[0].skipped_clips) == (480, 1)
    assert "top1 (audio only)" in str(card_of(CardDetails(evaluation=found)))
    results["evaluations"].append(one("runs/b", "av", 0.1))
    path.write_text(json.dumps(results))
    assert [e.metrics["top1"] for e in read_results(path, checkpoint="runs/b")] == [0.1]
    for checkpoint in (None, "runs/c"):  # the card must not show results of another model
        with pytest.raises(ValueError, match=r"runs/a, runs/b: pass one of these names"):
            read_results(path, checkpoint=checkpoint)


def test_results_of_a_trainer_and_of_a_user(tmp_path):
    path = tmp_path / "validation_results.json"
    metrics = {
        "eval_top1": 0.25,
        "eval_clips": 8,
        "eval_skipped_clips": 0,
        "eval_loss": 1.5,
        "eval_runtime": 2.0,
        "epoch": 1.0,
    }
    path.write_text(json.dumps({**metrics, "eval_samples_per_second": 3.0}))
    assert read_results(path, "Mine") == [
        Evaluation("Mine", "validation", {"top1": 0.25}, num_clips=8, skipped_clips=0)
    ]
    with pytest.raises(ValueError, match=r"validation_results\.json: it does not name the dataset"):
        read_results(path)
    own = {
        "dataset": "SoundingShapes",
        "split": "test",
        "metrics": {"top1": 0.9125, "map": 0.5},
        "views": 4,
        "seeds": [0, 1],
    }
    own |= {"num_clips": 480, "skipped_clips": 2, "dataset_id": "org/sounding-shapes"}
    path.write_text(json.dumps([own]))
    assert read_results(path) == [EVALUATION]


@pytest.mark.parametrize(
    "text", ["not json", "3", "[]", "[3]", '{"metrics": {}}', '{"evaluations": [{}]}', '{"eval_runtime": 1}']
)
def test_errors_name_the_file_without_results(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        read_results(tmp_path / "results.json", "x", "test")


def test_recipes(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text('{"learning rate": 0.1}')
    assert read_recipe(path) == {"learning rate": "0.1"}
    record = {"recipe": "mbt/vggsound", "source": "table 9", "start": "org/vit", "batch": {"global": 64}}
    record |= {"overridden": {"training.learning_rate": {"recipe": 0.5, "run": 0.1}}}
    record |= {"settings": {"training": {"seed": 3, "learning_rate": 0.1, "output_dir": "x"}}}
    path.write_text(json.dumps(record))
    lines = read_recipe(path)
    assert lines["recipe"] == "mbt/vggsound"
    assert lines["training.learning_rate"] == "0.1 (the recipe has 0.5)"
    assert lines["seed"] == "3"
    assert lines["clips per step"] == "64"
    assert not {"output_dir", "learning_rate"} & set(lines)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"recipe\.json holds no settings"):
        read_recipe(path)


@pytest.mark.parametrize("model_type", [config.model_type for config, *_ in ARCHITECTURES])
def test_every_architecture_has_a_card_with_the_required_sections(model_type):
    sections = architecture_sections(model_type)
    assert sections, f"model_cards/{model_type}.md is missing"
    assert len(sections[""]) > 100
    assert "```" not in sections[""]
    assert sections.get("Limits") or sections.get("Different, and why")
    assert "@" in sections["Licence and citation"]


def test_the_template_is_part_of_the_package():
    assert (CARDS / "template.md").is_file()
    head = (CARDS / "template.md").read_text().split("---")[1]
    assert head.strip() == "{{ card_data }}"
    assert yaml.safe_load(ModelCardData(license="mit").to_yaml()) == {"license": "mit"}
