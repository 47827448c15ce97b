"""How deep in the network a parameter lies, as the published layer-wise learning-rate decay counts it."""

import re


def layer_id(name: str, num_hidden_layers: int) -> int:
    """
    The layer that a parameter of MBT or AV-MAE belongs to; its rate is multiplied by decay ** (num_hidden_layers + 1 - id).

    0 for what makes tokens (patch projections, positions, CLS and modality tokens, the decoder's too), l + 1 for layer l of
    either stream, and `num_hidden_layers + 1`, so no decay, for everything else: final norms, bottleneck, head, decoder,
    as the original counts. Only the joint layers of mid-fusion continue the count of the modalities' own, where its fixed
    number is right for the Base model with two of them only.

    Args:
        name: As in `model.named_parameters()`, with or without the base model's prefix.
        num_hidden_layers: The config's.
    """
    tokens = r"(video|audio)_embeddings\.|decoder\.(video|audio)\.(modality_token|position_embeddings)$"
    if re.search(rf"(^|\.)({tokens})", name):
        return 0
    if re.match(r"decoder\.", name):
        return num_hidden_layers + 1
    layer = re.search(r"(^|\.)layers\.(\d+)\.", name)
    return int(layer[2]) + 1 if layer else num_hidden_layers + 1
