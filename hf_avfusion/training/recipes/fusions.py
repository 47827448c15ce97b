"""The names and fields of the fusion variants. Imports nothing slow, so that wrong names are answered at once."""

from typing import Any

LAST = "num_hidden_layers"

# Architecture -> variant -> fields of its configuration.
FUSIONS: dict[str, dict[str, dict[str, Any]]] = {
    "mbt": {
        "bottleneck": {"fusion": "bottleneck"},
        "bottleneck_shared": {"fusion": "bottleneck", "share_encoder": True},
        "self_attention": {"fusion": "self_attention"},
        "self_attention_shared": {"fusion": "self_attention", "share_encoder": True},
        "early": {"fusion": "self_attention", "share_encoder": True, "fusion_layer": 0},  # one encoder over all tokens
        "late": {"fusion": "bottleneck", "fusion_layer": LAST},  # the streams' logits are averaged
    },
}
