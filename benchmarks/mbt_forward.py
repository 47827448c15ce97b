"""Measures time, memory and FLOPs of MBT for attention kernels, kinds of fusion and ways to exchange the bottleneck.

    python benchmarks/mbt_forward.py                              # CPU: size small, a few minutes
    python benchmarks/mbt_forward.py --size base --batch_size 8   # GPU: also bf16, torch.compile, achieved TFLOP/s

Measurement: a time is the minimum of several calls after a warm-up call, since other load on the machine can only add time.
Cases to be compared run right after each other. Forward runs in evaluation mode without gradients; a training step is
forward, loss, backward and an SGD-momentum update. Peak memory is the memory in addition to the loaded model: on CUDA the
allocator's peak, elsewhere on Linux the kernel's high-water mark of resident memory (VmHWM, reset before each phase). On
the CPU, every case runs in its own forked process, so that no case inherits another's heap. FLOPs (two per multiply-add of
every matrix product) are computed by a formula and checked with torch.utils.flop_counter on the meta device; a mismatch
is an error. The growth exponent is the least-squares slope of log(time) or log(FLOPs) against log(frames): 1 is linear.
The audio stream does not grow with the frames, so exponents of the whole model start below 1.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from hf_avfusion.evaluation.costs import (
    PeakMemory,
    best_time,
    best_times_in_turn,
    count_flops,
    in_own_process,
    inference,
    training_step,
)
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification

SIZES = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
FUSIONS = ("bottleneck", "self_attention", "late")
NUM_LABELS = 309  # VGGSound


@dataclass(frozen=True)
class Case:
    fusion: str  # one of FUSIONS
    attention: str  # "eager" or "sdpa"
    frames: int
    dtype: str = "float32"
    compiled: bool = False

    @property
    def variant(self) -> str:
        return (
            f"{self.attention} {'bf16' if self.dtype == 'bfloat16' else 'fp32'}{' compiled' if self.compiled else ''}"
        )


@dataclass(frozen=True)
class Result:
    forward_s: float
    step_s: float
    forward_mib: float | None  # peak in addition to the loaded model; None if the system does not report it
    step_mib: float | None
    repeats: int


def build_config(arguments: argparse.Namespace, fusion: str, frames: int) -> MBTConfig:
    size = SIZES[arguments.size]
    return MBTConfig(
        **size,
        fusion="self_attention" if fusion == "self_attention" else "bottleneck",
        fusion_layer=size["num_hidden_layers"] if fusion == "late" else None,
        num_frames=frames,
        image_size=arguments.image_size,
        spectrogram_length=arguments.spectrogram_length,
        num_labels=NUM_LABELS,
    )


def build_inputs(config: MBTConfig, batch_size: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    shape = {"device": device, "dtype": dtype}
    return {
        "pixel_values": torch.randn(batch_size, config.num_frames, 3, *config.image_hw, **shape),
        "input_features": torch.randn(batch_size, config.spectrogram_length, config.num_mel_bins, **shape),
        "labels": torch.zeros(batch_size, dtype=torch.long, device=device),
    }


# ---------------------------------------------------------------------------------------------------------- FLOPs


def flops_by_formula(config: MBTConfig, batch_size: int) -> tuple[int, int]:
    """Computes the FLOPs of a forward pass and of a training step: matrix products only, two FLOPs per multiply-add."""
    d, m = config.hidden_size, config.intermediate_size
    patch_height, patch_width = config.patch_hw
    patches = {
        "video": (config.num_frames // config.tubelet_size)
        * (config.image_hw[0] // patch_height)
        * (config.image_hw[1] // patch_width),
        "audio": (config.spectrogram_length // patch_height) * (config.num_mel_bins // patch_width),
    }
    cls = int(config.readout == "token")
    tokens = {name: count + cls for name, count in patches.items()}

    def block(n: int, extra_keys: int = 0) -> int:
        # q, o and the two dense layers of the MLP; k and v; attention scores and their product with the values.
        keys = n + extra_keys
        return 2 * n * (2 * d * d + 2 * d * m) + 2 * keys * 2 * d * d + 2 * 2 * n * keys * d

    encoder = 0
    for layer in range(config.num_hidden_layers):
        fused = layer >= config.fusion_layer
        for n in tokens.values():
            if not fused:
                encoder += block(n)
            elif config.fusion == "bottleneck":
                encoder += block(n + config.num_bottleneck_rows)
            else:
                encoder += block(n, extra_keys=sum(tokens.values()) - n)
    embeddings = 2 * patches["video"] * config.num_channels * config.tubelet_size * patch_height * patch_width * d
    # For a mono spectrogram, the kernel is summed over its input channels.
    embeddings += 2 * patches["audio"] * patch_height * patch_width * d
    heads = len(tokens) * 2 * d * config.num_labels
    forward = batch_size * (embeddings + encoder + heads)
    # Backward has two products per forward product, and one if the input needs no gradient.
    return forward, 3 * forward - batch_size * embeddings


def check_flops(config: MBTConfig, batch_size: int) -> tuple[int, int]:
    """Returns `flops_by_formula` after checking it with torch's counter, on meta tensors without computing anything."""
    with torch.device("meta"):
        model = MBTForAudioVisualClassification(config).train()
        inputs = build_inputs(config, batch_size, "meta", torch.float32)
    forward, step = flops_by_formula(config, batch_size)
    counted = count_flops(lambda: model(**inputs))
    counted_step = count_flops(lambda: model(**inputs).loss.backward())
    for what, ours, theirs in (("forward", forward, counted), ("training step", step, counted_step)):
        if abs(ours - theirs) > 1e-3 * theirs:
            raise RuntimeError(
                f"{what} FLOPs: the formula gives {ours:.6g}, but torch.utils.flop_counter gives {theirs:.6g}."
            )
    return forward, step


# ------------------------------------------------------------------------------------------------- time and memory


def measure(case: Case, arguments: argparse.Namespace) -> Result:
    device, dtype = arguments.device, getattr(torch, case.dtype)
    torch.manual_seed(0)
    config = build_config(arguments, case.fusion, case.frames)
    config._attn_implementation = case.attention
    model = MBTForAudioVisualClassification(config).to(device, dtype)
    inputs = build_inputs(config, arguments.batch_size, device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    run = torch.compile(model) if case.compiled else model
    forward, step = inference(run, inputs), training_step(run, inputs, optimizer)

    baseline = PeakMemory.now(device)
    forward()
    with PeakMemory(device, baseline) as forward_memory:
        forward_s, forward_repeats = best_time(forward, device, arguments.repeats, arguments.seconds)
    step()
    with PeakMemory(device, baseline) as step_memory:
        step_s, step_repeats = best_time(step, device, arguments.repeats, arguments.seconds)
    return Result(forward_s, step_s, forward_memory.mib, step_memory.mib, min(forward_repeats, step_repeats))


# -------------------------------------------------------------------------------------------- bottleneck exchange


def measure_exchange(frames: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measures the seconds of all fusion layers for four ways to exchange the bottleneck, forward and forward + backward.

    "cat": the input of each stream is torch.cat([tokens, bottleneck]), as in the model. "in place": the mean overwrites the
    bottleneck rows in the block's output, so no token is copied. "tokens only": no bottleneck, a lower bound.
    "cat alone": only the copies of "cat", without blocks.
    """
    device = arguments.device
    torch.manual_seed(0)
    config = build_config(arguments, "bottleneck", frames)
    config._attn_implementation = "sdpa"
    model = MBTForAudioVisualClassification(config).to(device).eval()
    layers = model.mbt.layers[config.fusion_layer :]
    rows = config.num_bottleneck_rows
    counts = {
        "video": model.mbt.video_embeddings.position_embeddings.shape[1],
        "audio": model.mbt.audio_embeddings.position_embeddings.shape[1],
    }
    tokens = {
        name: torch.randn(arguments.batch_size, n, config.hidden_size, device=device, requires_grad=True)
        for name, n in counts.items()
    }
    bottleneck = torch.randn(arguments.batch_size, rows, config.hidden_size, device=device, requires_grad=True)

    def by_cat() -> Tensor:
        streams, shared = dict(tokens), bottleneck
        for layer in layers:
            updates = []
            for name in streams:
                joint = layer.block(name)(torch.cat([streams[name], shared], dim=1))[0]
                streams[name] = joint[:, : counts[name]]
                updates.append(joint[:, counts[name] :])
            shared = (updates[0] + updates[1]) / 2
        return streams["video"].sum() + streams["audio"].sum()

    def in_place() -> Tensor:
        joint = {name: torch.cat([tokens[name], bottleneck], dim=1) for name in tokens}
        for layer in layers:
            joint = {name: layer.block(name)(stream)[0] for name, stream in joint.items()}
            shared = (joint["video"][:, counts["video"] :] + joint["audio"][:, counts["audio"] :]) / 2
            for name, stream in joint.items():
                stream[:, counts[name] :] = shared
        return sum(joint[name][:, : counts[name]].sum() for name in joint)

    def tokens_only() -> Tensor:
        streams = dict(tokens)
        for layer in layers:
            streams = {name: layer.block(name)(stream)[0] for name, stream in streams.items()}
        return streams["video"].sum() + streams["audio"].sum()

    def cat_alone() -> Tensor:
        return sum(torch.cat([tokens[name], bottleneck], dim=1)[:, :1].sum() for name in tokens for _ in layers)

    ways = {"cat": by_cat, "in place": in_place, "tokens only": tokens_only, "cat alone": cat_alone}
    with torch.no_grad():
        if not torch.allclose(by_cat(), in_place(), rtol=1e-4):
            raise RuntimeError("the in-place exchange and the concatenation give different results")

    def forward(way: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            way()

    def both(way: Callable[[], Tensor]) -> None:
        way().backward()
        model.zero_grad(set_to_none=True)
        for leaf in (*tokens.values(), bottleneck):
            leaf.grad = None

    calls = {(name, "forward"): partial(forward, way) for name, way in ways.items()}
    calls |= {(name, "both"): partial(both, way) for name, way in ways.items()}
    times = best_times_in_turn(calls, device, max(arguments.repeats, 2) * 2)
    return {name: {kind: times[name, kind] for kind in ("forward", "both")} for name in ways}


# ---------------------------------------------------------------------------------------------------------- report


def growth(frames: list[int], values: list[float]) -> float:
    """Least-squares slope of log(values) against log(frames)."""
    x, y = [math.log(value) for value in frames], [math.log(value) for value in values]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def exponent(frames: list[int], values: list[float]) -> str:
    return f"{growth(frames, values):.2f}" if len(frames) > 1 else "-"


def show(value: float | None, pattern: str = "{:,.0f}") -> str:
    return "?" if value is None else pattern.format(value)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def print_fusions(console: Console, results: dict, flops: dict, frames: list[int], variant: str, on_gpu: bool) -> None:
    table = Table(
        title=f"Fusion, {variant} (x: relative to late fusion at the same number of frames)", title_justify="left"
    )
    columns = ["fusion", "frames", "GFLOPs", "x", "forward ms", "x", "peak MiB", "step ms", "x", "peak MiB"]
    for column in columns + ["fwd TFLOP/s", "step TFLOP/s"] * on_gpu:
        table.add_column(column, justify="left" if column == "fusion" else "right")
    for fusion in FUSIONS:
        for count in frames:
            result, base = results[variant, fusion, count], results[variant, "late", count]
            forward, step = flops[fusion, count]
            row = [
                fusion,
                str(count),
                f"{forward / 1e9:,.1f}",
                f"{forward / flops['late', count][0]:.2f}",
                milliseconds(result.forward_s),
                f"{result.forward_s / base.forward_s:.2f}",
                show(result.forward_mib),
                milliseconds(result.step_s),
                f"{result.step_s / base.step_s:.2f}",
                show(result.step_mib),
            ]
            if on_gpu:
                row += [f"{forward / result.forward_s / 1e12:.1f}", f"{step / result.step_s / 1e12:.1f}"]
            table.add_row(*row)
        for label, some in (("growth", frames), ("last two", frames[-2:])):
            own = [results[variant, fusion, count] for count in some]
            table.add_row(
                "",
                f"[i]{label}[/i]",
                exponent(some, [flops[fusion, count][0] for count in some]),
                "",
                exponent(some, [result.forward_s for result in own]),
                "",
                "",
                exponent(some, [result.step_s for result in own]),
                end_section=label != "growth",
            )
    console.print(table)


def print_variants(console: Console, results: dict, frames: list[int], fusion: str, variants: list[str]) -> None:
    table = Table(
        title=f"Attention, {fusion} (x: {variants[0]} divided by this variant; above 1 is better)", title_justify="left"
    )
    for column in ["variant", "frames", "forward ms", "x", "peak MiB", "x", "step ms", "x", "peak MiB", "x"]:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant in variants:
        for count in frames:
            result, base = results[variant, fusion, count], results[variants[0], fusion, count]
            row = [variant, str(count)]
            for kind in ("forward", "step"):
                seconds, mib = getattr(result, f"{kind}_s"), getattr(result, f"{kind}_mib")
                base_mib = getattr(base, f"{kind}_mib")
                row += [milliseconds(seconds), f"{getattr(base, f'{kind}_s') / seconds:.2f}", show(mib)]
                row.append("?" if mib is None or base_mib is None else f"{base_mib / max(mib, 1e-3):.2f}")
            table.add_row(*row)
        table.add_section()
    console.print(table)


def print_exchange(console: Console, exchange: dict[int, dict[str, dict[str, float]]]) -> None:
    table = Table(
        title="Bottleneck exchange, all fusion layers of both streams (% of the time with torch.cat)",
        title_justify="left",
    )
    for column in ["frames", "method", "forward ms", "%", "forward + backward ms", "%"]:
        table.add_column(column, justify="left" if column == "method" else "right")
    for count, ways in exchange.items():
        for way, times in ways.items():
            row = [str(count), way]
            for kind in ("forward", "both"):
                row += [f"{times[kind] * 1e3:,.2f}", f"{100 * times[kind] / ways['cat'][kind]:.1f}"]
            table.add_row(*row)
        table.add_section()
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--frames", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--image_size", type=int, help="default: 224 on a GPU, 112 on the CPU")
    parser.add_argument("--spectrogram_length", type=int, help="default: 800 on a GPU, 400 on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="calls per time; the fastest counts")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="stop repeating a call after this many seconds (at least 2 calls)"
    )
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    arguments.image_size = arguments.image_size or (224 if on_gpu else 112)
    arguments.spectrogram_length = arguments.spectrogram_length or (800 if on_gpu else 400)
    arguments.frames = sorted(set(arguments.frames))
    if any(count < 2 or count % 2 for count in arguments.frames):
        parser.error(f"--frames must be even numbers, since a tubelet has two frames; got {arguments.frames}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    on_gpu = arguments.device == "cuda"
    console = Console(width=130)
    kinds = [("eager", "float32", False), ("sdpa", "float32", False)]
    if on_gpu:
        kinds += [("eager", "bfloat16", False), ("sdpa", "bfloat16", False), ("sdpa", "bfloat16", True)]
    flops = {
        (fusion, count): check_flops(build_config(arguments, fusion, count), arguments.batch_size)
        for fusion in FUSIONS
        for count in arguments.frames
    }
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    console.print(
        f"MBT-{arguments.size} on {device}, torch {torch.__version__}, batch {arguments.batch_size}, frames "
        f"{arguments.image_size}x{arguments.image_size} in tubelets 2x16x16, spectrogram "
        f"{arguments.spectrogram_length}x128, best of up to {arguments.repeats} calls"
    )
    if on_gpu:
        console.print(f"float32 products with TF32 {'on' if torch.backends.cuda.matmul.allow_tf32 else 'off'}")
    console.print("In every case, the FLOPs of forward and training step by formula match torch.utils.flop_counter.")

    cases = [Case(f, a, n, d, c) for n in arguments.frames for f in FUSIONS for a, d, c in kinds]
    variants = list(dict.fromkeys(case.variant for case in cases))
    results = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("cases", total=len(cases) + len(arguments.frames))

        def show_progress(what: str) -> None:
            progress.update(task, description=what)
            if not console.is_terminal:  # without a progress bar, print a line per case
                print(
                    f"{what} ({progress.tasks[task].completed:.0f} of {progress.tasks[task].total:.0f} done)",
                    file=sys.stderr,
                )

        for case in cases:
            show_progress(f"{case.variant}, {case.fusion}, {case.frames} frames")
            run = measure(case, arguments) if on_gpu else in_own_process(measure, case, arguments)
            results[case.variant, case.fusion, case.frames] = run
            progress.advance(task)
        exchange = {}
        for count in arguments.frames:
            show_progress(f"bottleneck exchange, {count} frames")
            run = measure_exchange if on_gpu else lambda *given: in_own_process(measure_exchange, *given)
            exchange[count] = run(count, arguments)
            progress.advance(task)
    fewest = min(result.repeats for result in results.values())
    console.print(f"Every time is the minimum of at least {fewest} calls.\n")
    for fusion in FUSIONS:
        print_variants(console, results, arguments.frames, fusion, variants)
    for variant in variants[1:]:
        print_fusions(console, results, flops, arguments.frames, variant, on_gpu)
    print_exchange(console, exchange)


if __name__ == "__main__":
    main()
