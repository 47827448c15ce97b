"""Training on a `ClipStream`: interrupted runs, several processes, undecodable clips. Tests use this process where possible, else
real processes, which torchrun launches or which are killed.
"""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from equality import assert_same_bits, assert_trained_alike
from forked import run_forked, torchrun
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from stream_run import run

from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification

ROOT = Path(__file__).resolve().parents[2]
BROKEN = (5, 11, 30)


def start(*jobs, torchrun):
    """Starts torchrun with these options, which runs the jobs one after the other."""
    path = f"{Path(__file__).resolve().parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun]
    command += [str(Path(__file__).with_name("stream_run.py")), json.dumps(jobs)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(*jobs, processes=1):
    """Runs the jobs one after the other in one or several forked processes."""
    output = Path(jobs[0]["folder"]) / "output"
    run = run_forked if processes == 1 else partial(torchrun, processes=processes)
    return run(output, Path(__file__).with_name("stream_run.py"), json.dumps(jobs))


def weights(folder, name):
    return load_file(folder / f"{name}.safetensors")


def decoded(folder, name, ranks=1):
    files = [folder / f"{name}-{rank}.log" for rank in range(ranks)]
    return [file.read_text().split() if file.exists() else [] for file in files]


SAVING = {"save_strategy": "steps", "save_steps": 3, "drop_path": 0.3, "broken": BROKEN, "mixup": 0.4}


# One step with learning rate 0, since two processes would have another batch size.
VIEWS = {
    "rows": 8, "max_steps": 1, "learning_rate": 0.0, "eval_rows": 13, "eval_views": 3, "eval_views_per_step": 5,
}  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
def test_resuming_equals_not_stopping_and_decodes_nothing_twice(tmp_path, streamed):
    """Ten batches per epoch, or fewer due to broken clips; resumes from checkpoints within the first and the second epoch."""
    uninterrupted = run(tmp_path, "uninterrupted", streamed=streamed, **SAVING)
    assert uninterrupted["steps"] == 18  # 34 of 37 rows decode: nine batches instead of ten, twice
    assert uninterrupted["train"]["skipped_clips"] == 2 * len(BROKEN)
    every = decoded(tmp_path, "uninterrupted-train")[0]
    assert len(every) == 2 * 37
    for step in (3, 12):
        name = f"resumed-{step}"
        again = run(
            tmp_path, name, streamed=streamed, resume=str(tmp_path / "uninterrupted" / f"checkpoint-{step}"), **SAVING
        )
        assert again["steps"] == 18
        assert again["train"]["skipped_clips"] == 2 * len(BROKEN)
        assert_same_bits(weights(tmp_path, "uninterrupted"), weights(tmp_path, name))
        rest = decoded(tmp_path, f"{name}-train")[0]
        assert rest == every[-len(rest) :]
        state = json.loads((tmp_path / "uninterrupted" / f"checkpoint-{step}" / "stream_state_0.json").read_text())
        assert len(rest) == 2 * 37 - 37 * (step // 9) - sum(state["stream"]["rows_read"])


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},  # 9 batches of at most 10: the last of 5 steps has one batch
        {"max_steps": 17, "num_train_epochs": 1},
        {"save_strategy": "epoch"},
        {"gradient_accumulation_steps": 2, "save_strategy": "epoch", "dataloader_drop_last": True},
    ],
)
def test_resuming_with_various_arguments(tmp_path, options):
    options = {**SAVING, "streamed": False, **options}
    uninterrupted = run(tmp_path, "uninterrupted", **options)
    assert uninterrupted["steps"] == options.get("max_steps", uninterrupted["steps"])
    checkpoints = sorted((tmp_path / "uninterrupted").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    checkpoints = [path for path in checkpoints if int(path.name[11:]) < uninterrupted["steps"]]
    assert checkpoints
    for number, checkpoint in enumerate(checkpoints):
        again = run(tmp_path, f"again-{number}", resume=str(checkpoint), **options)
        assert again["steps"] == uninterrupted["steps"]
        assert again["train"]["skipped_clips"] == uninterrupted["train"]["skipped_clips"]
        assert_same_bits(weights(tmp_path, "uninterrupted"), weights(tmp_path, f"again-{number}"))


@pytest.mark.parametrize(
    "options",
    [
        {"mix": {"probabilities": [0.6, 0.4], "stopping_strategy": "first_exhausted", "seed": 2}},
        pytest.param(
            {"mix": {"stopping_strategy": "all_exhausted", "probabilities": [0.7, 0.3]}, "streamed": True},
            marks=pytest.mark.slow,  # the longest: it has the most checkpoints
        ),
        {"balanced": True},
    ],
)
def test_resuming_interleaved_and_balanced_streams(tmp_path, options):
    options = {"rows": 17, "streamed": False, **SAVING, **options}
    uninterrupted = run(tmp_path, "uninterrupted", **options)
    steps = sorted(int(path.name[11:]) for path in (tmp_path / "uninterrupted").glob("checkpoint-*"))[:-1]
    assert any(step < uninterrupted["steps"] / 2 for step in steps)
    counts = {name: uninterrupted["train"][name] for name in ("skipped_clips", "repeated_clips", "left_out_clips")}
    assert sum(counts.values()) > counts["skipped_clips"] > 0
    for step in steps:
        again = run(tmp_path, f"again-{step}", resume=str(tmp_path / "uninterrupted" / f"checkpoint-{step}"), **options)
        assert {name: again["train"][name] for name in counts} == counts
        assert_same_bits(weights(tmp_path, "uninterrupted"), weights(tmp_path, f"again-{step}"))
    every, rest = (decoded(tmp_path, f"{name}-train")[0] for name in ("uninterrupted", f"again-{steps[-1]}"))
    assert rest == every[-len(rest) :] if rest else True
    inside = str(tmp_path / "uninterrupted" / f"checkpoint-{steps[0]}")
    for other, message in (({"workers": 2}, "workers was 1 and is 2"), ({"mix": None, "balanced": False}, "rows was ")):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, "failing", resume=inside, **{**options, **other})


def test_resuming_a_stream_of_unknown_length(tmp_path, monkeypatch):
    import stream_run

    def without_length(*args, **options):
        made = make(*args, **options)
        made.num_rows = None
        return made

    make = stream_run.make_stream
    monkeypatch.setattr(stream_run, "make_stream", without_length)
    options = {**SAVING, "max_steps": 21}
    assert run(tmp_path, "uninterrupted", **options)["steps"] == 21
    run(tmp_path, "again", resume=str(tmp_path / "uninterrupted" / "checkpoint-12"), **options)
    assert_same_bits(weights(tmp_path, "uninterrupted"), weights(tmp_path, "again"))


def test_short_batches_are_weighted_by_their_clips(tmp_path):
    """One step over 4 + 2 accumulated clips equals one over a batch of 6."""
    options = {"rows": 6, "num_train_epochs": 1, "streamed": False}
    run(tmp_path, "accumulated", gradient_accumulation_steps=2, **options)
    run(tmp_path, "at-once", per_device_train_batch_size=6, **options)
    expected, got = weights(tmp_path, "at-once"), weights(tmp_path, "accumulated")
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_drop_last_drops_incomplete_updates(tmp_path, workers):
    """37 clips give four batches of 8, so they must give four updates of two batches of 4, not five."""
    options = {"dataloader_drop_last": True, "schedule": "warmup_cosine", "warmup_epochs": 0.5, "num_train_epochs": 3}
    one = run(tmp_path, "at-once", per_device_train_batch_size=8, **options)
    accumulated = {"gradient_accumulation_steps": 2, "workers": workers, "save_strategy": "steps", "save_steps": 3}
    accumulated |= {"dataloader_persistent_workers": workers > 0}
    two = run(tmp_path, "accumulated", **accumulated, **options)
    assert one["steps"] == two["steps"] == 12
    rates = [[entry["learning_rate"] for entry in done["history"] if "learning_rate" in entry] for done in (one, two)]
    assert rates[0] == rates[1]
    expected, got = weights(tmp_path, "at-once"), weights(tmp_path, "accumulated")
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6)
    for step in (3, 6):
        again = {"resume": str(tmp_path / "accumulated" / f"checkpoint-{step}"), **accumulated, **options}
        assert run(tmp_path, f"again-{step}", **again)["steps"] == 12
        assert_same_bits(got, weights(tmp_path, f"again-{step}"))


def test_resuming_within_an_epoch_with_another_division_raises(tmp_path):
    run(tmp_path, "uninterrupted", max_steps=10, save_strategy="steps", save_steps=5)
    inside, ended = (str(tmp_path / "uninterrupted" / f"checkpoint-{step}") for step in (5, 10))
    for options, message in (
        ({"workers": 2}, "workers was 1 and is 2"),
        ({"per_device_train_batch_size": 2}, "batch_size was 4 and is 2"),
        ({"rows": 36}, "num_rows was 37 and is 36"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: it was 1 and is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, "failing", max_steps=12, resume=inside, **options)
    # After the end of an epoch, the division may change.
    done = run(tmp_path, "next", max_steps=12, resume=ended, workers=2)
    assert done["steps"] == 12


def test_checkpoint_without_stream_state_raises(tmp_path):
    run(tmp_path, "uninterrupted", max_steps=2, save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "uninterrupted" / "checkpoint-2"
    (checkpoint / "stream_state_0.json").unlink()
    with pytest.raises(ValueError, match=r"no stream_state_0\.json.*ignore_data_skip"):
        run(tmp_path, "again", max_steps=3, resume=str(checkpoint))
    assert run(tmp_path, "from-start", max_steps=3, resume=str(checkpoint), ignore_data_skip=True)["steps"] == 3


def test_incomplete_checkpoint_raises_or_is_skipped(tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "drop_path": 0.3}
    run(tmp_path, "uninterrupted", **options)
    state = tmp_path / "uninterrupted" / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (tmp_path / "uninterrupted" / "checkpoint-8" / "trainer_state.json").unlink()
    for step in (6, 8):
        with pytest.raises(ValueError, match=f"checkpoint-{step}, is incomplete.*Complete ones are: .*checkpoint-3"):
            run(tmp_path, "failing", resume=str(tmp_path / "uninterrupted" / f"checkpoint-{step}"), **options)
    expected = weights(tmp_path, "uninterrupted")
    (tmp_path / "uninterrupted.safetensors").unlink()
    run(tmp_path, "uninterrupted", resume=True, **options)
    assert_same_bits(expected, weights(tmp_path, "uninterrupted"))


@pytest.mark.parametrize("streamed", [False, True])
def test_run_without_a_batch_raises(tmp_path, streamed):
    with pytest.raises(RuntimeError, match=r"Epoch 0 has no batch to train on.* \(6 so far"):
        run(tmp_path, "broken", rows=6, broken=range(6), streamed=streamed)
    for options in ({}, {"max_steps": 3}):
        few = {"rows": 5, "streamed": streamed, "per_device_train_batch_size": 8, **options}
        with pytest.raises(ValueError, match=r"has 5 clips, less than one batch .*dataloader_drop_last false"):
            run(tmp_path, "few", dataloader_drop_last=True, **few)
        assert run(tmp_path, "kept", **few)["steps"] == options.get("max_steps", 2)


def test_evaluation_counts_clips(tmp_path):
    done = run(tmp_path, "one", max_steps=1, eval_rows=13, eval_broken=(2, 7))
    assert (done["eval"]["eval_clips"], done["eval"]["eval_skipped_clips"]) == (11, 2)
    assert done["labels"] == [n % 3 for n in range(13) if n not in (2, 7)]


@pytest.mark.slow
def test_killed_and_resumed_in_one_process(tmp_path):
    """kill -9 in the middle of the second epoch with two workers; the resumed run has the weights of an uninterrupted one.

    The process of the test resumes the run. That a new process can is tested with two of them.
    """
    options = {"folder": str(tmp_path), "workers": 2, **SAVING}
    killed = launch({"name": "killed", "kill_at": 14, **options})
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "killed" / "checkpoint-12").is_dir()
    assert not (tmp_path / "killed.safetensors").exists()
    before = len(decoded(tmp_path, "killed-train")[0])
    run(name="resumed", resume=str(tmp_path / "killed" / "checkpoint-12"), **options)
    assert run(name="uninterrupted", **options)["steps"] > 14
    assert_same_bits(weights(tmp_path, "uninterrupted"), weights(tmp_path, "resumed"))
    state = json.loads((tmp_path / "killed" / "checkpoint-12" / "stream_state_0.json").read_text())
    assert state["stream"]["epoch"] == 1
    read = sum(state["stream"]["rows_read"])
    assert 0 < read < 37 <= before
    # The second run decodes only the rows after the checkpoint, each once.
    rest = decoded(tmp_path, "resumed-train")[0]
    assert len(rest) == len(set(rest)) == 37 - read


def test_evaluation_without_decodable_clips_raises(tmp_path, caplog):
    options = {"max_steps": 2, "eval_rows": 5, "eval_broken": range(5)}
    with pytest.raises(ValueError, match=r"No clip of the evaluation set was evaluated: 5 could not be decoded"):
        run(tmp_path, "after", **options)
    caplog.clear()
    with pytest.raises(ValueError, match="No clip"):  # the training itself finishes
        run(tmp_path, "within", eval_strategy="steps", eval_steps=1, **options)
    assert len([record for record in caplog.records if "No clip of the evaluation set" in record.message]) == 2


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """One launch of two processes: an uninterrupted run, runs to compare with a single process, and a run that is killed."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [
        {"name": "uninterrupted", "eval_rows": 37, "eval_broken": (2, 7, 20), **SAVING},
        # 33 clips: the last step has one clip, so only one process has a clip
        {"name": "same", "rows": 33, "num_train_epochs": 1, "eval_rows": 37},
        {
            "name": "accumulated",
            "rows": 27,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "logging_steps": 3,
        },
        {
            "name": "mixed",
            "rows": 19,
            "broken": BROKEN,
            "mix": {"stopping_strategy": "all_exhausted", "probabilities": [0.6, 0.4]},
            "streamed": False,
            "num_train_epochs": 1,
        },
        {"name": "foreign", "rows": 16, "num_train_epochs": 1, "eval_rows": 13, "foreign": True},
        {"name": "views", **VIEWS},
        {"name": "killed", "kill_at": 7, **SAVING},
    ]
    done = launch(*({"folder": str(folder), **job} for job in jobs), processes=2)
    assert -9 in done.failures, done.stderr
    assert (folder / "views.json").exists(), done.stderr  # the jobs before the kill finished
    return folder


@pytest.mark.slow
def test_two_processes_equal_one(two_processes, tmp_path):
    """Each step has the same clips, the last one fewer: weights, logged losses and evaluation agree."""
    for name, options in (
        ("same", {"rows": 33, "num_train_epochs": 1, "eval_rows": 37, "per_device_train_batch_size": 8}),
        ("accumulated", {"rows": 27, "per_device_train_batch_size": 8, "logging_steps": 3}),
    ):
        one = run(tmp_path, name, **options)
        two = json.loads((two_processes / f"{name}.json").read_text())
        assert (one["world_size"], two["world_size"]) == (1, 2)
        assert one["steps"] == two["steps"]
        expected, got = weights(tmp_path, name), weights(two_processes, name)
        for tensor in expected:
            torch.testing.assert_close(got[tensor], expected[tensor], rtol=1e-4, atol=1e-6)
        losses = [[entry["loss"] for entry in result["history"] if "loss" in entry] for result in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        assert two["train"]["train_loss"] == pytest.approx(one["train"]["train_loss"], rel=1e-4)
        if "eval" not in one:
            continue
        assert two["eval"]["eval_clips"] == 37
        for metric in ("eval_loss", "eval_top1"):
            assert two["eval"][metric] == pytest.approx(one["eval"][metric], rel=1e-4)
        assert two["labels"] == one["labels"] == [n % 3 for n in range(37)]
        torch.testing.assert_close(
            torch.tensor(two["predictions"]), torch.tensor(one["predictions"]), rtol=1e-3, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("per_device", [4, 8])
def test_views_in_two_processes_equal_one(two_processes, tmp_path, per_device):
    """13 clips with three views: the last batch has five clips, three for one process and two for the other."""
    one = run(tmp_path, "views", **{**VIEWS, "per_device_eval_batch_size": per_device})
    two = json.loads((two_processes / "views.json").read_text())
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for metric in ("eval_loss", "eval_top1"):
        assert two["eval"][metric] == pytest.approx(one["eval"][metric], rel=1e-4)
    assert one["labels"] == two["labels"] == [n % 3 for n in range(13)]
    for done in (one, two):
        assert (done["eval"]["eval_views"], done["eval"]["eval_clips"], done["eval"]["eval_skipped_clips"]) == (
            3,
            13,
            0,
        )
        assert done["views"]["clips"] == [f"clip-{n}" for n in range(13)]
        assert done["views"]["skipped"] == 0
        for logits in (done["predictions"], done["views"]["logits"]):
            torch.testing.assert_close(torch.tensor(logits), torch.tensor(one["predictions"]), rtol=1e-3, atol=1e-5)


def test_broken_clips_with_several_views_are_counted(tmp_path):
    done = run(tmp_path, "one", **{**VIEWS, "eval_broken": (2, 7)})
    assert (done["eval"]["eval_clips"], done["eval"]["eval_skipped_clips"], done["eval"]["eval_views"]) == (11, 2, 3)
    assert (len(done["views"]["clips"]), done["views"]["skipped"]) == (11, 2)


@pytest.mark.slow
def test_two_processes_decode_every_row_once(two_processes):
    names = {f"clip-{n}" for n in range(37)}
    trained = decoded(two_processes, "uninterrupted-train", ranks=2)
    assert all(trained)
    assert sorted(trained[0] + trained[1]) == sorted([*names, *names])  # two epochs
    assert set(trained[0][:18]) & set(trained[1][:18]) == set()
    result = json.loads((two_processes / "uninterrupted.json").read_text())
    assert result["train"]["skipped_clips"] == 2 * len(BROKEN)
    evaluated = decoded(two_processes, "uninterrupted-eval", ranks=2)
    assert sorted(evaluated[0] + evaluated[1]) == sorted([*names, *names])  # evaluate and predict
    assert (result["eval"]["eval_clips"], result["eval"]["eval_skipped_clips"]) == (34, 3)
    assert sorted(result["labels"]) == sorted(n % 3 for n in range(37) if n not in (2, 7, 20))


@pytest.fixture(scope="module")
def two_later_processes(two_processes, tmp_path_factory):
    """A second launch of two processes: it resumes the run that was killed, and trains with FSDP."""
    folder = tmp_path_factory.mktemp("later")
    sharded = {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
    jobs = [
        {"name": "resumed", "resume": str(two_processes / "killed" / "checkpoint-6")},
        {"name": "full", "fsdp": True, "eval_rows": 37, "eval_broken": (2, 7, 20)},
        {"name": "full-again", "fsdp": True, "resume": str(folder / "full" / "checkpoint-6")},
        {"name": "sharded", **sharded},
        {"name": "sharded-again", "resume": str(folder / "sharded" / "checkpoint-6"), **sharded},
        # accelerate would not shard here, without any warning
        {"name": "failing", "fsdp": True, "pretend": False},
    ]
    done = launch(*({"folder": str(folder), **SAVING, **job} for job in jobs), processes=2)
    assert done.returncode != 0
    assert "--fsdp needs several accelerators, since accelerate would train without sharding here" in done.stderr, (
        done.stderr
    )
    return folder


@pytest.mark.slow
def test_fsdp_equals_ddp_and_resumes(two_processes, two_later_processes):
    """Full and sharded checkpoints: weights equal DDP's up to rounding, and resuming is bit-identical."""
    folder = two_later_processes
    expected = weights(two_processes, "uninterrupted")
    for name in ("full", "full-again", "sharded", "sharded-again"):
        result = json.loads((folder / f"{name}.json").read_text())
        assert result["world_size"] == 2
        assert set(result["sharded"]) == set(expected)  # every tensor
        trained = weights(folder, name)
        assert_trained_alike(trained, expected)
        assert_same_bits(weights(folder, name.removesuffix("-again")), trained)
        saved = MBTForAudioVisualClassification.from_pretrained(folder / f"{name}-model")
        assert_same_bits(saved.state_dict(), trained)
    assert not list((folder / "sharded" / "checkpoint-6").glob("*.safetensors"))
    ddp = json.loads((two_processes / "uninterrupted.json").read_text())
    full = json.loads((folder / "full.json").read_text())
    assert full["labels"] == ddp["labels"]
    assert full["eval"]["eval_loss"] == pytest.approx(ddp["eval"]["eval_loss"], rel=1e-5)
    for name in ("eval_clips", "eval_skipped_clips"):
        assert full["eval"][name] == ddp["eval"][name]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_agrees_with_ddp_and_resumes(deepspeed, two_processes, tmp_path, stage):
    """Sharded optimisers and weights: equal to DDP's up to rounding; a resumed run is bit-identical to an uninterrupted one."""
    sharing = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    dividing = {"deepspeed": {**dict.fromkeys(keys, "auto"), "zero_optimization": sharing}}
    jobs = [
        {"name": "uninterrupted", "eval_rows": 37, "eval_broken": (2, 7, 20), **SAVING, **dividing},
        {"name": "again", "resume": str(tmp_path / "uninterrupted" / "checkpoint-6"), **SAVING, **dividing},
        {"name": "same", "rows": 33, "num_train_epochs": 1, "eval_rows": 37, **dividing},
        {
            "name": "accumulated",
            "rows": 27,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            **dividing,
        },
    ]
    done = launch(*({"folder": str(tmp_path), **job} for job in jobs), processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_bits(weights(tmp_path, "uninterrupted"), weights(tmp_path, "again"))
    for name in ("uninterrupted", "same", "accumulated"):
        assert_trained_alike(weights(tmp_path, name), weights(two_processes, name))
        ddp, result = (json.loads((folder / f"{name}.json").read_text()) for folder in (two_processes, tmp_path))
        assert result["world_size"] == 2
        assert result["steps"] == ddp["steps"]
        if "eval" in ddp:
            assert result["eval"]["eval_loss"] == pytest.approx(ddp["eval"]["eval_loss"], rel=1e-5)
            assert result["eval"]["eval_clips"] == ddp["eval"]["eval_clips"]
    if stage == 3:
        del sharing["stage3_gather_16bit_weights_on_model_save"]
        done = launch({"folder": str(tmp_path), "name": "failing", **dividing}, processes=2)
        assert "ZeRO-3 would not save the trained model; set" in done.stderr


@pytest.mark.slow
def test_two_nodes_equal_two_processes(two_processes, tmp_path):
    """Two torchrun agents that connect at an address, as on two machines, with one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "test"]
    nodes = [
        start(
            {"folder": str(tmp_path), "name": "nodes", **SAVING},
            torchrun=[
                *options,
                "--rdzv_endpoint",
                f"localhost:{port}",
                "--node_rank",
                str(node),
                "--local_addr",
                "localhost",
            ],
        )
        for node in range(2)
    ]
    errors = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert json.loads((tmp_path / "nodes.json").read_text())["world_size"] == 2
    assert all(decoded(tmp_path, "nodes-train", ranks=2))
    assert_same_bits(weights(two_processes, "uninterrupted"), weights(tmp_path, "nodes"))


@pytest.mark.slow
def test_two_processes_divide_interleaved_rows(two_processes, tmp_path):
    """Each drawn row is decoded by one process, and counts are summed over both."""
    two = json.loads((two_processes / "mixed.json").read_text())
    one = run(
        tmp_path, "mixed", rows=19, broken=BROKEN, streamed=False, num_train_epochs=1, per_device_train_batch_size=8,
        mix={"stopping_strategy": "all_exhausted", "probabilities": [0.6, 0.4]},
    )  # fmt: skip
    alone, parts = decoded(tmp_path, "mixed-train")[0], decoded(two_processes, "mixed-train", ranks=2)
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(alone)
    for name in ("skipped_clips", "repeated_clips", "left_out_clips"):
        assert two["train"][name] == one["train"][name]
    assert two["train"]["skipped_clips"] >= len(BROKEN)
    assert two["train"]["repeated_clips"] == len(alone) - len(set(alone)) > 0


@pytest.mark.slow
def test_stream_that_cannot_be_split_is_read_by_one_process(two_processes):
    result = json.loads((two_processes / "foreign.json").read_text())
    assert (result["world_size"], result["steps"]) == (2, 2)
    trained = decoded(two_processes, "foreign-train", ranks=2)
    assert (sorted(trained[0]), trained[1]) == (sorted(f"clip-{n}" for n in range(16)), [])
    assert result["labels"] == [n % 3 for n in range(13)]


@pytest.mark.slow
def test_two_processes_killed_and_resumed(two_processes, two_later_processes, tmp_path):
    checkpoint = two_processes / "killed" / "checkpoint-6"
    state = json.loads((checkpoint / "stream_state_1.json").read_text())
    assert (state["stream"]["epoch"], state["epoch_ended"]) == (1, False)  # within the second epoch
    assert_same_bits(weights(two_processes, "uninterrupted"), weights(two_later_processes, "resumed"))
    uninterrupted, rest = (
        decoded(folder, f"{name}-train", 2)
        for folder, name in ((two_processes, "uninterrupted"), (two_later_processes, "resumed"))
    )
    for rank in (0, 1):
        assert 0 < len(rest[rank]) < 37 / 2
        assert rest[rank] == uninterrupted[rank][-len(rest[rank]) :]
    with pytest.raises(ValueError, match="number of processes: it was 2 and is 1"):
        run(tmp_path, "alone", resume=str(checkpoint), **SAVING)
