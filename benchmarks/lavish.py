"""Measures what LAVISH's adapters cost beside the frozen backbone, LoRA and full fine-tuning, and the choices in its code.

    python benchmarks/lavish.py                                  # CPU, ViT-B; about 30 minutes on two cores
    python benchmarks/lavish.py --parts training --batches 1 2   # some of the parts
    python benchmarks/lavish.py --tiny                           # every line in seconds, without meaning

A sample is one second: a frame of 224 x 224 and a spectrogram. Weights are random. Times are the shortest of several rounds; in
each round, all cases run one after another, so that other load on the machine meets them alike. Compare ratios, not times. Peak
memory is measured in a process of its own, above the memory of the loaded model (VmHWM). Parts:

training    forward and training step of the frozen base with its head, LAVISH, LoRA and full fine-tuning, by batch
original    training step against the structure of the authors' code: attention as explicit matrix products, adapters as grouped
            1x1 convolutions (nn.Conv2d, nn.BatchNorm2d) on permuted tensors
grouped     three ways to compute a grouped linear layer, at the widths of ViT-B and Swin-V2-L
one_call    both streams of the frozen backbone in one call or in two
encoders    LAVISH against MBT-B, and against an encoder for each modality (Swin-V2-B and VGGish)
tpavi       TPAVI's product, re-associated or as published
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hf_avfusion.evaluation.costs import (
    PeakMemory,
    best_times_in_turn,
    count_parameters,
    in_own_process,
    inference,
    training_step,
)
from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig
from hf_avfusion.models.lavish.layers_lavish import GroupedLinear, LavishAdapter
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification
from hf_avfusion.models.lavish.segmentation_lavish import attend
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.models.shared.vggish import VGGish

ADAPTER = {"reduction": 8, "groups": 2, "num_tokens": 2}
NUM_LABELS = 29  # AVE
ROWS, MELS = 102, 128  # spectrogram of a second for ViT, as published
LORA_TARGETS = r".*backbone.*\.(q_proj|v_proj)"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measured models."""

    vit: dict[str, Any]
    swin: dict[str, Any]
    grouped: tuple[tuple[int, int], ...]  # tokens, width
    image: int
    positions: tuple[int, ...]  # of TPAVI, per second


SIZES = {
    "base": Sizes(
        vit={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        swin={
            "embed_dim": 128,
            "num_heads": [4, 8, 16, 32],
            "depths": [2, 2, 18, 2],
            "window_size": 12,
            "image_size": 192,
        },
        grouped=((197, 768), (2304, 192), (576, 384), (144, 768), (36, 1536)),
        image=224,
        positions=(196, 784),
    ),
    "tiny": Sizes(
        vit={"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        swin={"embed_dim": 16, "num_heads": [1, 2], "depths": [1, 1], "window_size": 4, "image_size": 32},
        grouped=((5, 16),),
        image=32,
        positions=(4,),
    ),
}


def build_lavish(backbone: dict[str, Any], adapter: dict[str, Any] | None, **fields: Any) -> nn.Module:
    """A classifier of single seconds whose backbone is frozen; `adapter` None: without adapters."""
    torch.manual_seed(0)
    config = LavishTwoStreamConfig(
        backbone_config=backbone, adapter=adapter, num_segments=1, num_labels=NUM_LABELS, drop_remainder=True, **fields
    )
    model = LavishForAudioVisualClassification(config)
    model.base_model.backbone.requires_grad_(False)
    return model


def vit_model(kind: str, sizes: Sizes, attention: str = "sdpa") -> nn.Module:
    """ViT with `kind`: base, lavish, lora or full."""
    backbone = {"model_type": "vit", "image_size": sizes.image, **sizes.vit}
    fields = {"spectrogram_length": ROWS, "num_mel_bins": MELS, "attn_implementation": attention}
    model = build_lavish(backbone, ADAPTER if kind == "lavish" else None, **fields)
    if kind == "full":
        model.requires_grad_(True)
    if kind == "lora":
        return get_peft_model(model, LoraConfig(r=8, target_modules=LORA_TARGETS, modules_to_save=["classifier"]))
    return model


def vit_inputs(sizes: Sizes, batch: int) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(batch, 1, 3, sizes.image, sizes.image),
        "input_features": torch.randn(batch, 1, ROWS, MELS),
        "labels": torch.zeros(batch, 1, dtype=torch.long),
    }


def calls_of(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Callable[[], None]]:
    """A forward pass without gradients, and a training step with Adam."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    unlabelled = {name: value for name, value in inputs.items() if name != "labels"}

    def forward() -> None:
        model.eval()
        run()

    run, optimizer = inference(model, unlabelled), torch.optim.Adam(trained, lr=1e-6)
    return {"forward": forward, "step": training_step(model, inputs, optimizer)}


def compare(models: dict[str, nn.Module], inputs: dict[str, dict[str, Tensor]], rounds: int) -> dict[tuple, float]:
    """(model, forward or step) -> shortest time in s."""
    calls = {
        (name, kind): call for name, model in models.items() for kind, call in calls_of(model, inputs[name]).items()
    }
    times: dict[tuple, float] = {}
    for kind in ("forward", "step"):
        times |= best_times_in_turn({key: call for key, call in calls.items() if key[1] == kind}, "cpu", rounds)
    return times


def peak(build: Callable[[], nn.Module], inputs: dict[str, Tensor]) -> dict[str, float | None]:
    """Peak memory of both calls, above that of the loaded model, MiB."""
    calls = calls_of(build(), inputs)
    baseline, peaks = PeakMemory.now("cpu"), {}
    for kind, call in calls.items():
        call()  # the first step makes the state of the optimiser
        with PeakMemory("cpu", baseline) as memory:
            call()
        peaks[kind] = memory.mib
    return peaks


# -------------------------------------------------------------------------------------------------------- the parts


def training(sizes: Sizes, options: argparse.Namespace, console: Console) -> None:
    kinds = ("base", "lavish", "lora", "full")
    columns = ("batch", "model", "trainable M", "forward ms", "x", "step ms", "x", "forward MiB", "step MiB")
    table = Table(
        *columns, title="ViT: frozen base with its head, LAVISH (r 8, g 2, T 2), LoRA (r 8, q and v), all weights"
    )
    for batch in options.batches:
        inputs = vit_inputs(sizes, batch)
        peaks = {kind: in_own_process(peak, partial(vit_model, kind, sizes), inputs) for kind in kinds}
        models = {kind: vit_model(kind, sizes) for kind in kinds}
        times = in_own_process(compare, models, dict.fromkeys(kinds, inputs), options.rounds)
        for kind in kinds:
            forward, step = times[kind, "forward"], times[kind, "step"]
            table.add_row(
                str(batch), kind, f"{count_parameters(models[kind])[1] / 1e6:.2f}",
                f"{1e3 * forward:,.0f}", f"{forward / times['base', 'forward']:.2f}",
                f"{1e3 * step:,.0f}", f"{step / times['full', 'step']:.2f}",
                show(peaks[kind]["forward"]), show(peaks[kind]["step"]),
            )  # fmt: skip
    console.print(table)


class OriginalAdapter(nn.Module):
    """The adapter with the layers of the authors' code on [N, C, n, 1]; same weights and result as `adapter`."""

    def __init__(self, adapter: LavishAdapter):
        super().__init__()
        self.adapter, options = adapter, adapter.options
        self.down, self.up = (self._convolution(layer) for layer in (adapter.down, adapter.up))
        self.bn_down, self.bn_up = (
            nn.BatchNorm2d(layer.out_features) if options.use_bn else nn.Identity()
            for layer in (adapter.down, adapter.up)
        )

    @staticmethod
    def _convolution(layer: GroupedLinear) -> nn.Conv2d:
        convolution = nn.Conv2d(layer.in_features, layer.out_features, 1, groups=layer.groups, bias=False)
        convolution.weight = nn.Parameter(layer.weight.detach()[:, :, None, None].clone())
        return convolution

    def forward(self, own: Tensor, other: Tensor, *present: Tensor | None) -> Tensor:
        hidden = own.transpose(1, 2).unsqueeze(-1)  # [N, C, n, 1]
        context = other.transpose(1, 2).unsqueeze(-1)
        latents = self.adapter.latents.unsqueeze(0).repeat(len(own), 1, 1)
        scores = torch.bmm(latents, context.squeeze(-1)).softmax(dim=-1)
        latents = latents + torch.bmm(scores, context.squeeze(-1).permute(0, 2, 1))
        scores = torch.bmm(hidden.squeeze(-1).permute(0, 2, 1), latents.permute(0, 2, 1)).softmax(dim=-1)
        hidden = hidden + self.adapter.fusion_gate * torch.bmm(scores, latents).permute(0, 2, 1).unsqueeze(-1)
        if self.adapter.norm_in is not None and self.adapter.options.ln_before_with_fusion:
            hidden = self.adapter.norm_in(hidden.squeeze(-1).permute(0, 2, 1)).permute(0, 2, 1).unsqueeze(-1)
        hidden = torch.relu(self.bn_down(self.down(hidden)))
        hidden = self.bn_up(self.up(hidden)).squeeze(-1).permute(0, 2, 1)
        hidden = hidden if self.adapter.norm_out is None else self.adapter.norm_out(hidden)
        return hidden if self.adapter.gate is None else self.adapter.gate * hidden


def original_model(sizes: Sizes) -> nn.Module:
    model = vit_model("lavish", sizes, attention="eager")
    for block in model.base_model.blocks:
        for slot in (block.fusion_attn, block.fusion_mlp):
            slot.audio, slot.video = OriginalAdapter(slot.audio), OriginalAdapter(slot.video)
    return model


def original(sizes: Sizes, options: argparse.Namespace, console: Console) -> None:
    table = Table(
        "batch",
        "model",
        "forward ms",
        "step ms",
        "steps per s, x",
        title="LAVISH on ViT against the original's structure",
    )
    for batch in options.batches:
        inputs = vit_inputs(sizes, batch)
        models = {
            "original's structure": original_model(sizes),
            "the same, our adapters": vit_model("lavish", sizes, attention="eager"),
            "ours": vit_model("lavish", sizes),
        }
        with torch.no_grad():
            results = [model.train()(**inputs).logits for model in models.values()]
        for result in results[:-1]:
            torch.testing.assert_close(result, results[-1], rtol=1e-3, atol=1e-4)
        times = compare(models, dict.fromkeys(models, inputs), options.rounds)
        for name in models:
            forward, step = times[name, "forward"], times[name, "step"]
            ratio = times["original's structure", "step"] / step
            table.add_row(str(batch), name, f"{1e3 * forward:,.0f}", f"{1e3 * step:,.0f}", f"{ratio:.2f}")
    console.print(table)


def grouped(sizes: Sizes, options: argparse.Namespace, console: Console) -> None:
    """Forward and backward of both layers of an adapter."""
    table = Table(
        "rows",
        "tokens x width",
        "convolution ms",
        "batched ms",
        "split linear ms",
        title="Grouped linear layer, g 2, r 8",
    )
    for batch in options.batches:
        for tokens, width in sizes.grouped:
            hidden = width // ADAPTER["reduction"]
            down, up = (GroupedLinear(*pair, 2) for pair in ((width, hidden), (hidden, width)))
            values = torch.randn(batch, tokens, width, requires_grad=True)
            results, calls = {}, {}
            for name, way in WAYS.items():
                call = partial(adapter_layers, way, values, down, up)
                results[name], calls[name] = call().detach(), call
            for result in results.values():
                torch.testing.assert_close(result, results["split"], rtol=1e-3, atol=1e-4)
            times = best_times_in_turn(calls, "cpu", 3 * options.rounds)
            table.add_row(str(batch), f"{tokens} x {width}", *(f"{1e3 * times[name]:.2f}" for name in WAYS))
    console.print(table)


def adapter_layers(way: Callable, values: Tensor, down: GroupedLinear, up: GroupedLinear) -> Tensor:
    result = way(way(values, down), up)
    result.sum().backward()
    values.grad = down.weight.grad = up.weight.grad = None
    return result


def by_convolution(values: Tensor, layer: GroupedLinear) -> Tensor:
    return nn.functional.conv1d(values.transpose(1, 2), layer.weight.unsqueeze(-1), groups=layer.groups).transpose(1, 2)


def by_batched_product(values: Tensor, layer: GroupedLinear) -> Tensor:
    parts = values.unflatten(-1, (layer.groups, -1)).flatten(0, 1).transpose(0, 1)  # [g, N * n, inputs / g]
    weights = layer.weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)
    return torch.bmm(parts, weights).transpose(0, 1).reshape(*values.shape[:-1], -1)


WAYS = {"convolution": by_convolution, "batched": by_batched_product, "split": lambda values, layer: layer(values)}


def one_call(sizes: Sizes, options: argparse.Namespace, console: Console) -> None:
    table = Table(
        "backbone",
        "batch",
        "two calls ms",
        "one call ms",
        "x",
        title="Both streams through the frozen backbone, forward",
    )
    for name, config in (("vit", sizes.vit), ("swinv2", sizes.swin)):
        config = {"model_type": name, "image_size": sizes.image, **config}
        side = config["image_size"]
        model = build_lavish(config, None, spectrogram_length=side, num_mel_bins=side).base_model.backbone.eval()
        for batch in options.batches:
            streams = torch.randn(2 * batch, 3, side, side)

            def one(model: nn.Module = model, streams: Tensor = streams) -> None:
                with torch.no_grad():
                    model(streams)

            def two(model: nn.Module = model, streams: Tensor = streams) -> None:
                with torch.no_grad():
                    for stream in streams.chunk(2):
                        model(stream)

            times = best_times_in_turn({"two": two, "one": one}, "cpu", options.rounds)
            cells = [f"{1e3 * times[kind]:,.0f}" for kind in ("two", "one")]
            table.add_row(name, str(batch), *cells, f"{times['two'] / times['one']:.2f}")
    console.print(table)


class TwoEncoders(nn.Module):
    """Swin-V2 for frames and VGGish for sound, all trained, and a linear head on both features."""

    def __init__(self, swin: dict[str, Any]):
        super().__init__()
        side = swin["image_size"]
        fields = {"modalities": ("video",), "spectrogram_length": side, "num_mel_bins": side}
        self.video = build_lavish({"model_type": "swinv2", **swin}, None, **fields).base_model
        self.audio = VGGish()
        self.classifier = nn.Linear(self.video.config.hidden_size + 128, NUM_LABELS)

    def forward(self, pixel_values: Tensor, vggish_features: Tensor, labels: Tensor | None = None) -> Any:
        features = [self.video(pixel_values=pixel_values).pooler_output[:, 0], self.audio(vggish_features)]
        logits = self.classifier(torch.cat(features, dim=1))
        return argparse.Namespace(loss=None if labels is None else nn.functional.cross_entropy(logits, labels))


def encoders(sizes: Sizes, options: argparse.Namespace, console: Console) -> None:
    """All take one second of 224 x 224 (192 x 192 for Swin) and its sound."""
    table = Table(
        "batch", "model", "total M", "trained M", "forward ms", "samples/s", "step ms", "samples/s", title="Encoders"
    )
    swin, side = sizes.swin, sizes.swin["image_size"]
    for batch in options.batches:
        video = torch.randn(batch, 1, 3, side, side)
        mbt = MBTConfig(
            **sizes.vit, image_size=sizes.image, num_frames=2, fusion_layer=sizes.vit["num_hidden_layers"] * 2 // 3,
            spectrogram_length=96, num_mel_bins=128, num_labels=NUM_LABELS,
        )  # fmt: skip
        lavish_swin = build_lavish(
            {"model_type": "swinv2", **swin}, ADAPTER, spectrogram_length=side, num_mel_bins=side
        )
        models = {
            "LAVISH, ViT": vit_model("lavish", sizes),
            "LAVISH, Swin-V2": lavish_swin,
            "MBT": MBTForAudioVisualClassification(mbt),
            "Swin-V2 and VGGish": TwoEncoders(swin).requires_grad_(True),
        }
        labels = torch.zeros(batch, dtype=torch.long)
        inputs = {
            "LAVISH, ViT": vit_inputs(sizes, batch),
            "LAVISH, Swin-V2": {
                "pixel_values": video, "input_features": torch.randn(batch, 1, side, side), "labels": labels[:, None]
            },
            "MBT": {
                "pixel_values": torch.randn(batch, 2, 3, sizes.image, sizes.image),
                "input_features": torch.randn(batch, 96, 128),
                "labels": labels,
            },
            "Swin-V2 and VGGish": {
                "pixel_values": video, "vggish_features": torch.randn(batch, 96, 64), "labels": labels
            },
        }  # fmt: skip
        times = compare(models, inputs, options.rounds)
        for name, model in models.items():
            total, trained = count_parameters(model)
            row = [f"{total / 1e6:.1f}", f"{trained / 1e6:.1f}"]
            for kind in ("forward", "step"):
                row += [f"{1e3 * times[name, kind]:,.0f}", f"{batch / times[name, kind]:.2f}"]
            table.add_row(str(batch), name, *row)
    console.print(table)


def tpavi(sizes: Sizes, options: argparse.Namespace, console: Console) -> None:
    table = Table(
        "seconds x positions",
        "published ms",
        "ours ms",
        "x",
        title="TPAVI's product, 128 channels, forward and backward",
    )

    def published(query: Tensor, key: Tensor, value: Tensor, seconds: int) -> Tensor:
        parts = (values.unflatten(0, (-1, seconds)).transpose(1, 2).flatten(2) for values in (query, key, value))
        query, key, value = parts  # [B, C, S * n]
        weights = query.transpose(1, 2) @ key / query.shape[2]
        result = (weights @ value.transpose(1, 2)).transpose(1, 2)
        return result.unflatten(2, (seconds, -1)).transpose(1, 2).flatten(0, 1)

    for positions in sizes.positions:
        values = [torch.randn(5, 128, positions, requires_grad=True) for _ in range(3)]
        calls = {}
        for name, way in (("published", published), ("ours", attend)):

            def call(way: Callable = way, values: list[Tensor] = values) -> Tensor:
                result = way(*values, 5)
                result.sum().backward()
                return result.detach()

            calls[name] = call
        torch.testing.assert_close(calls["published"](), calls["ours"](), rtol=1e-3, atol=1e-4)
        times = best_times_in_turn(calls, "cpu", 3 * options.rounds)
        cells = [f"{1e3 * times[name]:.2f}" for name in calls]
        table.add_row(f"5 x {positions}", *cells, f"{times['published'] / times['ours']:.2f}")
    console.print(table)


def show(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


PARTS = {
    "training": training,
    "original": original,
    "grouped": grouped,
    "one_call": one_call,
    "encoders": encoders,
    "tpavi": tpavi,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 8], help="samples of a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each case")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    options = parser.parse_args()
    if min(options.batches) < 1 or options.rounds < 1:
        parser.error("--batches and --rounds must be at least 1")
    console = Console(width=130)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # of peft
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in options.parts:
        run = PARTS[name]
        if name == "training":  # starts processes of its own, before this one runs parallel code
            run(SIZES["tiny" if options.tiny else "base"], options, console)
        else:
            in_own_process(run, SIZES["tiny" if options.tiny else "base"], options, console)


if __name__ == "__main__":
    main()
