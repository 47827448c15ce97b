"""Measures how much time, peak memory and FLOPs masking saves in AV-MAE pretraining, compared with seeing all tokens.

    python benchmarks/avmae_pretrain.py                            # CPU: a small model, a few minutes
    python benchmarks/avmae_pretrain.py --size base --batch_size 32 --rounds 10    # GPU: bf16, published inputs

One run prints three tables: by mask ratio, by encoder strategy and by attention implementation. "all tokens" is the same model
without masking, which costs as much as a model with mask tokens in its encoder. A ratio ("x") of 4 means a quarter of the cost.

Measurement (`hf_avfusion.evaluation.costs`): a time is the minimum of several rounds. Each round runs every case once, so that
other load on the machine affects all cases. A step is forward, loss, backward and an AdamW update. Peak memory is the memory of
a step in addition to the loaded model. It includes gradients and optimiser state, which do not depend on the masks and are
printed. On the CPU, each case runs in its own process. FLOPs are those of a forward pass, counted by torch.utils.flop_counter
separately for encoder and decoder; the rest (target patches, loss) has no matrix products.

At the end, a profile of one step of the published case prints the cost of selecting and restoring tokens. It also checks that
nothing is recomputed: no sine or cosine, so no position table; and one gather per input, so no loop over clips.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hf_avfusion.evaluation.costs import compare_costs, count_flops
from hf_avfusion.models.avmae.configuration_avmae import AVMAEConfig
from hf_avfusion.models.avmae.modeling_avmae import AVMAEForPreTraining

TINY = {
    "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768,
    "decoder_hidden_size": 96, "decoder_num_hidden_layers": 4, "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 384,
}  # fmt: skip
SIZES = {
    "tiny": partial(AVMAEConfig, **TINY),
    "small": AVMAEConfig.small,
    "base": AVMAEConfig.base,
    "large": AVMAEConfig.large,
}
PUBLISHED = (0.9, 0.5)  # masked share of video and audio, VGGSound
ALL_TOKENS = (0.0, 0.0)
RATIOS = (ALL_TOKENS, (0.5, 0.5), (0.75, 0.5), PUBLISHED, (0.95, 0.7))
STRATEGIES = ("early", "shared", "separate", "mid_fusion")
TOKEN_OPS = ("aten::gather", "aten::scatter", "aten::argsort", "aten::sort", "aten::rand", "aten::embedding")


@dataclass(frozen=True)
class Case:
    ratios: tuple[float, float] = PUBLISHED
    strategy: str = "separate"
    attention: str = "sdpa"

    @property
    def full(self) -> Case:
        return Case(ALL_TOKENS, self.strategy, self.attention)


def build_config(case: Case, arguments: argparse.Namespace) -> AVMAEConfig:
    video, audio = case.ratios
    config = SIZES[arguments.size](
        encoder_strategy=case.strategy,
        video_mask_ratio=video,
        audio_mask_ratio=audio,
        loss_on_visible_tokens=case.ratios == ALL_TOKENS,  # otherwise there would be no loss
        image_size=arguments.image_size,
        num_frames=arguments.frames,
        spectrogram_length=arguments.spectrogram_length,
    )
    config._attn_implementation = case.attention
    return config


def build_model(case: Case, arguments: argparse.Namespace) -> AVMAEForPreTraining:
    torch.manual_seed(0)
    return AVMAEForPreTraining(build_config(case, arguments)).to(arguments.dtype)


def build_inputs(arguments: argparse.Namespace, device: str = "cpu") -> dict[str, Tensor]:
    config, shape = build_config(Case(), arguments), {"dtype": arguments.dtype, "device": device}
    batch = arguments.batch_size
    return {
        "pixel_values": torch.randn(batch, config.num_frames, 3, *config.image_hw, **shape),
        "input_features": torch.randn(batch, config.spectrogram_length, config.num_mel_bins, **shape),
    }


def flops_of_parts(case: Case, arguments: argparse.Namespace) -> tuple[int, int]:
    """Counts the forward FLOPs per clip of encoder (with its embeddings) and decoder on meta tensors, without computing."""
    with torch.device("meta"):
        model = AVMAEForPreTraining(build_config(case, arguments))
        inputs = build_inputs(arguments, "meta")
        visible = model.draw_masks(arguments.batch_size)
    inputs = {name: value.float() for name, value in inputs.items()}
    encoded = model.avmae(**inputs, **visible)
    hidden = (encoded.video_hidden_state, encoded.audio_hidden_state)
    encoder = count_flops(lambda: model.avmae(**inputs, **visible))
    decoder = count_flops(lambda: model.decoder(*hidden, visible["video_visible"], visible["audio_visible"]))
    return round(encoder / arguments.batch_size), round(decoder / arguments.batch_size)


# --------------------------------------------------------------------------------------------------------- report


def make_table(
    title: str, cases: Iterable[tuple[str, Case, Case]], costs: dict, parts: dict, arguments: argparse.Namespace
) -> Table:
    """Makes a table with one row per (name, case, reference case)."""
    table = Table("case", "visible tokens", title=title, title_justify="left")
    for column in ("encoder GFLOPs", "all GFLOPs", "x", "step ms", "x", "peak MiB", "x"):
        table.add_column(column, justify="right")
    for name, case, other in cases:
        config = build_config(case, arguments)
        seen = [config.num_visible_tokens(modality) for modality in ("video", "audio")]
        own, base = costs[case], costs[other]
        step, base_step = (arguments.batch_size / cost["training_clips_per_s"] for cost in (own, base))
        memory, base_memory = own["training_mib"], base["training_mib"]
        table.add_row(
            name,
            f"{seen[0]} + {seen[1]}",
            f"{parts[case][0] / 1e9:.2f}",
            f"{own['flops_per_clip'] / 1e9:.2f}",
            f"{base['flops_per_clip'] / own['flops_per_clip']:.2f}",
            f"{1000 * step:,.0f}" if step > 0.1 else f"{1000 * step:.1f}",
            f"{base_step / step:.2f}",
            "?" if memory is None else f"{memory:,.0f}",
            "?" if memory is None else f"{base_memory / memory:.2f}",
        )
    return table


def print_published(console: Console) -> None:
    """Prints the FLOPs of the published models for their inputs, without running them."""
    for size, strategy, ratios, rows in (
        ("base", "separate", PUBLISHED, 800),
        ("large", "separate", PUBLISHED, 800),
        ("large", "mid_fusion", (0.9, 0.7), 1000),
    ):
        inputs = argparse.Namespace(
            size=size, image_size=224, frames=16, spectrogram_length=rows, batch_size=1, dtype=torch.float32
        )
        case = Case(ratios, strategy)
        seen, every = (sum(flops_of_parts(each, inputs)) / 1e9 for each in (case, case.full))
        console.print(
            f"published inputs, 16 frames of 224^2 and {rows} spectrogram rows, {size}, {strategy}, {ratios[0]} / {ratios[1]} "
            f"masked: {seen:,.0f} GFLOPs forward, all tokens {every:,.0f}, x {every / seen:.2f}",
            highlight=False,
        )


def print_profile(arguments: argparse.Namespace, console: Console) -> None:
    """Prints how much of a training step's time selecting tokens takes, and checks that nothing is recomputed.

    Raises:
        RuntimeError: the step computes a sine or cosine (positions are tables), or has more gathers than inputs.
    """
    model = build_model(Case(), arguments).to(arguments.device).train()
    inputs = {name: value.to(arguments.device) for name, value in build_inputs(arguments).items()}
    model(**inputs).loss.backward()
    on_gpu = arguments.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as forward:
        loss = model(**inputs).loss
    with profile(activities=activities) as backward:
        loss.backward()
    count = {event.key: event.count for event in forward.key_averages()}
    if recomputed := [name for name in ("aten::sin", "aten::cos") if count.get(name)]:
        raise RuntimeError(f"the forward pass computes positions: it calls {recomputed}")
    if count.get("aten::gather", 0) > len(inputs):
        raise RuntimeError(
            f"the forward pass loops over clips: {count['aten::gather']} gathers for {len(inputs)} inputs"
        )

    def spent(events: Iterable, names: tuple[str, ...] | None = None) -> float:
        own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        wanted = [event for event in events if names is None or event.key.startswith(names)]
        return sum(getattr(event, own) for event in wanted) / 1000

    total = spent(forward.key_averages()) + spent(backward.key_averages())
    tokens = spent(forward.key_averages(), TOKEN_OPS) + spent(backward.key_averages(), TOKEN_OPS)
    calls = ", ".join(f"{name.removeprefix('aten::')} {count[name]}" for name in TOKEN_OPS if count.get(name))
    console.print(
        f"profile of a step (0.9 / 0.5 masked, separate encoders, sdpa): drawing, gathering and scattering tokens takes "
        f"{tokens:.2f} of {total:.1f} ms ({tokens / total:.2%}); calls in the forward pass: {calls}; positions are not recomputed",
        highlight=False,
    )


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--size", choices=SIZES, default="base" if gpu else "tiny")
    parser.add_argument("--batch_size", type=int, default=32 if gpu else 2)
    parser.add_argument("--image_size", type=int, default=224 if gpu else 128)
    parser.add_argument("--frames", type=int, default=16, help="frames per clip")
    parser.add_argument("--spectrogram_length", type=int, default=800 if gpu else 400, help="rows of 10 ms")
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32")
    parser.add_argument("--rounds", type=int, default=10 if gpu else 3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    arguments.dtype = getattr(torch, arguments.dtype)
    torch.set_num_threads(arguments.threads)
    console = Console(width=max(120, Console().width))

    attentions = ["eager", "sdpa"]
    if arguments.device.startswith("cuda"):
        from transformers.utils import is_flash_attn_2_available

        attentions += ["flash_attention_2"] if is_flash_attn_2_available() else []
    cases = [Case(ratios) for ratios in RATIOS]
    for strategy in STRATEGIES:
        cases += [Case(strategy=strategy), Case(strategy=strategy).full]
    for attention in attentions:
        cases += [Case(attention=attention), Case(attention=attention).full]
    cases = list(dict.fromkeys(cases))

    costs = compare_costs(
        {case: partial(build_model, case, arguments) for case in cases},
        partial(build_inputs, arguments),
        device=arguments.device,
        rounds=arguments.rounds,
    )
    parts = {case: flops_of_parts(case, arguments) for case in cases}
    for case in cases:
        if abs(sum(parts[case]) - costs[case]["flops_per_clip"]) > 1e-3 * costs[case]["flops_per_clip"]:
            raise RuntimeError(f"{case}: encoder and decoder have {parts[case]} FLOPs, but the model has {costs[case]}")

    name = (
        torch.cuda.get_device_name() if arguments.device.startswith("cuda") else f"CPU, {arguments.threads} thread(s)"
    )
    console.print(
        f"{name}; torch {torch.__version__}; {arguments.size}, {costs[cases[0]]['parameters']:,} parameters, {arguments.dtype}, "
        f"batch {arguments.batch_size}, {arguments.frames} frames of {arguments.image_size}^2, "
        f"{arguments.spectrogram_length} spectrogram rows; peak memory includes "
        f"{3 * costs[cases[0]]['parameters'] * arguments.dtype.itemsize / 2**20:.0f} MiB of gradients and optimiser state",
        highlight=False,
    )
    report = partial(make_table, costs=costs, parts=parts, arguments=arguments)
    full = Case(ALL_TOKENS)
    rows = [
        ("all tokens" if case == full else "{} / {}".format(*case.ratios), case, full) for case in map(Case, RATIOS)
    ]
    console.print(report("by masked share of video / audio (separate encoders, sdpa)", rows))
    rows = []
    for strategy in STRATEGIES:
        case = Case(strategy=strategy)
        rows += [(f"{strategy}, all tokens", case.full, case.full), (f"{strategy}, 0.9 / 0.5", case, case.full)]
    console.print(report("by encoder strategy, each compared with itself with all tokens (sdpa)", rows))
    rows = []
    for ratios, what in ((ALL_TOKENS, "all tokens"), (PUBLISHED, "0.9 / 0.5")):
        rows += [
            (f"{kind}, {what}", Case(ratios, attention=kind), Case(ratios, attention="eager")) for kind in attentions
        ]
    console.print(report("by attention implementation, each compared with eager (separate encoders)", rows))
    print_published(console)
    print_profile(arguments, console)


if __name__ == "__main__":
    sys.exit(main())
