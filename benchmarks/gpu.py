"""What MBT and AV-MAE do on a GPU: parity with the originals, attention kernels, speed and memory, in at most 8 minutes.

    python benchmarks/gpu.py --output results                      # all parts on one large GPU
    python benchmarks/gpu.py --output results --parts speed --minutes 5
    python benchmarks/gpu.py --output results --tiny               # every line in seconds, on a CPU too

It needs torch, transformers and a source tree of this repository; no network and no media or dataset libraries. It uses
SIGALRM, so it runs on Linux and macOS. Results go to `results.jsonl` and `results.md` in `--output` as they are known. Each
piece starts only if its estimate fits into the time that is left; a piece that is skipped, cut off or fails leaves a record
that says why. The exit status is 1 if a piece raised an error, which an error beyond a bar of parity is not.

Parts, the most valuable first:

parity    Goldens: every recorded case in tests/goldens through its checker with model and inputs on the device, once in
          float32 with TF32 off and once in bf16 autocast; largest errors per kind of tensor, and how many comparisons exceed
          the bars that hold on the CPU. Published sizes: one clip through random weights, ||output - reference|| /
          ||reference|| of each precision, where the reference is float64 on the same device.
kernels   Every distinct call of scaled_dot_product_attention that a model makes, recorded in evaluation with bf16 weights, in
          a training step in bf16 autocast and in evaluation in float32. Each is repeated alone: the operator that torch
          chooses by default is read from torch.profiler, then each backend is allowed alone and timed if it accepts the call
          (forward; in training forward and backward). "flag" marks calls that fall to the math kernel, and calls for which
          another kernel was faster by over 5 % and over 20 microseconds, which launching alone can take.
speed     Forward in evaluation mode with bf16 weights, and training steps in bf16 autocast with float32 weights and the
          published optimiser. Eager with batch sizes doubling until memory or time ends, then compiled at the batch size that
          trained fastest. A time is the median of several calls after warm-up, with the device synchronised before each clock.
          FLOPs are those of torch.utils.flop_counter (two per multiply-add of matrix products, attention in full).
          "share_of_matmul" divides the rate by that of a large square bf16 product, measured first in the same run. Peak memory
          of a forward pass counts its model, inputs and activations; that of a training step also gradients and optimiser.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]
for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # read once, when the libraries are imported
    os.environ.setdefault(variable, "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from golden_errors import GOLDENS, Errors  # noqa: E402
from gpu_journal import Journal, Record, Recorder  # noqa: E402
from gpu_models import (  # noqa: E402
    Subject,
    attention_paths,
    forward_call,
    outputs_of,
    published_models,
    relative_error,
    training_call,
)
from torch import Tensor, nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from hf_avfusion.evaluation.costs import PeakMemory, timed  # noqa: E402

PARTS = ("parity", "kernels", "speed")
# Tracing takes seconds on a CPU, so in miniature each call is compiled for one model only.
TINY_COMPILED = (("MBT bottleneck", "forward"), ("AV-MAE pretraining, separate", "training step"))
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ATTENTION = "aten::_scaled_dot_product_"
OPERATORS = {
    "flash_attention": "flash",
    "flash_attention_for_cpu": "flash",
    "cudnn_attention": "cudnn",
    "efficient_attention": "efficient",
    "attention_math": "math",
}


@dataclass(frozen=True)
class Machine:
    """The device and how thoroughly to measure on it."""

    device: torch.device
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def seconds(self, on_gpu: float) -> float:
        """The estimate of a piece, a guess for a large GPU; in miniature every piece is short."""
        return 0.1 if self.tiny else on_gpu

    def times(self, call: Callable[[], Any], seconds: float = 2.0) -> list[float]:
        """Seconds of each call, for about `seconds` in all, 3 to 20 calls; 2 in miniature."""
        times: list[float] = []
        fewest, most = (2, 2) if self.tiny else (3, 20)
        while len(times) < fewest or (len(times) < most and sum(times) < seconds):
            times.append(timed(call, self.device))
        return times

    def clean(self) -> None:
        """Give freed memory back to the device, so that the next piece starts with all of it."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def facts_of(machine: Machine) -> Record:
    """Fields that every record holds."""
    facts: Record = {
        "device": torch.cuda.get_device_name(machine.device) if machine.on_gpu else platform.processor() or "CPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if machine.on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if machine.on_gpu else None,
        "tiny": machine.tiny,
    }
    if machine.on_gpu:
        properties = torch.cuda.get_device_properties(machine.device)
        facts["memory_gib"] = round(properties.total_memory / 2**30, 1)
        facts["capability"] = f"{properties.major}.{properties.minor}"
        facts["multiprocessors"] = properties.multi_processor_count
    return facts


# --------------------------------------------------------------------------------------------------------- parity


def parity(journal: Journal, machine: Machine) -> None:
    architectures = sorted(path.stem for path in (ROOT / "tests" / "checkers").glob("*.py"))
    for precision in ("float32", "bf16 autocast"):
        for architecture in architectures:
            goldens = partial(check_goldens, machine, architecture, precision)
            journal.attempt("parity", f"goldens of {architecture}, {precision}", machine.seconds(20), goldens)
    for subject in published_models(machine.tiny):
        published = partial(check_precisions, machine, subject)
        journal.attempt("parity", f"{subject.name}, published size", machine.seconds(20), published)
        machine.clean()


@contextmanager
def on_device(checker: ModuleType, device: torch.device, errors: Errors, beyond: list[str]) -> Iterator[None]:
    """Models and inputs of a checker on the device; what exceeds its bars goes to `beyond`."""

    def require(holds: bool, message: str) -> None:
        if not holds:
            beyond.append(message)

    previous = checker.device, checker.on_compare, checker.require
    checker.device, checker.on_compare, checker.require = device, errors.record, require
    try:
        yield
    finally:
        checker.device, checker.on_compare, checker.require = previous


def check_goldens(machine: Machine, architecture: str, precision: str, record: Recorder) -> None:
    checker = importlib.import_module(f"checkers.{architecture}")
    errors, beyond, failed = Errors(), [], []
    paths = sorted((GOLDENS / architecture).glob("*.json"))
    autocast = torch.autocast(machine.device.type, dtype=torch.bfloat16, enabled=precision != "float32")
    with on_device(checker, machine.device, errors, beyond):
        for path in paths:
            try:
                with autocast:
                    checker.check(path.parent, json.loads(path.read_text(encoding="utf-8")), path.stem)
            except AssertionError as error:  # wrong shapes, NaN: what no precision excuses
                failed.append(f"{path.stem}: {error}"[:300])
    common = {"architecture": architecture, "precision": precision, "tf32": False}
    record(**common, cases=len(paths), beyond_bars=len(beyond), examples=beyond[:3], failed=failed)
    for kind in sorted(errors.counts):
        record(
            **common,
            tensors=kind,
            compared=errors.counts[kind],
            largest_absolute_error=errors.absolute[kind],
            largest_relative_error=errors.relative[kind],
            of=errors.worst[kind],
        )


def check_precisions(machine: Machine, subject: Subject, record: Recorder) -> None:
    model, inputs = subject.build(machine.device), subject.inputs(1, machine.device)

    def outputs(dtype: torch.dtype) -> Tensor:
        converted = copy.deepcopy(model).to(dtype)
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        return outputs_of(forward_call(converted, given)())

    reference = outputs(torch.float64)
    found = {"float32": outputs(torch.float32)}
    torch.set_float32_matmul_precision("high")
    try:
        found["float32, TF32"] = outputs(torch.float32)
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast(machine.device.type, dtype=torch.bfloat16):
        found["bf16 autocast"] = outputs(torch.float32)
    found["bf16 weights"] = outputs(torch.bfloat16)
    for precision, values in found.items():
        sizes = {"model": subject.name, "batch": 1, **subject.sizes()}
        record(**sizes, precision=precision, error_to_float64=relative_error(values, reference))


# -------------------------------------------------------------------------------------------------------- kernels


@dataclass
class AttentionCall:
    """A distinct call of scaled_dot_product_attention: its first tensors, and how often it was made."""

    tensors: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]
    backward: bool
    count: int = 0

    def run(self) -> None:
        output = nn.functional.scaled_dot_product_attention(*self.tensors, **self.options)
        if self.backward:
            torch.autograd.grad(output, self.tensors, output.detach())


@contextmanager
def recorded_attention() -> Iterator[dict[tuple[Any, ...], AttentionCall]]:
    """Collect the distinct calls that models make in the block; the calls themselves run as ever."""
    calls: dict[tuple[Any, ...], AttentionCall] = {}
    original = nn.functional.scaled_dot_product_attention

    def recording(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        backward = torch.is_grad_enabled() and query.requires_grad
        signature = (
            *(tuple(tensor.shape) for tensor in (query, key, value)),
            query.dtype,
            backward,
            *(tuple(item.shape) if isinstance(item, Tensor) else item for item in options.values()),
        )
        if signature not in calls:
            tensors = tuple(tensor.detach().requires_grad_(backward) for tensor in (query, key, value))
            calls[signature] = AttentionCall(tensors, options, backward)
        calls[signature].count += 1
        return original(query, key, value, **options)

    nn.functional.scaled_dot_product_attention = recording
    try:
        yield calls
    finally:
        nn.functional.scaled_dot_product_attention = original


def kernels(journal: Journal, machine: Machine) -> None:
    for subject in attention_paths(machine.tiny):
        journal.attempt("kernels", subject.name, machine.seconds(20), partial(attention_of, machine, subject))
        machine.clean()


def attention_of(machine: Machine, subject: Subject, record: Recorder) -> None:
    batch = 2 if subject.extra_inputs else subject.first_batch
    model, inputs = subject.build(machine.device), subject.inputs(batch, machine.device)
    halved = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    passes = {
        "forward, bf16 weights": forward_call(copy.deepcopy(model).bfloat16(), halved),
        "training step, bf16 autocast": training_call(model, inputs, optimizer, machine.device),
        "forward, float32": forward_call(model, inputs),
    }
    for name, call in passes.items():
        with recorded_attention() as calls:
            call()
        for attention in calls.values():
            query, key, _ = attention.tensors
            record(
                path=f"{subject.name}: {name}",
                dtype=str(query.dtype).removeprefix("torch."),
                batch=query.shape[0],
                heads=query.shape[1],
                queries=query.shape[2],
                keys=key.shape[2],
                head_size=query.shape[3],
                mask=attention.options.get("attn_mask") is not None,
                calls=attention.count,
                **compare_backends(machine, attention),
            )


def compare_backends(machine: Machine, attention: AttentionCall) -> Record:
    """The kernel that torch chooses for a call, and the milliseconds of each backend that accepts it."""
    chosen, gpu_kernels = profiled(machine, attention.run)
    milliseconds, refused = {}, {}
    for name, backend in BACKENDS.items():
        with warnings.catch_warnings(record=True) as reasons:
            warnings.simplefilter("always")
            try:
                with sdpa_kernel(backend):
                    attention.run()
                    times = machine.times(attention.run, 0.2)
                milliseconds[name] = 1000 * statistics.median(times)
            except RuntimeError as error:  # torch.OutOfMemoryError too
                refused[name] = " ".join([*(str(reason.message) for reason in reasons), str(error)])[:200]
    fastest = min(milliseconds, key=milliseconds.__getitem__)
    default = next(iter(chosen), None)
    flag = ""
    if default == "math":
        flag = "falls to math"
    elif milliseconds.get(default, 0.0) > max(1.05 * milliseconds[fastest], milliseconds[fastest] + 0.02):
        flag = f"{fastest} is faster"
    return {"default": default, "flag": flag, "ms": milliseconds, "refused": refused, "gpu_kernels": gpu_kernels}


def profiled(machine: Machine, call: Callable[[], Any]) -> tuple[dict[str, int], list[str]]:
    """Attention operators of a call with their counts, and the names of the GPU kernels that took longest."""
    call()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * machine.on_gpu]
    with profile(activities=activities) as profiler:
        timed(call, machine.device)
    operators: Counter[str] = Counter()
    durations: Counter[str] = Counter()
    for event in profiler.events():
        if event.name.startswith(ATTENTION) and not event.name.endswith("_backward"):
            operator = event.name.removeprefix(ATTENTION)
            operators[OPERATORS.get(operator, operator)] += 1
        if event.device_type == torch.autograd.DeviceType.CUDA:
            durations[event.name[:80]] += event.time_range.elapsed_us()
    return dict(operators), [name for name, _ in durations.most_common(3)]


# ---------------------------------------------------------------------------------------------------------- speed


@dataclass
class Progress:
    """What the speed part learns on its way."""

    matmul_tflops: float | None = None
    flops: tuple[int, int] | None = None  # of a clip: forward, training step
    last_seconds: float = 0.0  # of the last batch size
    best_rate: float = 0.0  # training clips/s
    best_batch: int = 0
    memory_ended: bool = False


@dataclass
class Loaded:
    """A subject on the device in training precision, with its FLOPs."""

    subject: Subject
    model: nn.Module
    forward_flops: int
    step_flops: int


def speed(journal: Journal, machine: Machine) -> None:
    rates = Progress()
    journal.attempt("speed", "bf16 matmul", machine.seconds(5), partial(measure_matmul, machine, rates))
    subjects = published_models(machine.tiny)
    best = {}
    for subject in subjects:
        progress = Progress(matmul_tflops=rates.matmul_tflops)
        double_batches(journal, machine, subject, progress)
        best[subject.name] = progress
        machine.clean()
    for subject, call in product(subjects, ("training step", "forward")):
        if machine.tiny and (subject.name, call) not in TINY_COMPILED:
            continue
        progress = best[subject.name]
        batch = progress.best_batch or subject.first_batch
        measure = partial(measure_compiled, machine, subject, call, batch, progress)
        journal.attempt("speed", f"{subject.name}, compiled {call}", machine.seconds(90), measure)
        torch._dynamo.reset()
        machine.clean()
    journal.attempt("speed", "bf16 matmul again", machine.seconds(5), partial(measure_matmul, machine, Progress()))


def measure_matmul(machine: Machine, progress: Progress, record: Recorder) -> None:
    size, products = (64, 2) if machine.tiny else (8192, 10)
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, device=machine.device, dtype=torch.bfloat16) for _ in range(2))

    def call() -> None:
        for _ in range(products):
            torch.mm(a, b)

    call()
    seconds = statistics.median(machine.times(call)) / products
    progress.matmul_tflops = 2 * size**3 / seconds / 1e12
    record(size=size, dtype="bfloat16", seconds=seconds, tflops=progress.matmul_tflops)


def load(machine: Machine, subject: Subject, progress: Progress) -> Loaded:
    progress.flops = progress.flops or subject.flops()
    return Loaded(subject, subject.build(machine.device), *progress.flops)


def double_batches(journal: Journal, machine: Machine, subject: Subject, progress: Progress) -> None:
    """Eager forward and training step at the first batch size, twice that, and so on until memory or time ends."""
    held: list[Loaded] = []

    def loading(record: Recorder) -> None:
        held.append(load(machine, subject, progress))
        parameters = sum(parameter.numel() for parameter in held[0].model.parameters())
        tflop = {"tflop_forward": held[0].forward_flops / 1e12, "tflop_step": held[0].step_flops / 1e12}
        record(model=subject.name, **subject.sizes(), parameters=parameters, **tflop)

    if not journal.attempt("speed", f"{subject.name}, loading", machine.seconds(15), loading):
        return
    batch, estimate = subject.first_batch, machine.seconds(15)
    while not progress.memory_ended:
        measure = partial(measure_eager, machine, held[0], batch, progress)
        if not journal.attempt("speed", f"{subject.name}, eager, batch {batch}", estimate, measure):
            return
        # The number of timed calls falls as they get longer, so a batch takes at most twice as long as the one before.
        batch, estimate = 2 * batch, 2 * progress.last_seconds


def measure_eager(machine: Machine, loaded: Loaded, batch: int, progress: Progress, record: Recorder) -> None:
    def both() -> None:
        measure_forward(machine, loaded, batch, progress, record)
        rate = measure_step(machine, loaded, batch, progress, record)
        if rate > progress.best_rate:
            progress.best_rate, progress.best_batch = rate, batch

    began = time.monotonic()
    progress.memory_ended = not fits_memory(machine, loaded.subject, batch, both, record)
    progress.last_seconds = time.monotonic() - began


def fits_memory(machine: Machine, subject: Subject, batch: int, measure: Callable[[], Any], record: Recorder) -> bool:
    """Run a measurement; where memory ends, record that and return False."""
    try:
        if machine.tiny and batch > 4:
            raise torch.OutOfMemoryError("in miniature, memory ends above 4 clips")
        measure()
        return True
    except torch.OutOfMemoryError as error:
        record(model=subject.name, batch=batch, memory_ended=str(error).splitlines()[0][:200])
    machine.clean()  # not in the except block, which holds the tensors of the failed call
    return False


def compiled(machine: Machine, model: nn.Module) -> nn.Module:
    # On the CPU only the tracing is proved: inductor takes minutes there and needs a C++ compiler.
    return torch.compile(model, dynamic=False, backend="inductor" if machine.on_gpu else "eager")


def measure_compiled(
    machine: Machine, subject: Subject, call: str, batch: int, progress: Progress, record: Recorder
) -> None:
    loaded = load(machine, subject, progress)
    measure = measure_forward if call == "forward" else measure_step
    run = partial(measure, machine, loaded, batch, progress, record, compile_model=True)
    fits_memory(machine, subject, batch, run, record)


def measure_forward(
    machine: Machine, loaded: Loaded, batch: int, progress: Progress, record: Recorder, compile_model: bool = False
) -> float:
    """Clips/s of the forward pass of a bf16 copy of the model."""
    baseline = PeakMemory.now(machine.device)
    model = copy.deepcopy(loaded.model).bfloat16()
    inputs = loaded.subject.inputs(batch, machine.device, torch.bfloat16)
    eager = forward_call(model, inputs)
    fields: Record = {"call": "forward", "precision": "bf16 weights"}
    if not compile_model:
        return measure_call(machine, loaded, batch, progress, record, eager, baseline, fields)
    expected = outputs_of(eager())
    call = forward_call(compiled(machine, model), inputs)
    began = time.monotonic()
    fields["compiled_to_eager"] = relative_error(outputs_of(call()), expected)
    fields["compile_s"] = time.monotonic() - began
    del expected
    return measure_call(machine, loaded, batch, progress, record, call, baseline, fields, compile_model)


def measure_step(
    machine: Machine, loaded: Loaded, batch: int, progress: Progress, record: Recorder, compile_model: bool = False
) -> float:
    """Clips/s of training steps; the update is so small that the model stays what it is."""
    model = loaded.model
    inputs = loaded.subject.inputs(batch, machine.device)
    optimizer = loaded.subject.optimizer(model.parameters())
    run = compiled(machine, model) if compile_model else model
    call = training_call(run, inputs, optimizer, machine.device)
    fields: Record = {
        "call": "training step",
        "precision": "bf16 autocast, float32 weights",
        "optimizer": loaded.subject.optimizer_name,
    }
    try:
        return measure_call(machine, loaded, batch, progress, record, call, 0.0, fields, compile_model)
    finally:
        model.zero_grad(set_to_none=True)


def measure_call(
    machine: Machine,
    loaded: Loaded,
    batch: int,
    progress: Progress,
    record: Recorder,
    call: Callable[[], Any],
    baseline: float | None,
    fields: Record,
    compile_model: bool = False,
) -> float:
    """Time a call, record its rates and peak memory, and return clips/s."""
    first = timed(call, machine.device)
    if compile_model:
        fields.setdefault("compile_s", first)
    call()
    with PeakMemory(machine.device, baseline) as memory:
        times = machine.times(call)
    seconds = statistics.median(times)
    flops = loaded.forward_flops if fields["call"] == "forward" else loaded.step_flops
    tflops = batch * flops / seconds / 1e12
    if compile_model:
        fields["attention"] = profiled(machine, call)[0]
    record(
        model=loaded.subject.name,
        mode="compiled" if compile_model else "eager",
        batch=batch,
        clips_per_s=batch / seconds,
        tflops=tflops,
        share_of_matmul=tflops / progress.matmul_tflops if progress.matmul_tflops else None,
        peak_gib=None if memory.mib is None else memory.mib / 1024,
        median_s=seconds,
        least_s=min(times),
        calls=len(times),
        **fields,
        **loaded.subject.sizes(),
    )
    return batch / seconds


# ----------------------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of results.jsonl and results.md")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="run in the order shown here")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of the whole run, imports not counted")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few calls, on a CPU where there is no GPU")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("torch sees no CUDA device; run on a GPU, or give --tiny to run in miniature on the CPU")
    if (arguments.output / "results.jsonl").exists():
        parser.error(f"{arguments.output} holds the results of another run; give a new folder to --output")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    gc.freeze()  # imported modules stay, so collections need not look at them
    machine = Machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"), arguments.tiny)
    journal = Journal(arguments.output, arguments.minutes, facts_of(machine))
    for part in PARTS:
        if part in arguments.parts:
            {"parity": parity, "kernels": kernels, "speed": speed}[part](journal, machine)
    print(f"{len(journal.records)} records, {journal.errors} errors: {journal.tables}")
    sys.exit(1 if journal.errors else 0)


if __name__ == "__main__":
    main()
