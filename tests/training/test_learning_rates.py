"""Learning rates by name and step decay: bit-equal to torch's Adam with StepLR, saved, resumed and checked."""

import pytest
import torch
from stream_run import run
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR
from transformers import TrainerCallback

from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.optimization import groups_by_rate
from hf_avfusion.training.trainer import AVTrainer

PUBLISHED = {"optimizer": "adam", "learning_rate": 5e-3, "schedule": "step", "decay_epochs": 1, "decay_factor": 0.35}


class Recorder(TrainerCallback):
    """Keeps the first weights, and the gradients and learning rates of every update."""

    def __init__(self):
        self.start, self.gradients, self.rates = {}, [], []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.start = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.gradients.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )
        self.rates.append([group["lr"] for group in optimizer.param_groups])


@pytest.fixture
def recorded(monkeypatch):
    recorder, build = Recorder(), AVTrainer.__init__
    monkeypatch.setattr(
        AVTrainer,
        "__init__",
        lambda self, *args, callbacks=None, **own: build(self, *args, callbacks=[recorder], **own),
    )
    return recorder


@pytest.mark.parametrize("rates", [None, {"classifier": 4e-3, r"layers\.1\.": 1e-2}])
def test_updates_are_those_of_adam_with_step_lr(recorded, tmp_path, rates):
    from safetensors.torch import load_file

    run(tmp_path, "own", rows=8, num_train_epochs=4, learning_rates=rates, **PUBLISHED)
    parameters = {name: torch.nn.Parameter(value) for name, value in recorded.start.items()}

    def rate(name):
        return next((each for pattern, each in (rates or {}).items() if pattern.replace("\\", "") in name), 5e-3)

    groups = [{"params": [value], "lr": rate(name)} for name, value in parameters.items()]
    optimizer = Adam(groups)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.35)  # of epochs
    for number, gradients in enumerate(recorded.gradients):
        for name, value in parameters.items():
            value.grad = gradients.get(name)
        optimizer.step()
        if number % 2 == 1:
            scheduler.step()
    assert len(recorded.gradients) == 8
    trained = load_file(tmp_path / "own.safetensors")
    for name, value in parameters.items():
        assert torch.equal(trained[name], value.detach()), name
    assert recorded.rates[0][0] == 5e-3
    assert recorded.rates[2][0] == 5e-3 * 0.35


def test_a_resumed_run_keeps_rates_and_decay(recorded, tmp_path):
    from safetensors.torch import load_file

    options = {"rows": 8, "num_train_epochs": 3, "learning_rates": {"classifier": 4e-3}, **PUBLISHED}
    run(tmp_path, "whole", save_strategy="steps", save_steps=3, **options)
    rates = list(recorded.rates)
    recorded.rates.clear()
    run(tmp_path, "resumed", resume=str(tmp_path / "whole" / "checkpoint-3"), **options)
    assert recorded.rates == rates[3:]
    whole, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    options["learning_rates"] = {"classifier": 1e-3}
    with pytest.raises(ValueError, match=r"learning_rate was 0\.004 and is 0\.001"):
        run(tmp_path, "other", resume=str(tmp_path / "whole" / "checkpoint-3"), **options)


def test_a_pattern_that_matches_nothing_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="learning_rates: 'grounding' sets the rate of no trained parameter"):
        run(tmp_path, "x", rows=4, learning_rates={"grounding": 1e-3}, **PUBLISHED)
    parameters = {"head.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="'weight' sets the rate of no trained parameter"):
        groups_by_rate(parameters, {"head": 1.0, "weight": 2.0}, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": "{"}, "learning_rates='{' is not JSON"),
        ({"learning_rates": '{"(": 1}'}, r"learning_rates: '\(' is not a regular expression"),
        ({"learning_rates": {"head": -1}}, "the rate of 'head' must be a number of at least 0, got -1"),
        ({"learning_rates": {"head": 1}, "layer_decay": 0.75}, "both set the rates"),
        ({"schedule": "step"}, "decay_epochs=None: needed with schedule='step'"),
        ({"schedule": "step", "decay_epochs": 0, "decay_factor": 0.1}, "decay_epochs must be above 0"),
        ({"decay_factor": 0.1}, "decay_factor=0.1: allowed only with schedule='step'"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "weight_decay=0.1 has no effect with optimizer='adam'"),
        ({**PUBLISHED, "warmup_steps": 3}, "schedule='step' has no warm-up"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        AVTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
