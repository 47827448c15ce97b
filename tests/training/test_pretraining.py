"""Pretraining on a stream: bit-identical resuming, mean losses of each modality, repeatable evaluation."""

import json
import sys
from pathlib import Path

import pytest
import torch
from equality import assert_same_bits
from forked import torchrun
from safetensors.torch import load_file

from hf_avfusion import AVPreTrainer

sys.path.insert(0, str(Path(__file__).parent))
from pretraining_run import make_trainer, run

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("loss_video", "loss_audio")


def weights(folder, name):
    return load_file(folder / f"{name}.safetensors")


def logged(result, name="loss"):
    return [entry[name] for entry in result["history"] if name in entry]


def test_resuming_equals_not_stopping(tmp_path):
    """Masks, stochastic depth, order and crops are restored from checkpoints within the first and the second epoch."""
    options = {"save_strategy": "steps", "save_steps": 3}
    uninterrupted = run(tmp_path, "uninterrupted", **options)
    assert uninterrupted["steps"] == 10
    for step in (3, 9):
        again = run(tmp_path, f"from-{step}", resume=str(tmp_path / "uninterrupted" / f"checkpoint-{step}"), **options)
        assert_same_bits(weights(tmp_path, f"from-{step}"), weights(tmp_path, "uninterrupted"))
        for name in ("loss", *PARTS):
            assert logged(again, name) == logged(uninterrupted, name)


def test_losses_of_modalities_are_means_over_their_clips(tmp_path):
    """One update with batches of 4, 4 and 1 clips, some without video, has the mean losses of the single clips."""
    trainer = make_trainer(
        tmp_path, "mean", rows=9, num_train_epochs=1, gradient_accumulation_steps=3, drop_path=0.0, learning_rate=0.0
    )
    model, alone = trainer.model, {"video": [], "audio": []}
    for batch in trainer.get_train_dataloader():
        for row in range(len(batch["input_features"])):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            present = one.pop("modality_mask", torch.tensor([[True, True]]))[0]
            if not present[0]:
                del one["pixel_values"], one["video_visible"]
            with torch.no_grad():
                output = model(**one)
            alone["audio"].append(float(output.audio_loss))
            if present[0]:
                alone["video"].append(float(output.video_loss))
    assert (len(alone["video"]), len(alone["audio"])) == (6, 9)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    for modality, values in alone.items():
        assert entry[f"loss_{modality}"] == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_masks_are_the_default(tmp_path):
    """Those of the task's collator, so that an evaluation repeats its masks."""
    made = make_trainer(tmp_path, "made")
    trainer = AVPreTrainer(made.model, made.args, train_dataset=made.train_dataset)
    for given, expected in zip(trainer.get_train_dataloader(), made.get_train_dataloader(), strict=True):
        assert_same_bits(given, expected)
    assert trainer.eval_data_collator is trainer.data_collator


def test_evaluation_is_repeatable_and_does_not_disturb_the_log(tmp_path):
    trainer = make_trainer(tmp_path, "eval", eval_rows=7)
    torch.manual_seed(1)
    first = trainer.evaluate()
    torch.manual_seed(2)
    second = trainer.evaluate()
    for name in ("eval_loss", "eval_loss_video", "eval_loss_audio"):
        assert first[name] == second[name] > 0
    assert first["eval_clips"] == 7
    plain = run(tmp_path, "plain", num_train_epochs=1, logging_steps=2)
    evaluated = run(
        tmp_path, "evaluated", num_train_epochs=1, logging_steps=2, eval_rows=7, eval_strategy="steps", eval_steps=1
    )  # fmt: skip
    for name in PARTS:
        assert logged(plain, name) == logged(evaluated, name)
        assert len(logged(evaluated, f"eval_{name}")) == 5 + 1  # plus once at the end


def test_misspelt_best_metric_raises_before_the_first_step(tmp_path):
    make_trainer(tmp_path, "right", metric_for_best_model="loss_video").check_start()
    with pytest.raises(ValueError, match=r"metric_for_best_model='los': .* no such metric; did you mean loss"):
        make_trainer(tmp_path, "wrong", metric_for_best_model="los").check_start()


def test_logged_loss_is_the_weighted_sum_of_its_parts(tmp_path):
    result = run(tmp_path, "sum", num_train_epochs=1)
    for total, video, audio in zip(*(logged(result, name) for name in ("loss", *PARTS))):
        assert total == pytest.approx(0.5 * video + 0.5 * audio, abs=2e-4)  # the Trainer rounds the total


@pytest.mark.slow
def test_two_processes_log_and_learn_as_one_and_resume(tmp_path):
    """One launch for all jobs, since starting processes is slow."""
    same = {"rows": 21, "eval_rows": 13, "drop_path": 0.0}  # only one process has clips in the last step
    saving = {"rows": 21, "save_strategy": "steps", "save_steps": 2}
    jobs = [
        {"name": "two", "per_device_train_batch_size": 2, **same},
        {"name": "uninterrupted", **saving},
        {
            "name": "resumed",
            "resume": str(tmp_path / "uninterrupted" / "checkpoint-4"),
            **saving,
        },  # in the second epoch
    ]
    jobs = [{"folder": str(tmp_path), **job} for job in jobs]
    done = torchrun(tmp_path / "output", Path(__file__).with_name("pretraining_run.py"), json.dumps(jobs))
    assert done.returncode == 0, done.stderr
    assert_same_bits(weights(tmp_path, "resumed"), weights(tmp_path, "uninterrupted"))

    one, two = run(tmp_path, "one", **same), json.loads((tmp_path / "two.json").read_text())
    assert one["steps"] == two["steps"] == 12
    for name in PARTS:
        assert logged(two, name)[0] == pytest.approx(logged(one, name)[0], rel=1e-4)
        assert two["eval"][f"eval_{name}"] == pytest.approx(one["eval"][f"eval_{name}"], rel=1e-2)
    assert two["eval"]["eval_clips"] == 13
