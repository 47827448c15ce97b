"""What a training script says of its data before the first step, and the clips on which a best checkpoint is chosen."""

from types import SimpleNamespace

import pytest
from rendering import render_clip

from hf_avfusion.tasks import TASKS
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building_runs import RunData
from hf_avfusion.training.recipes.data_summary import describe_data

BOTH = ("video", "audio")


@pytest.fixture(scope="module")
def clips():
    """The bytes of a clip with both tracks, one without audio and one without pictures."""
    return (
        render_clip(num_frames=10),
        render_clip(num_frames=10, audio=None),
        render_clip(num_frames=0, container="wav", audio_codec="pcm_s16le", seconds=0.4),
    )


def folder_of(root, content, *places):
    for place in places:
        for number in range(10):
            path = root / place / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return str(root)


def load(data, tmp_path, *, labels=True, eval_split=None, **arguments):
    args = AVTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", **arguments)
    where = {"data": data, "source": None, "variant": None, "allow_urls": False}
    options = SimpleNamespace(**where, train_split="train", eval_split=eval_split)
    return RunData.load(options, args, labels=labels)


def lines_of(data, modalities=BOTH, best_by=None):
    classes = TASKS["classification"].class_names(data.trained.rows.features, ["label"])
    return describe_data(data, classes, modalities, best_by)


BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}


def test_classes_and_the_split_that_was_made(clips, tmp_path):
    data = load(folder_of(tmp_path / "mine", clips[0], "dog", "bell"), tmp_path)
    assert lines_of(data) == [
        "label: 2 classes: bell, dog",
        "the data have no such splits, so they were divided: 20 % of the files of each class, at least one, are `test` (seed 0)",
        "clips per split: train 16, test 4",
        "clips per class (train/test): bell 8/2, dog 8/2",
    ]


def test_splits_that_exist_are_not_called_made(clips, tmp_path):
    names = [f"class{number:02}" for number in range(12)]
    folder = folder_of(
        tmp_path / "mine", clips[0], *(f"{split}/{name}" for split in ("train", "test") for name in names)
    )
    shown = ", ".join(names[:10])
    assert lines_of(load(folder, tmp_path)) == [f"label: 12 classes: {shown}, ... (2 more)"]


@pytest.mark.parametrize(("which", "absent", "other"), [(1, "audio", "video"), (2, "video", "audio")])
def test_modality_that_never_occurs(clips, tmp_path, which, absent, other):
    folder = folder_of(tmp_path / "mine", clips[which], "train/dog", "test/dog")
    data = load(folder, tmp_path)
    said = f"none of the 10 training clips has {absent}: the model learns from {other} alone. Check the clips, or leave"
    assert lines_of(data)[1].startswith(said)
    assert lines_of(data, modalities=(other,)) == ["label: 1 classes: dog"]
    (tmp_path / "mine/train/dog/7.mp4").write_bytes(clips[0])
    assert lines_of(data) == ["label: 1 classes: dog"]


def test_clips_that_cannot_be_opened_are_left_to_the_stream(clips, tmp_path):
    data = load(folder_of(tmp_path / "mine", b"no film at all", "train/dog", "test/dog"), tmp_path)
    assert lines_of(data) == ["label: 1 classes: dog"]


def ids(part):
    return {clip_id.rpartition("@")[0] or clip_id for clip_id in part.rows["clip_id"]}


@pytest.mark.parametrize(
    "arguments",
    [BEST, {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "loss"},
     {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}],
)  # fmt: skip
def test_validation_part_is_taken_from_the_training_clips(clips, tmp_path, arguments):
    data = load(folder_of(tmp_path / "mine", clips[0], "dog", "bell"), tmp_path, **arguments)
    train, validation, test = map(ids, (data.trained, data.validation, data.evaluated))
    assert (len(train), len(validation), len(test)) == (12, 4, 4)
    assert not (train & validation | train & test | validation & test)
    assert (
        ids(load(folder_of(tmp_path / "mine", clips[0], "dog", "bell"), tmp_path, **arguments).validation) == validation
    )
    lines = lines_of(data, best_by="loss")
    assert "20 % of the files of each class of `train`, at least one, are `validation` (seed 0)" in lines[1]
    assert lines[2:] == [
        "clips per split: train 12, validation 4, test 4",
        "clips per class (train/validation/test): bell 6/2/2, dog 6/2/2",
        "the best checkpoint is chosen by loss on `validation`; `test` is evaluated once, at the end",
    ]


def test_segments_of_a_file_stay_together(clips, tmp_path):
    table = tmp_path / "clips.csv"
    rows = [f"{name}.mp4,dog,{start},{start + 0.1}\n" for name in "abcdef" for start in (0.0, 0.1)]
    for name in "abcdef":
        (tmp_path / f"{name}.mp4").write_bytes(clips[0])
    table.write_text("file,label,start,end\n" + "".join(rows))
    data = load(str(table), tmp_path, **BEST)
    assert data.validation.num_rows == 2
    assert not ids(data.trained) & ids(data.validation)


@pytest.mark.parametrize("labels", [True, False])
def test_own_validation_split_is_used_unless_it_is_reported(clips, tmp_path, labels):
    places = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("dog", "bell")]
    folder = folder_of(tmp_path / "mine", clips[0], *places)
    data = load(folder, tmp_path, labels=labels, **BEST)
    assert (data.validation.num_rows, data.validation.division, data.trained.num_rows) == (20, None, 20)
    data = load(folder, tmp_path, labels=labels, eval_split="validation", **BEST)
    assert (data.evaluated.num_rows, data.validation.num_rows, data.trained.num_rows) == (20, 4, 16)
    assert load(folder, tmp_path, labels=labels, eval_split="none", **BEST).validation.num_rows == 20
    assert load(folder, tmp_path, labels=labels).validation is None


def test_no_validation_part_is_an_error(clips, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "mine" / split / "dog").mkdir(parents=True)
        (tmp_path / "mine" / split / "dog" / "a.mp4").write_bytes(clips[0])
    with pytest.raises(ValueError, match=r"no class of .*mine has more than one file there\. Use data with a split"):
        load(str(tmp_path / "mine"), tmp_path, **BEST)
