"""Questions about rendered clips: rows to samples and batches, training, scores by type, checkpoints, the pipeline."""

import re
from collections import Counter

import datasets
import pytest
import torch
from rendering import render_clip
from tiny_lavish import ADAPTER, VIT
from transformers import AutoProcessor, pipeline

from hf_avfusion import (
    AutoModelForAudioVisualQuestionAnswering,
    AVFusionFeatureExtractor,
    AVTrainer,
    AVTrainingArguments,
    LavishForQuestionAnswering,
    LavishProcessor,
    LavishTwoStreamConfig,
    MBTProcessor,
)
from hf_avfusion.data.benchmarks.splits import SplitRows
from hf_avfusion.data.questions import QuestionCollator, QuestionTransform
from hf_avfusion.data.streaming.clip_loader import ClipLoader
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.synthetic.sounding_scenes import SceneSettings
from hf_avfusion.data.synthetic.sounding_shapes import RenderSettings, features
from hf_avfusion.data.synthetic.sounding_shapes import render_clip as render_scene
from hf_avfusion.evaluation.clips import label_rows
from hf_avfusion.evaluation.runs import evaluate_checkpoint, load_checkpoint, protocol_for
from hf_avfusion.evaluation.views import predict_views
from hf_avfusion.metrics.question_answering import question_answering_accuracy
from hf_avfusion.model_card import CardDetails, build_card
from hf_avfusion.models.lavish import modeling_lavish_heads
from hf_avfusion.models.lavish.processing_lavish import frame_processor
from hf_avfusion.processing.question_words import QuestionWords
from hf_avfusion.tasks import TASKS, task_of, task_of_benchmark

TASK = TASKS["question_answering"]
SIDE, ROWS, MELS = 16, 24, 16
SCENE = SceneSettings(num_classes=2, width=32, height=32)


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    """12 clips of SoundingShapes with a question each."""
    made = [render_scene(RenderSettings(SCENE), "train", number) for number in range(12)]
    return datasets.Dataset.from_list(made, features=features(SCENE))


@pytest.fixture(scope="module")
def processor(rows) -> LavishProcessor:
    words = QuestionWords.from_questions(rows["question"])
    audio = AVFusionFeatureExtractor.from_preset("lavish_ave_vit", num_mel_bins=MELS, spectrogram_length=ROWS)
    return LavishProcessor(frame_processor(SIDE), audio, num_segments=2, segment_seconds=0.3, **words.to_dict())


def tiny_model(processor: LavishProcessor, **fields) -> LavishForQuestionAnswering:
    torch.manual_seed(0)
    sizes = {"num_segments": 2, "spectrogram_length": ROWS, "num_mel_bins": MELS, "question_hidden_size": 16}
    backbone = {"model_type": "vit", **VIT, "image_size": SIDE, "intermediate_size": 24}
    fields = {"vocab_size": len(processor.vocab), "adapter": ADAPTER, "question_dropout": 0.0, **fields}
    return LavishForQuestionAnswering(LavishTwoStreamConfig(backbone_config=backbone, **sizes, **fields))


def make_transform(processor: LavishProcessor, fields: dict, mode: str = "eval") -> QuestionTransform:
    return TASK.transform_class(processor, TASK.read_labels(["answer"], fields), mode=mode)


def sample(video: str, value: float, **more) -> dict:
    """Frames whose values tell the video: value + frame / 10."""
    frames = value + torch.arange(2)[:, None, None, None] / 10 + torch.zeros(2, 3, 4, 4)
    words = {"input_ids": torch.tensor([1, 2, 0]), "labels": torch.tensor(1), "video_id": video, "clip_id": video}
    both = {"pixel_values": frames, "input_features": torch.zeros(2, 4, 4), "has_video": True, "has_audio": True}
    return {**both, **words, **more}


# ------------------------------------------------------------------------------------------------------------ rows to batches


def test_fields_of_rows_with_questions(rows):
    fields = TASK.config_fields(rows.features, ["answer"], None)
    assert [fields["id2label"][n] for n in range(4)] == ["0", "1", "2", "yes"]
    assert fields["question_types"][:2] == ["audio counting", "audio existential"]
    assert TASK.config_fields(rows.remove_columns("question_type").features, ["answer"], None)["question_types"] is None
    with pytest.raises(ValueError, match="needs a column `question`"):
        TASK.config_fields(rows.remove_columns("question").features, ["answer"], None)
    with pytest.raises(ValueError, match="one column of answers, got answer, label"):
        TASK.config_fields(rows.features, ["answer", "label"], None)
    assert task_of_benchmark("question answering") is TASK


def test_a_row_becomes_a_sample(rows, processor):
    fields = TASK.config_fields(rows.features, ["answer"], None)
    row = rows[0]
    made = make_transform(processor, fields)(row)
    assert made["input_ids"].tolist() == processor.encode_questions(row["question"]).tolist()
    assert (made["labels"].item(), made["question_types"].item()) == (row["answer"], row["question_type"])
    assert made["video_id"] == row["video"]["path"]
    several = {**row, "question": [row["question"]] * 2, "answer": [row["answer"], 0], "question_type": [0, 1]}
    made = make_transform(processor, fields)(several)
    assert made["input_ids"].shape == (2, processor.max_question_length)
    assert (made["labels"].tolist(), made["question_types"].tolist()) == ([row["answer"], 0], [0, 1])


def test_wrong_rows_are_refused_before_the_clip_is_decoded(rows, processor):
    fields = TASK.config_fields(rows.features, ["answer"], None)
    transform = make_transform(processor, fields)
    row = {**rows[0], "video": {"bytes": b"broken", "path": None}}
    for changes, message in (
        ({"question": "How many elephants are there?"}, "clip train-000000: .*the word 'elephants'"),
        ({"question": " ? "}, "clip train-000000: .*has no words"),
        ({"question": [row["question"]] * 2}, "'answer' must hold a value for each question"),
        ({"answer": "yes"}, "labels must be class numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            transform({**row, **changes})
    with pytest.raises(ValueError, match="has no column 'question'"):
        transform({name: value for name, value in row.items() if name != "question"})
    with pytest.raises(ValueError, match="MBTProcessor has no vocabulary"):
        QuestionTransform(MBTProcessor())


def test_clips_with_fewer_questions_are_padded():
    two = {"input_ids": torch.tensor([[1, 2, 0], [3, 0, 0]]), "labels": torch.tensor([2, 0])}
    types = [{"question_types": torch.tensor(4)}, {"question_types": torch.tensor([4, 5])}]
    batch = QuestionCollator(num_labels=3)([sample("a", 1.0, **types[0]), sample("b", 2.0, **two, **types[1])])
    assert batch["input_ids"].tolist() == [[[1, 2, 0], [0, 0, 0]], [[1, 2, 0], [3, 0, 0]]]
    assert batch["labels"].tolist() == [[1, -100], [2, 0]]
    assert batch["question_types"].tolist() == [[4, -1], [4, 5]]
    one = QuestionCollator()([sample("a", 1.0), sample("b", 2.0)])
    assert one["input_ids"].shape == (2, 3)
    assert not {"negative_pixel_values", "question_types"} & one.keys()
    with pytest.raises(ValueError, match="no `input_ids`"):
        QuestionCollator()([{"pixel_values": torch.zeros(2, 3, 4, 4), "has_video": True, "has_audio": False}])
    with pytest.raises(ValueError, match="questions cannot be mixed"):
        QuestionCollator(mixup_alpha=0.5)


# ------------------------------------------------------------------------------------------------------------------ negatives


def test_negatives_are_frames_of_other_videos():
    samples = [sample("a", 1.0, seed=1), sample("a", 2.0, seed=2), sample("b", 3.0, seed=3), sample("c", 4.0, seed=4)]
    allowed = {0: {3, 4}, 1: {3, 4}, 2: {1, 2, 4}, 3: {1, 2, 3}}
    drawn = {number: Counter() for number in allowed}
    for seed in range(60):
        batch = QuestionCollator(negatives=True)([{**each, "seed": each["seed"] + 10 * seed} for each in samples])
        assert "negative_mask" not in batch
        for number, frames in enumerate(batch["negative_pixel_values"]):
            values = frames[:, 0, 0, 0]
            assert torch.equal(frames, values[:, None, None, None].expand_as(frames))
            drawn[number].update((int(value), round(value.item() * 10) % 10) for value in values)
    for number, counts in drawn.items():
        assert {video for video, _ in counts} == allowed[number]
        assert {frame for _, frame in counts} == {0, 1}
        share = 120 / len(counts)
        assert all(0.4 * share < count < 1.8 * share for count in counts.values())


def test_negatives_follow_the_seeds_of_the_rows():
    samples = [
        sample(video, value, seed=number) for number, (video, value) in enumerate(zip("abcd", (1.0, 2.0, 3.0, 4.0)))
    ]
    first = QuestionCollator(negatives=True, seed=0)(samples)["negative_pixel_values"]
    assert torch.equal(first, QuestionCollator(negatives=True, seed=1)(samples)["negative_pixel_values"])
    others = [{**each, "seed": each["seed"] + 7} for each in samples]
    assert not torch.equal(first, QuestionCollator(negatives=True)(others)["negative_pixel_values"])


def test_batches_without_other_videos_have_no_negatives():
    collate = QuestionCollator(negatives=True)
    assert "negative_pixel_values" not in collate([sample("a", 1.0), sample("a", 2.0)])
    silent = {"has_video": False, "video_id": "b"}
    lone = sample("b", 2.0, **silent)
    del lone["pixel_values"]
    batch = collate([sample("a", 1.0), lone])  # the only other video has no frames
    assert batch["negative_mask"].tolist() == [False, True]
    assert torch.equal(batch["negative_pixel_values"][0], torch.zeros(2, 3, 4, 4))
    sound = sample("b", 2.0)
    mute = [{**sample("a", 1.0), "has_audio": False}, {**sound, "has_audio": False}]
    assert "negative_pixel_values" not in collate([{k: v for k, v in s.items() if k != "input_features"} for s in mute])


def test_a_model_of_one_modality_gets_no_negatives(processor):
    config = tiny_model(processor, modalities=("audio",)).config
    assert not TASK.collator_class.for_model(config, negatives=True).negatives
    assert TASK.collator_class.for_model(tiny_model(processor).config, negatives=True).negatives


# ---------------------------------------------------------------------------------------------------- training and evaluation


def arguments(folder, **options) -> AVTrainingArguments:
    plain = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 5, "max_steps": 3, "use_cpu": True, "report_to": "none",
        "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-3,
    }  # fmt: skip
    return AVTrainingArguments(output_dir=str(folder), **{**plain, **options})


def make_trainer(folder, rows, processor, **options) -> AVTrainer:
    fields = TASK.config_fields(rows.features, ["answer"], None)
    model = tiny_model(processor, **fields)
    return AVTrainer(
        model,
        arguments(folder, **options),
        TASK.collator_class.for_model(model.config, negatives=True),
        train_dataset=ClipStream(rows, make_transform(processor, fields, "train"), shuffle_buffer=12),
        eval_dataset=ClipStream(rows, make_transform(processor, fields)),
        processing_class=processor,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, rows, processor) -> AVTrainer:
    trainer = make_trainer(tmp_path_factory.mktemp("run"), rows, processor)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for part in ("match_head", "question_encoder", "grounding", "fusion_attn"):
        names = [name for name in before if part in name]
        assert any(not torch.equal(before[name], trainer.model.get_parameter(name)) for name in names), part
    trainer.save_model()
    return trainer


def expected_scores(trainer: AVTrainer, rows) -> dict[str, float]:
    """By the model's own call for each row, and the plain metric."""
    model, processor, logits = trainer.model.eval(), trainer.processing_class, []
    for row in rows:
        inputs = processor(
            videos=row["video"], text=row["question"], start=row["start"], end=row["end"], return_tensors="pt"
        )
        with torch.no_grad():
            logits.append(model(**inputs).logits[0])
    names = rows.features["question_type"].names
    types = [(names[number],) for number in rows["question_type"]]
    return question_answering_accuracy(torch.stack(logits).numpy(), rows["answer"], types)


def test_it_is_scored_by_type_of_question(trained, rows):
    assert task_of(trained.model) is TASK
    expected = expected_scores(trained, rows)
    assert len(expected) > 3
    metrics = trained.evaluate()
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert trained.predict(trained.eval_dataset).metrics["test_overall"] == pytest.approx(expected["overall"])
    assert expected.keys() <= trained.metric_names()


def test_a_checkpoint_is_scored_as_in_training(trained, rows):
    folder = trained.args.output_dir
    model, processor = load_checkpoint(folder)
    assert isinstance(model, LavishForQuestionAnswering)
    split = SplitRows(name="mine", title="mine", split="test", rows=rows, num_rows=len(rows))
    clips = label_rows(split, model.config)
    assert clips.columns == ("answer",)
    protocol = protocol_for(model.config, "mine")
    assert protocol.source == "the whole clip"
    found = evaluate_checkpoint(folder, model, processor, clips, given=("av", "a"), protocol=protocol, batch_size=5)
    expected = expected_scores(trained, rows)
    assert found[0]["metrics"] == pytest.approx(expected)
    assert found[1]["metrics"].keys() == expected.keys()
    with pytest.raises(ValueError, match="question answering: it sees the whole clip in one view"):
        protocol_for(model.config, "mine", num_views=2)
    other = label_rows(
        SplitRows(name="other", title="other", split="test", rows=rows.remove_columns("question_type"), num_rows=12),
        model.config,
    )
    (only,) = evaluate_checkpoint(folder, model, processor, other, given=("av",), protocol=protocol)
    assert only["metrics"] == {"overall": pytest.approx(expected["overall"])}


def test_types_of_other_data_are_refused(trained, rows):
    renamed = rows.cast_column("question_type", datasets.Value("int64"))
    names = [f"type {n}" for n in range(7)]
    renamed = renamed.cast_column("question_type", datasets.ClassLabel(names=names))
    model, processor = load_checkpoint(trained.args.output_dir)
    clips = label_rows(SplitRows(name="o", title="o", split="test", rows=renamed, num_rows=12), model.config)
    with pytest.raises(ValueError, match=r"types of questions are audio counting, .* has type 0"):
        evaluate_checkpoint("x", model, processor, clips, protocol=protocol_for(model.config, "o"))


def test_rows_with_several_questions_give_the_same_scores(trained, rows, tmp_path):
    """One row a video with a list of questions, of different lengths."""
    kinds = {name: rows.features[name] for name in ("question", "answer", "question_type")}
    lists = {name: datasets.List(kind) for name, kind in kinds.items()}
    grouped = []
    for row in rows:
        repeated = 1 + row["answer"] % 3
        grouped.append({**row, **{name: [row[name]] * repeated for name in kinds}})
    grouped = datasets.Dataset.from_list(grouped, features=datasets.Features({**rows.features, **lists}))
    repeated = rows.select([number for number, row in enumerate(rows) for _ in range(1 + row["answer"] % 3)])
    fields = TASK.config_fields(grouped.features, ["answer"], None)
    assert fields == TASK.config_fields(rows.features, ["answer"], None)
    model, processor = load_checkpoint(trained.args.output_dir)
    for batch_size in (1, 5):
        streams = [ClipStream(each, make_transform(processor, fields)) for each in (grouped, repeated)]
        found, expected = (predict_views(model, each, batch_size=batch_size) for each in streams)
        scores = [
            TASK.metrics(each.logits, each.labels, model.config, **each.metric_inputs) for each in (found, expected)
        ]
        assert scores[0] == pytest.approx(scores[1])
        assert (found.labels != -100).sum() == len(repeated)
    metrics = trained.evaluate(streams[0])
    assert {name: metrics[f"eval_{name}"] for name in scores[1]} == pytest.approx(scores[1])


def test_resumed_training_draws_the_same_negatives(rows, processor):
    fields = TASK.config_fields(rows.features, ["answer"], None)
    collator = TASK.collator_class.for_model(tiny_model(processor, **fields).config, negatives=True)

    def loader() -> ClipLoader:
        return ClipLoader(
            ClipStream(rows, make_transform(processor, fields, "train"), seed=3, shuffle_buffer=12), 4, collator
        )

    whole, resumed = loader(), loader()
    batches = []
    for number, batch in enumerate(whole):
        batches.append({name: value.clone() for name, value in batch.items()})
        if number == 0:
            state = whole.state_dict()
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(batches) - 1 == 2
    for found, expected in zip(rest, batches[1:]):
        assert found.keys() == expected.keys() >= {"negative_pixel_values", "input_ids"}
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_batches_of_one_train_without_the_match_loss_and_say_so(tmp_path, rows, processor, monkeypatch):
    said = []
    monkeypatch.setattr(modeling_lavish_heads.logger, "warning_once", said.append)
    make_trainer(tmp_path, rows, processor, per_device_train_batch_size=1, max_steps=2).train()
    assert len(said) == 2
    assert all("trains without the match loss" in text for text in said)


# ------------------------------------------------------------------------------------------------------------------- pipeline


def test_the_pipeline_answers_several_questions_about_a_clip(trained, rows):
    folder = trained.args.output_dir
    answer = pipeline("audio-visual-question-answering", model=folder)
    assert isinstance(answer.model, LavishForQuestionAnswering)
    model, processor = (
        AutoModelForAudioVisualQuestionAnswering.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    clip, questions = rows[0]["video"]["bytes"], ["How many shapes are there?", "Which shape is the largest?"]
    with torch.no_grad():
        inputs = processor(videos=clip, text=questions, return_tensors="pt")
        scores = model.eval()(**inputs).logits[0].softmax(-1)

    def check(found: list[dict], expected: torch.Tensor) -> None:
        best = expected.topk(len(found))
        assert [each["answer"] for each in found] == [model.config.id2label[index] for index in best.indices.tolist()]
        assert [each["score"] for each in found] == pytest.approx(best.values.tolist(), abs=1e-5)

    one = answer(clip, text=questions[0], top_k=2)
    assert len(one) == 2
    check(one, scores[0])
    for found, expected in zip(answer(clip, text=questions, top_k=3), scores, strict=True):
        check(found, expected)
    given = [{"video": clip, "text": questions[1]}, {"bytes": clip, "question": questions}, clip]
    with pytest.raises(ValueError, match="a clip has no question"):
        answer(given, batch_size=2)
    single, pair = answer(given[:2], batch_size=2, top_k=1)
    check(single, scores[1])
    for found, expected in zip(pair, scores, strict=True):
        check(found, expected)
    assert answer([clip, clip], text=questions[1], batch_size=2, top_k=1)[0][0]["answer"] == single[0]["answer"]
    of_row = answer(rows[0])
    assert len(of_row) == 5
    with torch.no_grad():
        alone = model(**processor(videos=clip, text=rows[0]["question"], return_tensors="pt")).logits[0].softmax(-1)
    check(of_row, alone)


def test_the_pipeline_refuses_wrong_questions(trained, rows):
    answer = pipeline("audio-visual-question-answering", model=trained.args.output_dir)
    clip, question = rows[0]["video"]["bytes"], "How many shapes are there?"
    for call, options, error, message in (
        (clip, {"text": "How many elephants are there?"}, ValueError, "'elephants'"),
        (clip, {"text": []}, ValueError, "at least one question"),
        (clip, {"text": 5}, TypeError, "text must be a question or a list of questions, got int"),
        (
            {"video": clip, "text": question, "question": question},
            {},
            ValueError,
            "the clip's 'text' and the clip's 'question'",
        ),
        ({"video": clip, "text": question}, {"text": question}, ValueError, "the clip's 'text' and the argument text"),
        (
            {"video": clip, "query": question},
            {"text": question},
            TypeError,
            "unknown keys query; known are .*, text and question",
        ),
        (clip, {"text": question, "views": 2}, TypeError, "has no arguments views"),
        (clip, {"text": question, "top_k": 0}, ValueError, "top_k must be a positive integer"),
    ):
        with pytest.raises(error, match=message):
            answer(call, **options)


def test_a_clip_without_sound_is_answered_beside_others(trained, tmp_path):
    silent = str(render_clip(tmp_path / "silent.mp4", seconds=1.0, audio=None, size=(32, 32)))
    sound = str(render_clip(tmp_path / "sound.mp4", seconds=1.0, size=(32, 32)))
    answer = pipeline("audio-visual-question-answering", model=trained.args.output_dir)
    question = "How many shapes are there?"
    together = answer([silent, sound], text=question, batch_size=2)
    for found, alone in zip(together, (answer(silent, text=question), answer(sound, text=question)), strict=True):
        assert [each["answer"] for each in found] == [each["answer"] for each in alone]
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in alone], abs=1e-5)


def test_published_types_have_two_levels():
    config = LavishTwoStreamConfig(question_types=["Audio / Counting", "Audio-Visual / Counting"], num_labels=3)
    assert TASK.metric_names(config) == {"overall", "Audio", "Audio/Counting", "Audio-Visual", "Audio-Visual/Counting"}
    logits, labels, types = torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
    found = TASK.metrics(logits, labels, config, question_types=types)
    assert found == {
        "overall": pytest.approx(2 / 3),
        "Audio": 1,
        "Audio/Counting": 1,
        "Audio-Visual": 0,
        "Audio-Visual/Counting": 0,
    }
    assert TASK.show_metric("overall").hub == "accuracy"
    assert re.search("3 answers", TASK.describe_labels(config, None))


def test_its_card_shows_how_to_ask(trained):
    card = build_card(trained.model, trained.processing_class, CardDetails(), "org/answers")
    assert card.data.pipeline_tag == "audio-visual-question-answering"
    assert 'ask("clip.mp4", text="How many instruments' in card.content
    longest, number = trained.processing_class.max_question_length, len(trained.processing_class.vocab) - 1
    assert f"questions of at most {longest} words, padded with 0, out of {number} words" in card.content
    assert "Types of questions: `audio counting`" in card.content
