"""Costs: counts against formulae, the order of calls, memory of a child process. No test depends on how long things take."""

import os

import pytest
import torch
from torch import nn

from hf_avfusion.evaluation import costs
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "fusion_layer": 1,
    "image_size": 16, "patch_size": 8, "num_frames": 2, "num_mel_bins": 16, "spectrogram_length": 16, "num_labels": 3,
}  # fmt: skip


def build(**fields):
    return MBTForAudioVisualClassification(MBTConfig(**SIZES | fields))


def batch(clips=2):
    return {
        "pixel_values": torch.randn(clips, 2, 3, 16, 16),
        "input_features": torch.randn(clips, 16, 16),
        "labels": torch.zeros(clips, dtype=torch.long),
    }


def test_parameters_and_those_that_are_trained():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert costs.count_parameters(model) == (16 + 10, 10)
    model[1] = model[0]  # shared
    assert costs.count_parameters(model) == (16, 0)


def test_flops_of_a_product():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert costs.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_of_attention_are_counted_whatever_computes_it(attention, device):
    """One layer of late fusion over 4 + 1 video and 4 + 1 audio tokens, by hand: two FLOPs per multiply-add."""
    d, m, n = 16, 32, 5
    with torch.device(device):
        model = build(num_hidden_layers=1, fusion_layer=1)
        model.set_attn_implementation(attention)
        inputs = batch(1)
    block = 2 * n * (4 * d * d + 2 * d * m) + 2 * 2 * n * n * d  # projections and MLP; scores and their use
    embeddings = 2 * 4 * (3 * 2 * 8 * 8) * d + 2 * 4 * (8 * 8) * d
    assert costs.count_flops(lambda: model.eval()(**inputs)) == 2 * block + embeddings + 2 * 2 * d * 3


def test_inference_leaves_and_training_changes_the_weights():
    model, inputs = build(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs.inference(model, inputs)()
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    costs.training_step(model, inputs, torch.optim.SGD(model.parameters(), lr=0.1))()
    assert model.training
    assert not torch.equal(model.state_dict()["classifier.weight"], before["classifier.weight"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_calls_take_turns_and_the_least_time_counts(monkeypatch):
    clock = iter([0, 9, 0, 9, 0, 3, 0, 5, 0, 4, 0, 2])  # a and b in turn; the first round warms up
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ab"}
    assert costs.best_times_in_turn(calls, "cpu", rounds=2) == {"a": 3, "b": 2}
    assert called == list("ababab")
    with pytest.raises(ValueError, match="rounds"):
        costs.best_times_in_turn(calls, "cpu", rounds=0)


def test_repeats_end_when_the_seconds_are_spent(monkeypatch):
    clock = iter([0, 4, 0, 3, 0, 5, 0, 1])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    assert costs.best_time(lambda: None, "cpu", repeats=9, seconds=10) == (3, 3)


def _fail(value):
    raise KeyError(value)


def _die(value):
    os._exit(7)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forked processes on this system")
def test_a_process_of_its_own_answers_raises_and_is_missed():
    assert costs.in_own_process(os.getpid) != os.getpid()
    with pytest.raises(KeyError, match="what"):
        costs.in_own_process(_fail, "what")
    with pytest.raises(RuntimeError, match=r"_die.*ended with code 7"):
        costs.in_own_process(_die, "what")


def _peak_of(mib):
    baseline = costs.PeakMemory.now("cpu")
    with costs.PeakMemory("cpu", baseline) as memory:
        held = bytearray(mib << 20)
        del held
    return memory.mib


@pytest.mark.skipif(costs.resident_mib("VmHWM") is None, reason="the kernel tells no high-water mark")
def test_peak_memory_sees_what_was_freed_again():
    small, large = costs.in_own_process(_peak_of, 1), costs.in_own_process(_peak_of, 200)
    if small is None:
        pytest.skip("the high-water mark cannot be reset here")
    assert 190 < large < 260  # 200 MiB, far above the steps of an allocator
    assert small < 60
