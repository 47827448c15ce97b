"""Question answering through its training script, evaluate.py's functions and predict.py, in this process."""

import json

import pytest
import torch
from lavish_runs import PLAIN, finetune, load_script, losses, save_backbone
from tiny_lavish import tiny_questions
from transformers import AutoModel, AutoProcessor
from travellers import traveller

from hf_avfusion import AutoModelForAudioVisualQuestionAnswering, LavishForQuestionAnswering
from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.data.synthetic.sounding_shapes import render
from hf_avfusion.processing.question_words import QuestionWords
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building import build_fresh
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.training.recipes.options import QuestionOptions

SOUND = ["--num_segments", "2", "--set", "audio.num_mel_bins=40", "audio.spectrogram_length=24"]
HEAD = {"adapter": {"num_tokens": 2, "reduction": 4}, "question_hidden_size": 16}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    render(
        folder, num_train=48, num_validation=0, num_test=8, num_proc=1, progress=False, width=32, height=32, num_classes=2, seed=1
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone("vit", tmp_path_factory.mktemp("backbone") / "vit")


@pytest.fixture(scope="module")
def script():
    return load_script("finetune_question_answering.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory, script, shards, backbone):
    """A finished run of 4 steps."""
    folder = tmp_path_factory.mktemp("runs") / "answers"
    status = finetune(
        script, "--data", "sounding_shapes", "--source", shards, "--from_backbone", backbone, "--output_dir", folder,
        "--max_steps", 4, "--config", json.dumps(HEAD), *SOUND, *PLAIN,
    )  # fmt: skip
    assert status == 0
    return folder


def test_the_words_of_the_training_questions_travel_with_the_run(run, shards):
    assert len(losses(run)) == 4
    processor = AutoProcessor.from_pretrained(run)
    trained = load_rows("sounding_shapes", "train", source=str(shards))
    expected = QuestionWords.from_questions(row["question"] for row in trained.rows)
    assert (processor.vocab, processor.max_question_length) == (expected.vocab, expected.max_question_length)
    model = LavishForQuestionAnswering.from_pretrained(run)
    assert (model.config.vocab_size, model.config.num_segments) == (len(expected), 2)
    assert not any(parameter.requires_grad for parameter in model.lavish.backbone.parameters())
    scores = json.loads((run / "test_results.json").read_text())
    assert {"eval_overall", "eval_loss"} <= scores.keys()
    assert any(name.startswith("eval_audio") for name in scores)
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["settings"]["collator"] == {
        "time_shift": False, "mixup_alpha": 0.0, "mixup_per_modality": False, "negatives": True, "modality_dropout": [0.0, 0.0],
    }  # fmt: skip


def test_evaluate_writes_a_report(run, shards, tmp_path):
    command = ["--checkpoint", run, "--benchmark", "sounding_shapes", "--source", shards, "--label_columns", "answer"]
    assert finetune(load_script("evaluate.py"), *command, "--workers", "0", "--output", tmp_path / "report") == 0
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    trained = json.loads((run / "test_results.json").read_text())
    scores = {each["given"]: each["metrics"] for each in results["summary"]}
    assert scores["av"]["overall"]["mean"] == pytest.approx(trained["eval_overall"])
    assert f"{100 * scores['av']['overall']['mean']:.1f}" in (tmp_path / "report" / "table.md").read_text()


def test_a_checkpoint_keeps_its_words_and_unknown_ones_are_refused_before_training(
    run, script, shards, tmp_path, capsys
):
    again = ["--model", run, "--data", "sounding_shapes", "--source", shards, "--max_steps", 1, *PLAIN]
    assert finetune(script, *again, "--output_dir", tmp_path / "again") == 0
    assert AutoProcessor.from_pretrained(tmp_path / "again").vocab == AutoProcessor.from_pretrained(run).vocab
    other = tmp_path / "other"
    render(
        other, num_train=4, num_validation=0, num_test=4, num_proc=1, progress=False, width=32, height=32, num_classes=4
    )
    capsys.readouterr()
    assert finetune(script, *again, "--source", other, "--output_dir", tmp_path / "refused") == 2
    error = capsys.readouterr().err
    assert "types of questions" in error or "which is not among the" in error
    assert "SoundingShapes, split train" in error


def test_a_checkpoint_without_words_gets_those_of_the_data(run, script, shards, tmp_path):
    """Such as a localiser, whose base a new head for questions takes over."""
    model = LavishForQuestionAnswering.from_pretrained(run)
    model.config.vocab_size = 93
    model.lavish.save_pretrained(tmp_path / "base")
    processor = AutoProcessor.from_pretrained(run, vocab=None, max_question_length=None)
    processor.save_pretrained(tmp_path / "base")
    done = finetune(
        script, "--model", tmp_path / "base", "--data", "sounding_shapes", "--source", shards, "--max_steps", 1, *PLAIN,
        "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert done == 0
    trained = LavishForQuestionAnswering.from_pretrained(tmp_path / "run")
    assert trained.config.vocab_size == len(AutoProcessor.from_pretrained(tmp_path / "run").vocab) < 93
    kept = trained.lavish.backbone.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in model.lavish.backbone.state_dict().items())


def test_published_words_of_music_avqa_are_taken():
    flags = [
        "--data",
        "music_avqa",
        "--source",
        "nowhere",
        "--output_dir",
        "unused",
        "--use_cpu",
        "True",
        "--report_to",
        "none",
    ]
    parsed, _, _ = parse_with_recipe(QuestionOptions, AVTrainingArguments, flags, task="question_answering")
    assert (parsed.recipe.architecture, parsed.recipe.window["num_segments"]) == ("lavish", 10)
    assert parsed.recipe.frame_augmentation is None
    assert parsed.recipe.collator["negatives"]


def test_predict_answers_questions(run, shards, tmp_path, capsys):
    predict = load_script("predict.py")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(next(iter(load_rows("sounding_shapes", "test", source=str(shards)).rows))["video"]["bytes"])
    questions = ["How many shapes are there?", "Which shape is the largest?"]
    options = ["--model", run, clip, "--output", tmp_path / "answers.jsonl", "--top_k", 2]
    assert finetune(predict, *options, "--text", *questions) == 0
    (line,) = (tmp_path / "answers.jsonl").read_text().splitlines()
    found = json.loads(line)["predictions"]
    assert list(found) == questions
    model, processor = LavishForQuestionAnswering.from_pretrained(run).eval(), AutoProcessor.from_pretrained(run)
    with torch.no_grad():
        expected = model(**processor(videos=str(clip), text=questions, return_tensors="pt")).logits[0].softmax(-1)
    for question, scores in zip(questions, expected):
        best = scores.topk(2)
        assert [each["label"] for each in found[question]] == [model.config.id2label[n] for n in best.indices.tolist()]
        assert [each["score"] for each in found[question]] == pytest.approx(best.values.tolist(), abs=1e-5)
    capsys.readouterr()
    assert finetune(predict, *options) == 1
    assert "ask questions about the clips with --text" in capsys.readouterr().err
    assert finetune(predict, *options, "--text", "How many elephants are there?") == 1
    assert "'elephants'" in capsys.readouterr().err


def test_predict_refuses_text_for_other_models(tmp_path, capsys):
    model, processor = traveller("mbt")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"")
    assert finetune(load_script("predict.py"), "--model", tmp_path, clip, "--text", "Where is it?") == 1
    assert "audio-visual classification, which takes no text: leave it out" in capsys.readouterr().err


def test_a_model_starts_from_a_backbone_and_grounding_modules(backbone, tmp_path):
    head = LavishForQuestionAnswering(tiny_questions()).head  # of the width of the flags below
    names = {"fc_a2": "audio_dense", "fc_gl": "grounding.projection"}
    names |= {f"fc{number + 1}": f"match_head.layers.{number}" for number in range(4)}
    state = {
        f"{theirs}.{kind}": head.get_parameter(f"{ours}.{kind}")
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }
    torch.save(state, tmp_path / "grounding.pt")
    flags = [
        "--data", "music_avqa", "--source", "nowhere", "--output_dir", "unused", "--use_cpu", "True", "--report_to", "none",
        "--from_backbone", str(backbone), "--from_grounding", str(tmp_path / "grounding.pt"), *SOUND,
    ]  # fmt: skip
    fields = {"adapter": HEAD["adapter"], "question_hidden_size": 64}

    def build(*more):
        run, _, _ = parse_with_recipe(QuestionOptions, AVTrainingArguments, [*flags, *more], task="question_answering")
        words = {"vocab": ["<pad>", "Where"], "max_question_length": 3}
        return run, build_fresh(run.recipe, {"num_labels": 3}, AutoModelForAudioVisualQuestionAnswering, words)

    run, (processor, model) = build("--config", json.dumps(fields))
    assert run.recipe.init == str(backbone)
    assert (model.config.vocab_size, processor.max_question_length) == (2, 3)
    assert all(torch.equal(model.head.get_parameter(f"{names[n]}.weight"), state[f"{n}.weight"]) for n in names)
    expected = AutoModel.from_pretrained(backbone).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.lavish.backbone.state_dict().items())
    with pytest.raises(
        ValueError, match=r"grounding\.pt: The grounding checkpoint does not fit: fc_a2\.weight has shape"
    ):
        build("--config", json.dumps({**fields, "question_hidden_size": 16}))
