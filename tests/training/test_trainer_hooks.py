"""The Trainer of the installed transformers still has what AVTrainer changes inside it."""

import inspect
import re

import pytest
import torch
import transformers
import transformers.trainer
from transformers import Trainer
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from hf_avfusion.training import trainer_hooks
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.pretraining import AVPreTrainer
from hf_avfusion.training.trainer import AVTrainer
from hf_avfusion.training.trainer_hooks import LEFT_OUT, OVERRIDDEN, REPLACED, USED, TrainerHooks

REMEDY = (
    f"in transformers {transformers.__version__}: read its Trainer and adapt hf_avfusion/training/trainer_hooks.py, whose"
    " methods would otherwise never be called"
)


def parameters(method) -> list[str]:
    return list(inspect.signature(method).parameters)


def check_method(trainer: type, name: str) -> None:
    """Checks that a Trainer has a method which the hooks override, with the parameters that they take."""
    original = getattr(trainer, name, None)
    assert original is not None, f"the Trainer has no method {name} {REMEDY}"
    ours = vars(TrainerHooks)[name]
    taken = set(re.findall(r'kwargs\["(\w+)"\]', inspect.getsource(ours)))
    assert taken <= set(parameters(original)), f"the Trainer's {name} has other parameters {REMEDY}"
    if not taken:
        assert parameters(ours) == parameters(original), f"the Trainer's {name} has other parameters {REMEDY}"
    callers = inspect.getsource(trainer).replace(f"def {name}(", "")
    assert f"self.{name}(" in callers, f"the Trainer does not call {name} {REMEDY}"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_trainer_has_every_overridden_method(name):
    check_method(Trainer, name)


def test_missing_or_changed_method_is_named():
    class WithoutEpochs:
        pass

    class WithOtherState:
        def _init_training_state(self, max_steps):
            return self._init_training_state(max_steps)

    with pytest.raises(AssertionError, match="the Trainer has no method _run_epoch in transformers"):
        check_method(WithoutEpochs, "_run_epoch")
    with pytest.raises(AssertionError, match="_init_training_state has other parameters in transformers"):
        check_method(WithOtherState, "_init_training_state")


def test_table_lists_every_override_of_a_private_method():
    overridden = {name for name in vars(TrainerHooks) if hasattr(Trainer, name) and not name.startswith("__")}
    assert overridden == OVERRIDDEN.keys()
    for trainer in (AVTrainer, AVPreTrainer):
        private = {name for name in vars(trainer) if name.startswith("_") and not name.startswith("__")}
        assert not {name for name in private if hasattr(Trainer, name)}, (
            "private overrides belong into trainer_hooks.py"
        )


@pytest.mark.parametrize("name", REPLACED)
def test_trainer_calls_every_replaced_function_by_its_name(name):
    assert hasattr(transformers.trainer, name), f"transformers.trainer has no {name} {REMEDY}"
    assert f" {name}(" in inspect.getsource(Trainer._run_epoch), f"_run_epoch does not call {name} {REMEDY}"
    with trainer_hooks._no_batch_skipping():
        assert getattr(transformers.trainer, name)("loader", 3) == "loader"


def test_checkpoints_on_sigterm_are_saved_after_updates_only(tmp_path):
    """The callback has no other events than those that are left out, and those after an update."""
    events = {name for name in vars(JITCheckpointCallback) if name.startswith("on_")}
    kept = {"on_step_end", "on_epoch_end", "on_train_end"}
    assert events == {*LEFT_OUT, *kept}, f"JITCheckpointCallback has other events {REMEDY}"

    args = AVTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", enable_jit_checkpoint=True)
    trainer = AVTrainer(torch.nn.Linear(1, 1), args)
    (callback,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, JITCheckpointCallback)]
    saved = []
    callback.jit_manager.execute_jit_checkpoint = lambda: saved.append(event)
    callback.jit_manager.is_checkpoint_requested = True
    for event in events:
        getattr(callback, event)(args, trainer.state, trainer.control)  # on_train_end restores the handler of SIGTERM
    assert set(saved) == kept - {"on_train_end"}


@pytest.mark.parametrize("name", USED)
def test_trainer_has_every_private_name_that_is_used(name):
    assert re.search(rf"\b(self\.|def ){name}\b", inspect.getsource(Trainer)), f"the Trainer has no {name} {REMEDY}"
    assert re.search(rf"\bself\.{name}\b", inspect.getsource(AVTrainer)), f"AVTrainer does not use {name}"
