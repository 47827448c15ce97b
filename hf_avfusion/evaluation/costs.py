"""Costs of a model on a given batch: parameters, FLOPs, time and peak memory.

Compared models are timed in turn, round by round, so that other load on the machine affects all of them. The shortest time
of each model counts, since other load can only add time. Peak memory on CUDA is that of the allocator. On the CPU under
Linux it is the kernel's high-water mark of resident memory (VmHWM). Each case then needs its own process
(`in_own_process`), since a process keeps the heap of earlier cases.
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

FORK_SECONDS = 30.0  # in which a forked process that can run parallel torch code has added a few numbers
LABELS = ("labels", "audio_labels")  # inputs of training only


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of all parameters and of trainable parameters (`requires_grad`). Shared parameters count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of a call by torch.utils.flop_counter: two per multiply-add of every matrix product.

    The function is called once, with gradients enabled (the counter fails without them). It may use the meta device, on
    which nothing is computed. Attention must be "eager" or "sdpa". "sdpa" is counted with its math backend, since the
    counter ignores the two products in the fused kernel of the CPU.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def inference(model: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], None]:
    """Returns a function that runs `model` on a batch in evaluation mode, without labels and gradients."""
    unlabelled = {name: value for name, value in inputs.items() if name not in LABELS}

    def call() -> None:
        model.eval()
        with torch.no_grad():
            model(**unlabelled)

    return call


def training_step(
    model: nn.Module, inputs: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """Returns a function that makes one training step of `model` on a batch: forward, `loss`, backward and an update."""

    def call() -> None:
        model.train()
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


# --------------------------------------------------------------------------------------------------------------- time


def timed(call: Callable[[], Any], device: str | torch.device) -> float:
    """Time of one call in s, with device synchronization before and after."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best_time(call: Callable[[], Any], device: str | torch.device, repeats: int, seconds: float) -> tuple[float, int]:
    """Shortest time of `call` in s, and the number of calls.

    There are `repeats` calls, or fewer (at least 2) if they take more than `seconds`. There is no warm-up.
    """
    times: list[float] = []
    while len(times) < repeats and (len(times) < 2 or sum(times) < seconds):
        times.append(timed(call, device))
    return min(times), len(times)


def best_times_in_turn(
    calls: Mapping[Hashable, Callable[[], Any]], device: str | torch.device, rounds: int
) -> dict[Any, float]:
    """Shortest time of each call in s. Every round makes each call once; a first round is the warm-up."""
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
    """A field of /proc/self/status in MiB (VmRSS: current, VmHWM: peak since the last reset); None if it does not exist."""
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
    """Peak memory of a `with` block above `baseline` (`PeakMemory.now`) in MiB; None if it cannot be measured."""

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


def _parallel_sum() -> None:
    torch.ones(2**22).sum()  # large enough for several threads


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a forked process without the heap of earlier calls; without fork, in this process.

    This process must not have run parallel torch code before: a forked process has no OpenMP threads and would wait for
    them forever. A first process finds that out.

    Raises:
        RuntimeError: parallel torch code would wait forever, or the process ended without a result. Exceptions of the function
            are raised here again.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return function(*arguments)
    context = multiprocessing.get_context("fork")
    probe = context.Process(target=_parallel_sum, daemon=True)
    probe.start()
    probe.join(FORK_SECONDS)
    if probe.is_alive():
        probe.kill()
        probe.join()
        raise RuntimeError(
            f"{function.__name__} cannot run in a forked process: parallel torch code ran in this process before, so that a forked"
            " one waits forever for its threads. Call it before other torch code, or start Python with OMP_NUM_THREADS=1."
        )
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
            "use a smaller model, smaller batches or shorter clips"
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
    """Measures the costs of several models on one batch. On the CPU, call it before other torch code (`in_own_process`).

    Args:
        builders: name -> function that builds the model.
        inputs: makes the batch, with `labels`.
        rounds: timed calls of each model, of which the shortest counts. In each round all models run one after another.

    Returns:
        For each model: `parameters`, `trainable_parameters`; `flops_per_clip` of a forward pass; `inference_clips_per_s` and
        `training_clips_per_s`, where a training step is forward, backward and an update by AdamW; `inference_mib` and
        `training_mib`, the peak above the memory of the loaded model, with the optimizer state (None if it cannot be
        measured).
    """
    # The allocator of an accelerator counts exactly, and a forked process could not use the device.
    run = in_own_process if torch.device(device).type == "cpu" else (lambda function, *given: function(*given))
    costs = run(_counts_and_times, builders, inputs, device, rounds)
    for name, build in builders.items():
        costs[name] |= run(_peaks, build, inputs, device)
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


def _peaks(build, inputs, device) -> dict[str, float | None]:
    model, batch, optimizer = _loaded(build, inputs, device)
    baseline = PeakMemory.now(device)
    peaks = {}
    for kind, call in (("inference", inference(model, batch)), ("training", training_step(model, batch, optimizer))):
        call()  # warm-up: the first step creates the optimizer state
        with PeakMemory(device, baseline) as memory:
            call()
        peaks[f"{kind}_mib"] = memory.mib
    return peaks
