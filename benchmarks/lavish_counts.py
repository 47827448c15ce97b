"""Counts the parameters of LAVISH at published sizes, on the meta device, beside the counts of the original's code.

    python benchmarks/lavish_counts.py

"Trainable" are adapters and head. The original's total includes the backbone's head for 21,841 classes, which is never used. The
last digit of 2.065 comes from `gate_tk`, one parameter per adapter that its code never uses.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification

SWIN = {"model_type": "swinv2", "image_size": 192, "patch_size": 4, "window_size": 12, "depths": [2, 2, 18, 2]}
SWIN_LARGE = {**SWIN, "embed_dim": 192, "num_heads": [6, 12, 24, 48]}
SWIN_BASE = {**SWIN, "embed_dim": 128, "num_heads": [4, 8, 16, 32]}
PLAIN = {"use_bn": False, "ln_before": False, "ln_post": False}


def vit(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


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


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    table = Table(title="LAVISH, millions of parameters")
    for column in ("backbone and adapters", "adapters", "original", "head", "trainable", "backbone", "total"):
        table.add_column(column, justify="left" if column.startswith("backbone and") else "right")
    for case in CASES:
        adapters, head, backbone = count(case)
        numbers = (adapters, head, adapters + head, backbone, adapters + head + backbone)
        cells = [f"{value / 1e6:.3f}" for value in numbers]
        table.add_row(case.name, cells[0], f"{case.original:.3f}", *cells[1:])
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
