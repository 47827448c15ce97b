"""What a model costs, measured alike for every architecture: parameters, FLOPs, time and peak memory on a given batch.

Times of models that are compared are taken in turn, round by round, so that other load on the machine falls on all of
them; the least time of each is what counts, since other load only ever adds. Peak memory on CUDA is the allocator's;
elsewhere on Linux it is the kernel's high-water mark of resident memory (VmHWM), for which every case needs a process of
its own (`in_own_process`), or it would inherit the heap of the case before.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

LABELS = ("labels", "audio_labels")  # what a training step is given and inference is not


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters of a model and those that are trained (`requires_grad`); shared ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of a call as torch.utils.flop_counter counts them: two per multiply-add of every matrix product.

    The call is made once, with gradients recorded (the counter fails without); tensors on the meta device cost nothing.
    Attention is counted in its plain form, since the counter does not know the CPU's fused kernel and would take its
    two products for nothing.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def inference(model: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], None]:
    """A call that runs `model` on a batch in evaluation mode, without labels and without gradients."""
    unlabelled = {name: value for name, value in inputs.items() if name not in LABELS}

    def call() -> None:
        model.eval()
        with torch.no_grad():
            model(**unlabelled)

    return call


def training_step(
    model: nn.Module, inputs: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """A call that trains `model` on a batch with labels once: forward, `loss`, backward and an update."""

    def call() -> None:
        model.train()
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


# --------------------------------------------------------------------------------------------------------------- time


def timed(call: Callable[[], Any], device: str | torch.device) -> float:
    """Seconds of one call, waiting for the device before and after."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best_time(call: Callable[[], Any], device: str | torch.device, repeats: int, seconds: float) -> tuple[float, int]:
    """Least seconds of `call` over `repeats` calls, fewer (at least 2) once `seconds` are spent, and how many there
    were; no warm-up here.
    """
    times: list[float] = []
    while len(times) < repeats and (len(times) < 2 or sum(times) < seconds):
        times.append(timed(call, device))
    return min(times), len(times)


def best_times_in_turn(
    calls: Mapping[Hashable, Callable[[], Any]], device: str | torch.device, rounds: int
) -> dict[Any, float]:
    """Least seconds of each call; every round makes each of them once, and one more round before them warms up."""
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            elapsed = timed(call, device)
            if number:
                times[name].append(elapsed)
    return {name: min(values) for name, values in times.items()}


# ------------------------------------------------------------------------------------------------------------- memory


def resident_mib(field: str) -> float | None:
    """A field of /proc/self/status in MiB (VmRSS now, VmHWM the peak since the last reset); None where there is none."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(field + ":")), None)


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class PeakMemory:
    """Peak memory of a `with` block above `baseline` (`PeakMemory.now`), in MiB; None where it cannot be told."""

    def __init__(self, device: str | torch.device, baseline: float | None):
        self.on_gpu, self.baseline, self.mib = torch.device(device).type == "cuda", baseline, None

    @staticmethod
    def now(device: str | torch.device) -> float | None:
        gc.collect()
        return torch.cuda.memory_allocated() / 2**20 if torch.device(device).type == "cuda" else resident_mib("VmRSS")

    def __enter__(self) -> PeakMemory:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        elif not _reset_resident_peak():
            self.baseline = None
        return self

    def __exit__(self, *error: object) -> None:
        if self.baseline is not None:
            peak = torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else resident_mib("VmHWM")
            self.mib = peak - self.baseline


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a forked child (Linux), whose memory starts clean; elsewhere here.

    The parent must not have run parallel torch code before: the fork would lose its OpenMP threads, and wait for them.

    Raises:
        RuntimeError: the child ended without an answer. What the function raised, here again.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return function(*arguments)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        try:
            sender.send(function(*arguments))
        except BaseException as error:
            sender.send(error)

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process of {function.__name__}{arguments[:1]} ended with code {process.exitcode} (-9: out of memory); "
            "ask for a smaller model, smaller batches or shorter clips"
        ) from None
    process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


# -------------------------------------------------------------------------------------------------- several models


def compare_costs(
    builders: Mapping[str, Callable[[], nn.Module]],
    inputs: Callable[[], Mapping[str, Tensor]],
    *,
    device: str | torch.device = "cpu",
    rounds: int = 10,
) -> dict[str, dict[str, float | int | None]]:
    """Costs of several models on one batch; on the CPU call it before any other torch code, as `in_own_process` says.

    Args:
        builders: name of a model to what makes it. inputs: makes the batch, with `labels`.
        rounds: calls per time, of which the least counts; all models of a round run right after each other.

    Returns:
        Of each model: `parameters`, `trainable_parameters`; `flops_per_clip`, of a forward pass;
        `inference_clips_per_s` and `training_clips_per_s`, where a training step is forward, backward and an update by
        AdamW; `inference_mib` and `training_mib`, the peak beyond the loaded model, optimiser state included (None where
        the system cannot tell).
    """
    # On a GPU the allocator counts exactly, and a forked process could not use the device.
    run = (lambda function, *given: function(*given)) if torch.device(device).type == "cuda" else in_own_process
    costs = run(_counts_and_times, builders, inputs, device, rounds)
    for name, build in builders.items():
        costs[name] |= run(_peaks, name, build, inputs, device)
    return costs


def _loaded(build: Callable[[], nn.Module], inputs: Callable[[], Mapping[str, Tensor]], device: str | torch.device):
    model = build().to(device)
    batch = {name: value.to(device) for name, value in inputs().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, batch, torch.optim.AdamW(trained, lr=1e-6)


def _counts_and_times(builders, inputs, device, rounds: int) -> dict[str, dict[str, Any]]:
    costs, forwards, steps = {}, {}, {}
    for name, build in builders.items():
        model, batch, optimizer = _loaded(build, inputs, device)
        clips = len(next(iter(batch.values())))
        unlabelled = {key: value for key, value in batch.items() if key not in LABELS}
        total, trainable = count_parameters(model)
        model.eval()
        costs[name] = {
            "parameters": total,
            "trainable_parameters": trainable,
            "flops_per_clip": round(count_flops(lambda model=model, given=unlabelled: model(**given)) / clips),
        }
        forwards[name], steps[name] = inference(model, batch), training_step(model, batch, optimizer)
    for kind, calls in (("inference", forwards), ("training", steps)):
        for name, seconds in best_times_in_turn(calls, device, rounds).items():
            costs[name][f"{kind}_clips_per_s"] = clips / seconds
    return costs


def _peaks(name: str, build, inputs, device) -> dict[str, float | None]:
    model, batch, optimizer = _loaded(build, inputs, device)
    baseline = PeakMemory.now(device)
    peaks = {}
    for kind, call in (("inference", inference(model, batch)), ("training", training_step(model, batch, optimizer))):
        call()  # warms up: the optimiser's state is made in its first step
        with PeakMemory(device, baseline) as memory:
            call()
        peaks[f"{kind}_mib"] = memory.mib
    return peaks
