"""pipeline("audio-visual-classification"): its inputs and answers, and that batches and workers do not change the answers."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import datasets
import pytest
import torch
from equality import assert_outputs_of
from rendering import read_numbers, render_clip
from transformers import AutoModelForPreTraining, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from travellers import avmae, mbt, processor, traveller

from hf_avfusion import (
    AutoModelForAudioVisualClassification,
    AVMAEForAudioVisualClassification,
    AVMAEForPreTraining,
    AVMAEProcessor,
    auto,
)
from hf_avfusion.media.reader import MediaError
from hf_avfusion.models.shared.loaded_weights import load_whole
from hf_avfusion.tasks import TASKS

TASK = "audio-visual-classification"


def scores(answer) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer}


def assert_scores(answer: list[dict], model: torch.nn.Module, run: Callable[[], torch.Tensor]) -> None:
    """Asserts that an answer holds the scores that `run` computes with the model, label by label."""
    found = torch.tensor([scores(answer)[label] for _, label in sorted(model.config.id2label.items())])
    assert_outputs_of(model, found, run)


def close(first, second) -> bool:
    """Whether two answers have the same labels in the same order, and the same scores up to rounding."""
    if isinstance(first, dict) and "label" not in first:
        return set(first) == set(second) and all(close(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(close(a, b) for a, b in zip(first, second))
    if first is None or second is None:
        return first is second
    return first["label"] == second["label"] and abs(first["score"] - second["score"]) < 1e-5


@pytest.fixture(scope="module")
def classify():
    model, its_processor = traveller("mbt")
    return pipeline(TASK, model=model, processor=its_processor, device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Three clips; the second has no audio track."""
    folder = tmp_path_factory.mktemp("clips")
    files = []
    for name, audio in (("both", "chirp"), ("mute", None), ("clicks", "clicks")):
        files.append(str(render_clip(folder / f"{name}.mp4", seconds=2.0, audio=audio)))
    return files


@pytest.fixture(scope="module")
def waveform() -> dict:
    return {"audio": torch.sin(torch.arange(16000) * 0.3).numpy(), "sampling_rate": 16000}


def test_one_clip_as_path_bytes_file_url_and_row(classify, clips, tmp_path):
    model, its_processor = traveller("mbt")
    data = open(clips[0], "rb").read()  # noqa: SIM115
    answer = classify(clips[0])
    inputs = its_processor(videos=clips[0], return_tensors="pt")
    assert [entry["score"] for entry in answer] == sorted(scores(answer).values(), reverse=True)
    assert_scores(answer, model, lambda: model(**inputs).logits.softmax(-1)[0])
    for same in (data, io.BytesIO(data), f"file://{clips[0]}", {"bytes": data, "path": None}, {"path": clips[0]}):
        assert close(classify(same), answer)
    assert close(classify({"clip_id": "x", "video": {"bytes": data, "path": "a"}, "start": None, "label": 3}), answer)
    part = classify({"video": clips[0], "start": 1.0, "end": 1.5})
    assert not close(part, answer)
    frames = torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8)
    waveform = torch.rand(16000) - 0.5
    both = classify({"video": frames, "audio": waveform, "sampling_rate": 16000})
    assert not close(both, classify({"video": frames}))


def test_keys_of_a_dict_are_used_or_refused(classify, clips, waveform):
    frames = torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8)
    both = classify({"videos": frames, **waveform})
    assert close(both, classify({"video": frames, **waveform}))
    assert not close(both, classify(waveform))
    part = classify({"video": clips[0], "start": 1.0, "end": 1.5})
    with open(clips[0], "rb") as file:
        data = file.read()
    files = ({"path": clips[0]}, {"bytes": data}, {"videos": clips[0]}, {"video": {"path": clips[0], "bytes": None}})
    for file in files:
        assert close(classify({**file, "start": 1.0, "end": 1.5}), part)
    separate = {"video": clips[1], "audio": clips[0]}
    assert not close(classify({**separate, "start": 1.0, "end": 1.5}), classify(separate))
    for clip, message in (
        ({"path": clips[0], "strat": 1.0}, "unknown keys strat"),
        ({"clip_id": 1, "path": clips[0], "strat": 1.0}, "a clip has no field strat; did you mean start?"),
        ({"video": frames, "frames": frames}, "unknown keys frames"),
        ({"video": frames, "label": 3}, "leave the others out"),
        ({"video": frames, "videos": frames}, "leave only one"),
        ({"path": clips[0], "video": clips[0]}, "leave only one"),
        ({"video": {"path": clips[0], "start": 1.0}}, "`start` and `end` are arguments of the call"),
    ):
        with pytest.raises(TypeError, match=message):
            classify(clip)
    with pytest.raises(ValueError, match="cut the arrays before the call"):
        classify({"videos": frames, "start": 1.0})


def test_addresses_in_rows_are_not_fetched(classify, monkeypatch):
    """Those that the caller passes are; a row and a column of a dataset are untrusted."""
    monkeypatch.setattr(
        "hf_avfusion.media.sources.OpenSource._remote", lambda *_: pytest.fail("an address was fetched")
    )
    address = "http://127.0.0.1:9/clip.mp4"
    column = datasets.Dataset.from_dict({"video": [address]})
    rows = ({"clip_id": "a", "video": address, "label": 3}, column["video"], {"path": address})
    for given in rows:
        with pytest.raises(MediaError, match="is an address inside a row, which is not fetched"):
            classify(given)
    with pytest.raises(MediaError, match="is an address inside a row"):
        list(classify(column.to_iterable_dataset()["video"]))


@pytest.mark.slow
def test_any_pipeline_class_can_be_imported_first():
    """Each in a copy of a process that has imported only what takes long and registers nothing."""
    names = {
        "pipelines": "AudioVisualClassificationPipeline",
        "event_pipeline": "AudioVisualEventLocalizationPipeline",
        "question_pipeline": "AudioVisualQuestionAnsweringPipeline",
        "segmentation_pipeline": "AudioVisualSegmentationPipeline",
    }
    code = (
        "import importlib, os, sys, torch, transformers.modeling_utils, transformers.processing_utils\n"
        "assert not {'transformers.pipelines', 'transformers.models.auto.modeling_auto', 'hf_avfusion'} & set(sys.modules)\n"
        f"for module, name in {names}.items():\n"
        "    if not os.fork():\n"
        "        ours = getattr(importlib.import_module(f'hf_avfusion.processing.{module}'), name)\n"
        "        from transformers.pipelines import PIPELINE_REGISTRY\n"
        "        from hf_avfusion.auto import PIPELINES\n"
        "        found = [PIPELINE_REGISTRY.check_task(entry.name)[1]['impl'] for entry in PIPELINES]\n"
        "        print(ours in found, flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * len(names), done.stderr


def test_pipeline_of_transformers_warns_that_it_ignores_the_audio(clips, monkeypatch):
    monkeypatch.setattr("transformers.video_processing_utils.BaseVideoProcessor.fetch_videos", lambda *_, **__: "read")
    warnings = []
    monkeypatch.setattr("hf_avfusion.processing.video_processing_avfusion.logger.warning_once", warnings.append)
    its_processor = traveller("mbt")[1]
    assert its_processor.video_processor.fetch_videos(clips[0]) == "read"
    assert "audio-visual-classification" in warnings[0]
    its_processor(videos=clips[0])
    assert len(warnings) == 1


def test_a_pretraining_checkpoint_is_refused(tmp_path):
    """Its head would be random."""
    avmae(AVMAEForPreTraining).save_pretrained(tmp_path)
    processor(AVMAEProcessor).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"saved from a AVMAEForPreTraining.*python examples/finetune_classification.py"
    ):
        pipeline(TASK, model=str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match=r"classifier.bias, classifier.weight would be random"):
        load_whole(AutoModelForAudioVisualClassification, tmp_path)
    model = AutoModelForAudioVisualClassification.from_pretrained(tmp_path)  # asked for, to train it
    for weight in (model.classifier.weight, model.classifier.bias):
        torch.nn.init.normal_(weight)
    pipeline(TASK, model=model, processor=processor(AVMAEProcessor), device="cpu")
    load_whole(AutoModelForPreTraining, tmp_path)
    avmae().save_pretrained(tmp_path)
    load_whole(AutoModelForAudioVisualClassification, tmp_path)
    with pytest.raises(ValueError, match=r"decoder\..*python examples/pretrain_avmae.py"):
        load_whole(AutoModelForPreTraining, tmp_path)


def test_top_k(classify, clips):
    assert len(classify(clips[0])) == 5
    assert len(classify(clips[0], top_k=2)) == 2
    assert close(classify(clips[0], top_k=100), classify(clips[0], top_k=None))
    assert abs(sum(scores(classify(clips[0], top_k=None)).values()) - 1) < 1e-6


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_lists_batches_generators_and_columns_give_the_same(classify, clips, waveform, batch_size):
    """The batches include clips with a missing modality."""
    mixed = [*clips, waveform]
    expected = [classify(clip, return_modalities=True) for clip in mixed]
    options = {"batch_size": batch_size, "return_modalities": True}
    assert close(classify(mixed, **options), expected)
    assert close(classify(tuple(mixed), **options), expected)
    lazily = classify((clip for clip in mixed), **options)
    assert not isinstance(lazily, list)
    assert close(list(lazily), expected)
    assert close(list(classify(iter(mixed), **options)), expected)
    assert classify([]) == []
    column = datasets.Dataset.from_dict({"video": clips})["video"]
    assert close(classify(column, **options), expected[:3])


def test_columns_of_videos_are_not_decoded_by_datasets(classify, clips):
    features = datasets.Features({"video": datasets.Video(decode=True)})
    rows = datasets.Dataset.from_dict({"video": clips}, features=features)
    expected = classify(clips)
    assert close(classify(rows["video"], batch_size=2), expected)
    streamed = rows.to_iterable_dataset()["video"]
    assert close(list(classify(streamed)), expected)


def test_decoded_videos_of_datasets_give_the_same(classify, clips, torchcodec):
    rows = datasets.Dataset.from_dict({"video": clips}, features=datasets.Features({"video": datasets.Video()}))
    assert close(classify(rows[0]["video"]), classify(clips[0]))


def test_workers_give_the_same(classify, clips):
    assert close(classify(clips, num_workers=2, batch_size=2), classify(clips))
    assert close(list(classify((clip for clip in clips), num_workers=2)), classify(clips))


def test_scores_are_averaged_over_views(classify, clips):
    model, its_processor = traveller("mbt")
    with torch.no_grad():
        logits = model(**its_processor(videos=clips[0], num_views=3, return_tensors="pt")).logits
    answer = scores(classify(clips[0], views=3))
    for index, label in model.config.id2label.items():
        assert abs(answer[label] - logits.mean(0).softmax(-1)[index].item()) < 1e-6
    answer = scores(classify(clips[0], views=3, aggregation="mean_probabilities"))
    for index, label in model.config.id2label.items():
        assert abs(answer[label] - logits.softmax(-1).mean(0)[index].item()) < 1e-6
    assert close(classify(clips, views=3, batch_size=3), [classify(clip, views=3) for clip in clips])


def test_each_modality_alone(classify, clips, waveform):
    model, its_processor = traveller("mbt")
    inputs = its_processor(videos=clips[0], return_tensors="pt")
    answer = classify(clips[0], return_modalities=True)
    assert list(answer) == ["both", "video", "audio"]
    for modality, name in (("video", "pixel_values"), ("audio", "input_features")):
        assert_scores(answer[modality], model, lambda name=name: model(**{name: inputs[name]}).logits.softmax(-1)[0])
    assert close(answer["both"], classify(clips[0]))
    silent = classify(clips[1], return_modalities=True)
    assert silent["audio"] is None
    assert close(silent["video"], silent["both"])
    audio_only = classify(waveform, return_modalities=True)
    assert audio_only["video"] is None
    assert close(audio_only["audio"], audio_only["both"])


def test_a_model_of_one_modality(clips):
    classify = pipeline(TASK, model=mbt(modalities=("audio",)), processor=processor(), device="cpu")
    answer = classify(clips[0], return_modalities=True)
    assert answer["video"] is None
    assert close(answer["audio"], answer["both"])
    with pytest.raises(ValueError, match=r"mute.mp4.*has no audio"):
        classify(clips[1])


def test_scores_of_multi_label_and_multi_head_models(clips):
    model = mbt(problem_type="multi_label_classification").eval()
    torch.nn.init.normal_(model.classifier.weight)
    its_processor = processor()
    inputs = its_processor(videos=clips[0], return_tensors="pt")
    classify = pipeline(TASK, model=model, processor=its_processor, device="cpu", top_k=None)
    assert_scores(classify(clips[0]), model, lambda: model(**inputs).logits[0].sigmoid())
    assert_scores(classify(clips[0], function_to_apply="none"), model, lambda: model(**inputs).logits[0])
    softmax = classify(clips[0], function_to_apply="softmax")
    assert_scores(softmax, model, lambda: model(**inputs).logits[0].softmax(-1))

    splits = {"verb": 3, "noun": 2}
    model = mbt(class_splits=splits, id2label=dict(enumerate("abcde")), label2id={n: i for i, n in enumerate("abcde")})
    answer = pipeline(TASK, model=model.eval(), processor=its_processor, device="cpu")(clips[0], top_k=None)
    assert list(answer) == ["verb", "noun"]
    assert set(scores(answer["verb"])) == set("abc")
    assert set(scores(answer["noun"])) == set("de")
    assert all(abs(sum(scores(head).values()) - 1) < 1e-6 for head in answer.values())


def test_half_precision(clips):
    model, its_processor = traveller("mbt")
    classify = pipeline(TASK, model=model.to(torch.bfloat16), processor=its_processor, device="cpu")
    assert abs(sum(scores(classify(clips[0], top_k=None)).values()) - 1) < 1e-5


def test_progress_on_lists(classify, clips, capsys):
    classify(clips[:2], progress=True)
    assert "2/2" in capsys.readouterr().err
    classify(clips[:2])  # stderr is not a terminal in tests
    classify(clips[:2], progress=False)
    classify(clips[0])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k must be a positive integer, got 0"),
        ({"views": 0}, ValueError, "views must be a positive integer, got 0"),
        ({"views": 1.5}, ValueError, "views must be a positive integer, got 1.5"),
        ({"aggregation": "median"}, ValueError, "aggregation must be one of mean_logits"),
        ({"function_to_apply": "relu"}, ValueError, "function_to_apply must be one of softmax"),
        ({"topk": 3}, TypeError, "has no arguments topk"),
    ],
)
def test_errors_name_the_wrong_argument(classify, clips, options, error, message):
    with pytest.raises(error, match=message):
        classify(clips[0], **options)


def test_errors_name_the_wrong_clip(classify, clips, tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"no film")
    for bad in (str(tmp_path / "junk.mp4"), [clips[0], str(tmp_path / "junk.mp4")]):
        with pytest.raises(MediaError, match=r"junk\.mp4"):
            classify(bad)
    with pytest.raises(MediaError, match=r"gone\.mp4"):
        classify(str(tmp_path / "gone.mp4"))
    with pytest.raises(TypeError, match="a clip passed as a dict must have"):
        classify({"clip": clips[0]})
    with pytest.raises(TypeError, match="got a int"):
        classify(3)
    with pytest.raises(TypeError, match="a dict with `video`"):
        classify(torch.zeros(4, 3, 16, 16))


@pytest.mark.slow
def test_the_task_is_registered_if_transformers_pipelines_were_imported_first():
    code = (
        "from transformers import pipeline\nimport hf_avfusion\nfrom transformers.pipelines import PIPELINE_REGISTRY\n"
        f"print(PIPELINE_REGISTRY.check_task({TASK!r})[1]['impl'].__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "AudioVisualClassificationPipeline"


def test_a_pipeline_is_one_entry_of_a_table(monkeypatch):
    """Another pipeline needs one more entry, and a task names its entry."""
    entries = [task.pipeline for task in TASKS.values() if task.pipeline is not None]
    assert set(entries) == set(auto.PIPELINES)
    assert TASKS["classification"].hub_task == TASKS["classification"].pipeline.name == TASK
    assert len({entry.name for entry in auto.PIPELINES}) == len(auto.PIPELINES)
    another = replace(auto.PIPELINES[0], name="audio-visual-test")
    monkeypatch.setattr(auto, "PIPELINES", (*auto.PIPELINES, another))
    monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", dict(PIPELINE_REGISTRY.supported_tasks))
    auto._register_pipelines()
    model, its_processor = traveller("mbt")
    made = pipeline("audio-visual-test", model=model, processor=its_processor, device="cpu")
    with pytest.raises(TypeError, match="the audio-visual-test pipeline has no arguments topk"):
        made("a.mp4", topk=3)


def localiser(**fields) -> AVMAEForAudioVisualClassification:
    model = avmae(num_segments=4, readout="mean", **fields).eval()
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    return model


def starts(answer: list[dict]) -> list[float]:
    """The starts of the segments, whose ends must be the starts of the next."""
    assert [segment["end"] for segment in answer[:-1]] == pytest.approx([segment["start"] for segment in answer[1:]])
    return [segment["start"] for segment in answer]


def test_an_event_localiser_answers_for_each_segment(clips):
    """With 4 segments, each quarter of the window has its own labels, start and end in s."""
    model, its_processor = localiser(), processor(AVMAEProcessor)
    inputs = its_processor(videos=clips[0], return_tensors="pt")
    classify = pipeline(TASK, model=model, processor=its_processor, device="cpu", top_k=None)
    answer = classify(clips[0])
    assert starts(answer) == pytest.approx([0.84, 0.92, 1.0, 1.08])
    assert answer[-1]["end"] == pytest.approx(1.16)
    for index, segment in enumerate(answer):
        found = {entry["label"]: entry["score"] for entry in segment["labels"]}
        expected = model(**inputs).logits[0, index].softmax(-1).tolist()
        assert found == pytest.approx(dict(zip(model.config.id2label.values(), expected)), abs=1e-5)
    assert len({segment["labels"][0]["score"] for segment in answer}) > 1
    assert len(classify(clips[0], top_k=2)[0]["labels"]) == 2
    silent = classify(clips[1], return_modalities=True)
    assert silent["audio"] is None
    assert starts(silent["video"]) == starts(silent["both"]) == pytest.approx([0.84, 0.92, 1.0, 1.08])


def test_segments_lie_where_the_model_looks(clips, waveform):
    """Pictures of the clips carry their number, at 25 per second: each segment starts with its frame."""
    its_processor = processor(AVMAEProcessor)
    classify = pipeline(TASK, model=localiser(), processor=its_processor, device="cpu", top_k=1)
    for bounds in ({}, {"start": 1.0, "end": 2.0}, {"start": 0.6}):
        (seen,) = its_processor.load_clip(clips[0], **bounds)
        answer = classify({"video": clips[0], **bounds}, return_modalities=True)
        shown = torch.tensor(read_numbers(seen.frames)) / 25 - bounds.get("start", 0)
        assert starts(answer["video"]) == pytest.approx(shown.tolist(), abs=1e-6)
        assert starts(answer["audio"])[0] == pytest.approx(seen.audio_start - bounds.get("start", 0))
        assert answer["both"][0]["start"] == answer["audio"][0]["start"]
    frames = torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8)
    for clip in (waveform, {"video": frames}, {"video": frames, **waveform}):
        assert starts(classify(clip)) == pytest.approx([0.0, 0.08, 0.16, 0.24])
    mixed = [clips[0], clips[1], waveform]
    batched = classify(mixed, batch_size=3, return_modalities=True)
    for one, clip in zip(batched, mixed):
        alone = classify(clip, return_modalities=True)
        for name, answer in one.items():
            assert answer is alone[name] is None or starts(answer) == starts(alone[name])
    heads = localiser(class_splits={"verb": 3, "noun": 2}, id2label=dict(enumerate("abcde")), num_labels=5)
    segment = pipeline(TASK, model=heads, processor=its_processor, device="cpu", top_k=1)(clips[0])[1]
    assert segment["start"] == pytest.approx(0.92)
    assert set(segment["labels"]) == {"verb", "noun"}


def test_several_views_of_an_event_localiser_are_refused(clips):
    options = {"model": localiser(), "processor": processor(AVMAEProcessor), "device": "cpu"}
    with pytest.raises(ValueError, match=r"views=3: the model localises events.*pass views=1 or leave it out"):
        pipeline(TASK, **options)("/no/such/clip.mp4", views=3)
    with pytest.raises(ValueError, match=r"views=2: the model localises events"):
        pipeline(TASK, **options, views=2)
    assert len(pipeline(TASK, **options)(clips[0], views=1)) == 4


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": "2"}, "batch_size must be an integer of at least 1, got '2'"),
        ({"num_workers": -1}, "num_workers must be an integer of at least 0, got -1"),
    ],
)
def test_wrong_batches_and_workers_are_refused(classify, clips, option, message):
    for inputs in (clips[0], clips, (clip for clip in clips), []):
        with pytest.raises(ValueError, match=message):
            classify(inputs, **option)
    with pytest.raises(ValueError, match=message):
        pipeline(TASK, model=classify.model, processor=classify.processor, device="cpu", **option)
