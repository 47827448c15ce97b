"""Counts parameters and FLOPs of LAVISH at published sizes, on the meta device.

    python benchmarks/lavish_counts.py                       # the tables
    python benchmarks/lavish_counts.py --output runs/counts  # and lavish_flops.csv, lavish_flops.png

"Trainable" are adapters and head. The original's total includes the backbone's head for 21,841 classes, which is never used. The
last digit of 2.065 comes from `gate_tk`, one parameter per adapter that its code never uses.

FLOPs are those of one second (a frame and its spectrogram) through ViT-B, against the number of latent tokens T and the reduction
r (supplementary figure 1): two per multiply-add of the matrix products, normalisation and activation not counted. They are linear
in T.
"""

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hf_avfusion.evaluation.costs import count_flops
from hf_avfusion.files import atomic_path, write_text
from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification
from hf_avfusion.visualization.charts import draw_lines

SWIN = {"model_type": "swinv2", "image_size": 192, "patch_size": 4, "window_size": 12, "depths": [2, 2, 18, 2]}
SWIN_LARGE = {**SWIN, "embed_dim": 192, "num_heads": [6, 12, 24, 48]}
SWIN_BASE = {**SWIN, "embed_dim": 128, "num_heads": [4, 8, 16, 32]}
TOKENS = (2, 16, 32, 48, 64)
REDUCTIONS = (4, 8, 16)
ROWS, MELS = 102, 128  # spectrogram of a second for ViT, as published
PLAIN = {"use_bn": False, "ln_before": False, "ln_post": False}


def vit(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


VIT_BASE = vit(768, 12, 12)


@dataclass
class Case:
    name: str
    backbone: dict[str, Any]
    adapter: dict[str, Any]
    original: float  # M parameters of the adapters in the original's code


CASES = (
    Case("Swin-V2-L, r 8, g 2, T 2", SWIN_LARGE, {"reduction": 8}, 8.448),
    Case("Swin-V2-L, r 4, g 2, T 16, no BN", SWIN_LARGE, {"reduction": 4, "num_tokens": 16, "use_bn": False}, 17.148),
    Case(
        "Swin-V2-L, r 8, g 4, T 64, no BN",
        SWIN_LARGE,
        {"reduction": 8, "groups": 4, "num_tokens": 64, "use_bn": False},
        8.835,
    ),
    Case("Swin-V2-B, r 8, g 2, T 2", SWIN_BASE, {"reduction": 8}, 3.887),
    Case("ViT-L, r 8, g 2, T 2", vit(1024, 24, 16), {"reduction": 8}, 13.394),
    Case("ViT-B, r 8, g 2, T 2", vit(768, 12, 12), {"reduction": 8}, 3.843),
    Case("ViT-B, r 4, g 2, T 2", vit(768, 12, 12), {"reduction": 4}, 7.391),
    Case("ViT-B, r 8, g 1, T 2", vit(768, 12, 12), {"reduction": 8, "groups": 1}, 7.382),
    Case("ViT-B, r 8, g 4, T 8, plain", vit(768, 12, 12), {"groups": 4, "num_tokens": 8, **PLAIN}, 2.065),
    Case(
        "ViT-B, r 16, g 4, T 8, plain",
        vit(768, 12, 12),
        {"reduction": 16, "groups": 4, "num_tokens": 8, **PLAIN},
        1.180,
    ),
    Case("ViT-S, r 8, g 2, T 2", vit(384, 12, 6), {"reduction": 8}, 1.037),
    Case("ViT-Ti, r 8, g 2, T 2", vit(192, 12, 3), {"reduction": 8}, 0.297),
)


def count(case: Case) -> tuple[int, int, int]:
    """Parameters of adapters, head and backbone."""
    config = LavishTwoStreamConfig(
        backbone_config=dict(case.backbone), adapter=dict(case.adapter), num_labels=29, drop_remainder=True
    )
    with torch.device("meta"):
        model = LavishForAudioVisualClassification(config)
    named = {name: parameter.numel() for name, parameter in model.named_parameters()}
    adapters = sum(size for name, size in named.items() if ".fusion_" in name)
    backbone = sum(size for name, size in named.items() if name.startswith("lavish.backbone."))
    return adapters, sum(named.values()) - adapters - backbone, backbone


def second_flops(adapter: dict[str, Any] | None) -> int:
    """FLOPs of a forward pass of one second through ViT-B and its head."""
    config = LavishTwoStreamConfig(
        backbone_config=VIT_BASE, adapter=adapter, num_segments=1, spectrogram_length=ROWS, num_mel_bins=MELS,
        num_labels=29, drop_remainder=True, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        model = LavishForAudioVisualClassification(config).eval()
        inputs = {"pixel_values": torch.empty(1, 1, 3, 224, 224), "input_features": torch.empty(1, 1, ROWS, MELS)}
    return count_flops(lambda: model(**inputs))


def flops_rows() -> list[dict[str, float]]:
    base = second_flops(None)
    rows = []
    for reduction in REDUCTIONS:
        for tokens in TOKENS:
            flops = second_flops({"reduction": reduction, "num_tokens": tokens})
            rows.append({
                "reduction": reduction, "num_tokens": tokens, "base_gflops": base / 1e9, "adapters_gflops": (flops - base) / 1e9,
            })  # fmt: skip
    return rows


def write_figure(rows: list[dict[str, float]], folder: Path) -> None:
    """Writes `lavish_flops.csv` and `lavish_flops.png`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "lavish_flops.csv", text.getvalue())
    lines = {
        f"r {reduction}": [
            (row["num_tokens"], row["adapters_gflops"], None) for row in rows if row["reduction"] == reduction
        ]
        for reduction in REDUCTIONS
    }
    with atomic_path(folder / "lavish_flops.png") as partial:
        draw_lines(
            partial, lines, "latent tokens T", "GFLOPs that the adapters add",
            title=f"LAVISH on ViT-B, one second; the frozen base needs {rows[0]['base_gflops']:.1f} GFLOPs",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the figure of FLOPs and its CSV file")
    options = parser.parse_args()
    table = Table(title="LAVISH, millions of parameters")
    for column in ("backbone and adapters", "adapters", "original", "head", "trainable", "backbone", "total"):
        table.add_column(column, justify="left" if column.startswith("backbone and") else "right")
    for case in CASES:
        adapters, head, backbone = count(case)
        numbers = (adapters, head, adapters + head, backbone, adapters + head + backbone)
        cells = [f"{value / 1e6:.3f}" for value in numbers]
        table.add_row(case.name, cells[0], f"{case.original:.3f}", *cells[1:])
    console = Console(width=120)
    console.print(table)
    rows = flops_rows()
    table = Table(*rows[0], title="LAVISH on ViT-B, one second, GFLOPs")
    for row in rows:
        table.add_row(
            str(row["reduction"]), str(row["num_tokens"]), f"{row['base_gflops']:.2f}", f"{row['adapters_gflops']:.3f}"
        )
    console.print(table)
    if options.output is not None:
        write_figure(rows, options.output)


if __name__ == "__main__":
    main()
