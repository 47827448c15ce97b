"""Costs: counts against formulas, the order of calls, memory of a forked process. No test depends on real times."""

import os
import subprocess
import sys

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


def test_all_and_trainable_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert costs.count_parameters(model) == (16 + 10, 10)
    model[1] = model[0]  # shared
    assert costs.count_parameters(model) == (16, 0)


def test_flops_of_a_matrix_product():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert costs.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_do_not_depend_on_the_attention_implementation(attention, device):
    """Expected: one layer of late fusion over 4 + 1 video and 4 + 1 audio tokens, two FLOPs per multiply-add."""
    d, m, n = 16, 32, 5
    with torch.device(device):
        model = build(num_hidden_layers=1, fusion_layer=1)
        model.set_attn_implementation(attention)
        inputs = batch(1)
    block = (
        2 * n * (4 * d * d + 2 * d * m) + 2 * 2 * n * n * d
    )  # projections and MLP; attention scores and weighted sum
    embeddings = 2 * 4 * (3 * 2 * 8 * 8) * d + 2 * 4 * (8 * 8) * d
    assert costs.count_flops(lambda: model.eval()(**inputs)) == 2 * block + embeddings + 2 * 2 * d * 3


def test_training_changes_the_weights_and_inference_does_not():
    model, inputs = build(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs.inference(model, inputs)()
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    costs.training_step(model, inputs, torch.optim.SGD(model.parameters(), lr=0.1))()
    assert model.training
    assert not torch.equal(model.state_dict()["classifier.weight"], before["classifier.weight"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_calls_are_made_in_turn_and_the_shortest_time_counts(monkeypatch):
    clock = iter([0, 9, 0, 9, 0, 3, 0, 5, 0, 4, 0, 2])  # a and b in turn; the first round warms up
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ab"}
    assert costs.best_times_in_turn(calls, "cpu", rounds=2) == {"a": 3, "b": 2}
    assert called == list("ababab")
    with pytest.raises(ValueError, match="rounds"):
        costs.best_times_in_turn(calls, "cpu", rounds=0)


def test_repeats_end_after_the_time_limit(monkeypatch):
    clock = iter([0, 4, 0, 3, 0, 5, 0, 1])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    assert costs.best_time(lambda: None, "cpu", repeats=9, seconds=10) == (3, 3)


def _fail(value):
    raise KeyError(value)


def _die(value):
    os._exit(7)


@pytest.fixture
def one_thread():
    """Earlier tests of this process may have run parallel code, whose threads a forked process does not have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forked processes on this system")
def test_in_own_process_returns_and_raises(one_thread):
    assert costs.in_own_process(os.getpid) != os.getpid()
    with pytest.raises(KeyError, match="what"):
        costs.in_own_process(_fail, "what")
    with pytest.raises(RuntimeError, match=r"_die.*ended with code 7"):
        costs.in_own_process(_die, "what")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forked processes on this system")
def test_a_fork_that_would_wait_forever_is_refused():
    code = """
import os, torch
from hf_avfusion.evaluation import costs
costs.FORK_SECONDS = 20.0
assert costs.in_own_process(os.getpid) != os.getpid()
torch.set_num_threads(2)
torch.ones(2**22).sum()
costs.FORK_SECONDS = 2.0
try:
    costs.in_own_process(os.getpid)
    print("it ran")  # with another library of threads than GNU's
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "getpid cannot run in a forked process" in done.stdout or "it ran" in done.stdout


def _peak_of(mib):
    baseline = costs.PeakMemory.now("cpu")
    with costs.PeakMemory("cpu", baseline) as memory:
        held = bytearray(mib << 20)
        del held
    return memory.mib


@pytest.mark.skipif(costs.resident_mib("VmHWM") is None, reason="the kernel has no high-water mark")
def test_peak_memory_includes_freed_memory(one_thread):
    small, large = costs.in_own_process(_peak_of, 1), costs.in_own_process(_peak_of, 200)
    if small is None:
        pytest.skip("this system cannot reset the high-water mark")
    assert 190 < large < 260  # 200 MiB, far above the granularity of an allocator
    assert small < 60
