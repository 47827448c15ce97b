"""Every option of transformers' Trainer: it works with audio-visual clips, or it is refused before anything is done."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from equality import assert_same_bits
from test_streams import launch
from test_trainer import MemoryStream, arguments, tiny_model
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.training.option_checks import REFUSED, REFUSED_WITH_STREAMS
from hf_avfusion.training.trainer import AVTrainer

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = {"eval_loss", "eval_top1_shape", "eval_top1_sound"}


class Sample:
    """Replaces decoding: the samples of a `MemoryStream` by the number of the clip."""

    def __init__(self, clips):
        self.samples = MemoryStream(clips).samples

    def __call__(self, row, generator):
        return dict(self.samples[row["number"]])


def clip_stream(clips=14, **options):
    rows = [{"clip_id": f"clip-{number}", "number": number, "video": None} for number in range(clips)]
    return ClipStream(rows, Sample(clips), **{"seed": 42, "shuffle_buffer": 8, **options})


DATA = {"list": lambda: MemoryStream().samples, "stream": clip_stream}

# name -> (data set, options). Each option has a value that is not the default of `arguments`.
RUNS = {
    "optimiser": (
        "list",
        {
            "learning_rate": 0.02, "weight_decay": 0.1, "optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.99,
            "adam_epsilon": 1e-6, "max_grad_norm": 0.5, "lr_scheduler_type": "cosine_with_min_lr", "warmup_steps": 1,
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "gradient_accumulation_steps": 2,
            "average_tokens_across_devices": False, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3,
            "neftune_noise_alpha": 5.0, "num_train_epochs": 2.0, "max_steps": 3,
        },
    ),
    "optimiser with arguments": ("stream", {"optim": "sgd", "optim_args": "momentum=0.5"}),
    "precision": (
        "stream",
        {
            "bf16": True, "bf16_full_eval": True, "activation_checkpointing": True, "skip_memory_metrics": False,
            "activation_checkpointing_kwargs": {"use_reentrant": False}, "torch_empty_cache_steps": 1, "tf32": False,
        },
    ),
    "half precision and old names": (
        "list",
        {
            "fp16": True, "fp16_full_eval": True, "gradient_checkpointing": True, "prediction_loss_only": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
    ),
    "evaluation": (
        "stream",
        {
            "eval_strategy": "steps", "eval_steps": 1, "eval_delay": 1, "eval_on_start": True, "eval_accumulation_steps": 1,
            "eval_do_concat_batches": False, "eval_use_gather_object": True, "metric_for_best_model": "eval_top1_shape",
            "greater_is_better": True, "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1,
            "save_total_limit": 1, "save_only_model": True, "save_on_each_node": True,
        },
    ),
    "loading": (
        "stream",
        {
            "dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3,
            "dataloader_multiprocessing_context": "fork", "dataloader_pin_memory": False, "dataloader_drop_last": True,
            "data_seed": 42, "full_determinism": True, "do_train": True, "do_eval": True, "do_predict": True,
        },
    ),
    "loading with accelerate": (
        "list",
        {
            "dataloader_in_order": False, "accelerator_config": {"even_batches": False}, "seed": 3, "data_seed": 5,
            "train_sampling_strategy": "sequential", "auto_find_batch_size": True,
        },
    ),
    "logging": (
        "stream",
        {
            "logging_strategy": "epoch", "logging_steps": 2, "logging_first_step": True, "log_on_each_node": False,
            "logging_nan_inf_filter": False, "log_level": "error", "log_level_replica": "error", "disable_tqdm": False,
            "run_name": "mine", "project": "mine", "trackio_space_id": "a", "trackio_bucket_id": "a",
            "trackio_static_space_id": "a", "debug": "underflow_overflow", "ddp_timeout": 60, "local_rank": -1,
            "enable_jit_checkpoint": True, "hub_always_push": True, "hub_revision": "a", "hub_private_repo": True,
        },
    ),
}  # fmt: skip
SLOW_RUNS = {
    "compiled": ("stream", {"torch_compile": True, "torch_compile_backend": "eager", "torch_compile_mode": "default"})
}
TWO_PROCESSES = {
    "ddp_backend": "gloo", "ddp_bucket_cap_mb": 1, "ddp_broadcast_buffers": False, "ddp_find_unused_parameters": True,
    "ddp_static_graph": False,
}  # fmt: skip

# Option, value, message; refused by the arguments, or by the trainer on a list or a stream of clips.
WRONG = [
    ("batch_eval_metrics", True, "metrics are computed from the scores of all clips.* leave it False"),
    ("use_cache", True, "generate no text"),
    ("use_liger_kernel", True, "no kernels for these models"),
    ("liger_kernel_config", {"rope": True}, "no kernels for these models"),
    ("include_num_input_tokens_seen", "all", "clips have none: leave it at 'no'"),
    ("length_column_name", "seconds", "all clips of a model have the same"),
    ("train_sampling_strategy", "group_by_length", "choose 'random' or 'sequential'"),
    ("include_for_metrics", ["inputs"], "only 'loss' is allowed.* Leave it out"),
    ("include_for_metrics", ["loss"], "the metrics of the task do not use it.* or pass compute_metrics"),
    ("label_names", None, "batches hold their labels as 'labels' only"),
    ("label_names", ["labels", "verb"], "batches hold their labels as 'labels' only"),
    ("label_smoothing_factor", 0.1, "set `label_smoothing` in the model's configuration"),
    ("remove_unused_columns", True, "would remove columns that the collator needs"),
    ("optim_args", "momentum=0.5", "optim='adamw_torch_fused' does not use it"),
    ("optim_target_modules", ["query"], "optim='adamw_torch_fused' does not use it"),
    ("tf32", True, "--tf32 requires"),
    ("fsdp", "full_shard", "fsdp"),
]
WRONG_WITH_STREAMS = [
    ("train_sampling_strategy", "sequential", r"a stream has its own order.* ClipStream\(shuffle_buffer=0\)"),
    ("dataloader_in_order", False, "only if its batches keep their order"),
    ("data_seed", 5, r"its own seed, which is 42.* ClipStream\(seed=5\)"),
    ("accelerator_config", {"dispatch_batches": True}, "is read without accelerate"),
]
CONTRADICTING = [
    ({"optimizer": "momentum_sgd", "optim": "sgd"}, "optim=.* belongs to optimizer='trainer', but optimizer is 'momentum_sgd'"),
    ({"optimizer": "adam_decoupled", "optim_args": "a=1"}, "optim_args='a=1': it belongs to optimizer='trainer'"),
    ({"optimizer": "momentum_sgd", "adam_beta2": 0.9}, "adam_beta2=0.9: optimizer='momentum_sgd' has no such value"),
    ({"optim": "sgd", "adam_beta2": 0.9}, "adam_beta2=0.9: optim='sgd' does not use it"),
    ({"momentum": 0.5}, "momentum=0.5: it belongs to optimizer='momentum_sgd', but optimizer is 'trainer'"),
    ({"schedule": "warmup_cosine", "lr_scheduler_type": "cosine"}, "lr_scheduler_type=.* belongs to schedule='trainer'"),
    ({"schedule": "warmup_cosine", "warmup_epochs": 1.0, "warmup_steps": 3}, "warmup_epochs=1.0 sets the warm-up already"),
]  # fmt: skip
# Options that other tests try.
ELSEWHERE = {
    "output_dir", "report_to", "use_cpu",  # `arguments`
    "deepspeed", "fsdp_config",  # test_streams.py
    "resume_from_checkpoint", "ignore_data_skip",  # test_streams.py
    "push_to_hub", "hub_model_id", "hub_token", "hub_strategy",  # test_hub_push.py
    "parallelism_config", "restore_callback_states_from_checkpoint",  # below
}  # fmt: skip


@pytest.fixture(autouse=True)
def deterministic_algorithms_off():
    yield
    torch.use_deterministic_algorithms(False)


def test_every_option_is_tried():
    tried = {name for _, options in (RUNS | SLOW_RUNS).values() for name in options} | TWO_PROCESSES.keys() | ELSEWHERE
    tried |= {name for name, *_ in WRONG + WRONG_WITH_STREAMS}
    assert {field.name for field in fields(TrainingArguments)} == tried


@pytest.mark.parametrize("name", [*RUNS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_RUNS)])
def test_options_work(tmp_path, name):
    kind, options = (RUNS | SLOW_RUNS)[name]
    args = arguments(tmp_path, **{"max_steps": 2, **options})
    trainer = AVTrainer(tiny_model(), args, train_dataset=DATA[kind](), eval_dataset=DATA[kind]())
    result = trainer.train()
    assert result.global_step == args.max_steps
    assert np.isfinite(result.training_loss)
    metrics = trainer.evaluate()
    assert np.isfinite(metrics["eval_loss"])
    assert (metrics.keys() >= RESULTS) == (not args.prediction_loss_only)
    predicted = trainer.predict(DATA[kind]())
    if not args.prediction_loss_only:
        logits = predicted.predictions if args.eval_do_concat_batches else np.concatenate(predicted.predictions)
        assert logits.shape == (14, 5)
        assert np.isfinite(logits).all()


def test_batches_that_stay_apart_have_the_same_metrics(tmp_path):
    one, two = (
        AVTrainer(
            tiny_model(), arguments(tmp_path, eval_do_concat_batches=concat), eval_dataset=clip_stream()
        ).evaluate()
        for concat in (True, False)
    )
    assert {name: one[name] for name in RESULTS} == {name: two[name] for name in RESULTS}


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_refused_options(tmp_path, name, value, message):
    with pytest.raises(ValueError, match=message):
        AVTrainer(tiny_model(), arguments(tmp_path, **{name: value}), train_dataset=MemoryStream())


@pytest.mark.parametrize(("name", "value", "message"), WRONG_WITH_STREAMS)
def test_options_refused_with_streams(tmp_path, name, value, message):
    args = arguments(tmp_path, **{name: value})
    AVTrainer(tiny_model(), args, train_dataset=MemoryStream().samples)
    with pytest.raises(ValueError, match=message):
        AVTrainer(tiny_model(), args, train_dataset=clip_stream())


@pytest.mark.parametrize(("options", "message"), CONTRADICTING)
def test_contradicting_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        AVTrainer(tiny_model(), arguments(tmp_path, **{"lr_scheduler_type": "linear", **options}))


def test_options_that_need_more_processes_or_packages_are_refused(tmp_path):
    for options, error, message in (
        ({"parallelism_config": ParallelismConfig(tp_size=2)}, ValueError, "RANK expected"),
        ({"optim": "galore_adamw", "optim_target_modules": ["query"]}, ImportError, "galore"),
    ):
        with pytest.raises(error, match=message):
            AVTrainer(tiny_model(), arguments(tmp_path, **options), train_dataset=clip_stream())


def test_docs_list_the_refused_options():
    text = (DOCS / "training_at_scale.md").read_text()
    for name in (*REFUSED, *REFUSED_WITH_STREAMS, *(name for name, *_ in WRONG if name not in ("tf32", "fsdp"))):
        assert f"`{name}" in text, name


def test_loss_for_own_metrics(tmp_path):
    def metrics(prediction):
        return {"largest_loss": float(prediction.losses.max())}

    args = arguments(tmp_path, include_for_metrics=["loss"])
    trainer = AVTrainer(tiny_model(), args, eval_dataset=clip_stream(), compute_metrics=metrics)
    scores = trainer.evaluate()
    assert scores["eval_largest_loss"] >= scores["eval_loss"]


class Preempted(TrainerCallback):
    """Asks for a checkpoint in the middle of an update, as a SIGTERM does."""

    def __init__(self, trainer):
        [self.manager] = [
            callback.jit_manager
            for callback in trainer.callback_handler.callbacks
            if isinstance(callback, JITCheckpointCallback)
        ]

    def on_substep_end(self, args, state, control, **kwargs):
        self.manager.is_checkpoint_requested |= state.global_step == 2


def test_checkpoint_on_sigterm_resumes_exactly(tmp_path):
    options = {"max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    options["restore_callback_states_from_checkpoint"] = True

    def made(name, **more):
        args = arguments(tmp_path / name, **options, **more)
        return AVTrainer(tiny_model(), args, train_dataset=clip_stream())

    uninterrupted, stopped = made("uninterrupted"), made("stopped", enable_jit_checkpoint=True)
    uninterrupted.train()
    stopped.add_callback(Preempted(stopped))
    stopped.train()
    assert stopped.state.global_step == 3
    resumed = made("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    assert_same_bits(resumed.model.state_dict(), uninterrupted.model.state_dict())


@pytest.mark.slow
def test_options_of_two_processes(tmp_path):
    done = launch(
        {"folder": str(tmp_path), "name": "two", "max_steps": 2, "eval_rows": 5, **TWO_PROCESSES}, processes=2
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.json").is_file()
