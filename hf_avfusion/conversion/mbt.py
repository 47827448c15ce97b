"""
Converts scenic MBT checkpoints: `python -m hf_avfusion.conversion.mbt --checkpoint FILE --config JSON --output DIR`.

Needs neither JAX nor TensorFlow. Strict: a source tensor without a target, or a target without a source, is an error.
"""

from .command_line import check_arguments, convert_file

if __name__ == "__main__":
    check_arguments()  # wrong arguments are answered before the imports below, which take seconds

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..models.mbt.configuration_mbt import MBTConfig
from ..models.mbt.modeling_mbt import MBTForAudioVisualClassification
from .flax import (
    ConversionError,
    block_rules,
    check_label_names,
    convert,
    convolution,
    dense,
    frame_convolution,
    naming_file,
    read_train_state,
    same,
    shape_of,
)

_SCENIC_MODALITIES = {"rgb": "video", "spectrogram": "audio"}
_READOUTS = {"token": "token", "gap": "mean", "gmp": "max", "gsp": "sum"}


def config_from_scenic(scenic: Mapping) -> MBTConfig:
    """
    The MBTConfig of a scenic model. Its `model` fields and the sizes of its inputs are given in one flat map.

    Args:
        scenic: `hidden_size, num_heads, mlp_dim, num_layers, num_classes, patches, temporal_encoding_config, classifier,
            modality_fusion, fusion_layer, use_bottleneck, n_bottlenecks, test_with_bottlenecks, share_encoder,
            representation_size`, and `num_frames, height, width, spec_time, spec_freq`.

    Raises:
        ConversionError: For the classifier `"0"`, which does not run in the original, unknown values and missing fields.
    """
    needed = {"hidden_size", "num_heads", "mlp_dim", "num_layers", "num_classes", "patches"}
    names = scenic.get("modality_fusion", ("spectrogram",))
    needed |= {"num_frames", "height", "width"} if "rgb" in names else set()
    needed |= {"spec_time", "spec_freq"} if "spectrogram" in names else set()
    if needed - set(scenic):
        raise ConversionError(f"The scenic config lacks {sorted(needed - set(scenic))}.")
    if set(names) - set(_SCENIC_MODALITIES):
        raise ConversionError(
            f"modality_fusion {list(names)} has no counterpart; supported are {sorted(_SCENIC_MODALITIES)}."
        )
    classifier = scenic.get("classifier", "gap")
    if classifier not in _READOUTS:
        raise ConversionError(f"classifier {classifier!r} has no counterpart; supported are {sorted(_READOUTS)}.")
    patches = scenic["patches"]
    patches = [int(size) for size in (patches["size"] if isinstance(patches, Mapping) else patches)]
    temporal = scenic.get("temporal_encoding_config") or {}
    method = temporal.get("method", "3d_conv")
    if method not in ("3d_conv", "temporal_sampling"):
        raise ConversionError(f"temporal encoding {method!r} has no counterpart in MBT.")
    sampled = temporal["n_sampled_frames"] if method == "temporal_sampling" else None
    modalities = tuple(_SCENIC_MODALITIES[name] for name in names)
    has_video, has_audio = "video" in modalities, "audio" in modalities
    return MBTConfig(
        hidden_size=scenic["hidden_size"],
        num_hidden_layers=scenic["num_layers"],
        num_attention_heads=scenic["num_heads"],
        intermediate_size=scenic["mlp_dim"],
        hidden_dropout_prob=scenic.get("dropout_rate", 0.0),
        attention_probs_dropout_prob=scenic.get("attention_dropout_rate", 0.0),
        drop_path_rate=scenic.get("stochastic_droplayer_rate") or 0.0,
        patch_size=tuple(patches[:2]),
        tubelet_size=1 if method == "temporal_sampling" or len(patches) < 3 else patches[2],
        num_sampled_frames=sampled if has_video else None,
        **(
            {"num_frames": scenic["num_frames"], "image_size": (scenic["height"], scenic["width"])} if has_video else {}
        ),
        **({"spectrogram_length": scenic["spec_time"], "num_mel_bins": scenic["spec_freq"]} if has_audio else {}),
        drop_remainder=True,  # as the original does
        modalities=modalities,
        fusion="bottleneck" if scenic.get("use_bottleneck", False) else "self_attention",
        fusion_layer=scenic.get("fusion_layer", 0),
        num_bottleneck_tokens=scenic.get("n_bottlenecks", 4),
        test_with_bottlenecks=scenic.get("test_with_bottlenecks", True),
        share_encoder=scenic.get("share_encoder", False),
        readout=_READOUTS[classifier],
        representation_size=scenic.get("representation_size"),
        num_labels=scenic["num_classes"],
    )


def normalize_names(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames components of old checkpoints that end in `_spec` to `_spectrogram`."""
    renamed: dict[str, np.ndarray] = {}
    for name, value in params.items():
        new = "/".join(re.sub(r"_spec$", "_spectrogram", part) for part in name.split("/"))
        if new in renamed:
            raise ConversionError(f"The checkpoint has {new} in both spellings, `_spec` and `_spectrogram`. Keep one.")
        renamed[new] = value
    return renamed


def infer_config(params: Mapping[str, np.ndarray], **known) -> MBTConfig:
    """
    The config of a checkpoint, inferred from the shapes and names of its tensors.

    The file does not hold these, so defaults are used: `fusion_layer` (two thirds of the layers), the modality order
    (spectrogram first), the pooled readout (mean), and the input sizes (224 x 224 frames and 128 mel bands, unless `image_size`
    or `num_mel_bins` are given).

    Args:
        params: Flat Flax parameters with normalised names.
        **known: Known `MBTConfig` fields; they override inferred values.
    """
    fields: dict = {}
    blocks = [match for name in params if (match := re.match(r"Transformer/encoderblock_(\d+)(_spectrogram)?/", name))]
    if not blocks:
        raise ConversionError(
            f"The checkpoint has no Transformer/encoderblock_*; its tensors are {sorted(params)[:3]}, ..."
        )
    suffix = "" if any(match[2] is None for match in blocks) else "_spectrogram"
    block = f"Transformer/encoderblock_0{suffix}"
    hidden, heads, _ = shape_of(params, f"{block}/MultiHeadDotProductAttention_0/query/kernel", 3)
    has_video, has_audio = "embedding/kernel" in params, "embedding_spectrogram/kernel" in params
    token = "cls" in params
    fields.update(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=1 + max(int(match[1]) for match in blocks),
        intermediate_size=shape_of(params, f"{block}/MlpBlock_0/Dense_0/kernel", 2)[1],
        readout="token" if token else "mean",
        modalities=("audio",) * has_audio + ("video",) * has_video,
        # Blocks of two modalities with one name are shared.
        share_encoder=has_audio and not any(match[2] for match in blocks),
        fusion="bottleneck" if "bottleneck" in params else "self_attention",
        num_labels=shape_of(params, "output_projection/bias", 1)[0],
    )
    if "bottleneck" in params:
        fields["num_bottleneck_tokens"] = shape_of(params, "bottleneck", 3)[1] - token
    if "pre_logits/bias" in params:
        fields["representation_size"] = shape_of(params, "pre_logits/bias", 1)[0]
    audio_kernel = shape_of(params, "embedding_spectrogram/kernel", 4) if has_audio else None
    kernel = audio_kernel or shape_of(params, "embedding/kernel", 4, 5)
    fields["patch_size"] = patch = tuple(kernel[-4:-2])
    if has_audio:
        tokens = shape_of(params, "Transformer/posembed_input_spectrogram/pos_embedding", 3)[1] - token
        columns = known.get("num_mel_bins", 128) // patch[1]
        fields.update(spectrogram_length=tokens // columns * patch[0], num_audio_channels=kernel[-2])
    if has_video:
        kernel = shape_of(params, "embedding/kernel", 4, 5)
        fields["tubelet_size"] = kernel[0] if len(kernel) == 5 else 1
        size = known.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        tokens = shape_of(params, "Transformer/posembed_input/pos_embedding", 3)[1] - token
        per_frame = (height // patch[0]) * (width // patch[1])
        if "num_frames" not in known and tokens % per_frame:
            raise ConversionError(
                f"{tokens} video tokens are not a multiple of the {per_frame} patches of a {height} x {width} frame; give "
                "`image_size` and `num_frames` in --config."
            )
        fields.update(image_size=(height, width), num_frames=math.ceil(tokens / per_frame) * fields["tubelet_size"])
    if has_audio != has_video:
        # With one stream, blocks may have the suffix or not, and nothing is shared.
        fields["share_encoder"] = has_audio and suffix == ""
    check_label_names(known, fields["num_labels"])
    return MBTConfig(**{"drop_remainder": True, **fields, **known})


def mbt_rules(config: MBTConfig) -> dict[str, tuple[str, object]]:
    """Flax path -> (our name, layout) for every tensor of a model with this config."""
    rules: dict[str, tuple[str, object]] = {}
    streams = {"video": ("", "cls"), "audio": ("_spectrogram", "clsspectrogram")}
    single = len(config.modalities) == 1
    for modality in config.modalities:
        suffix, cls = streams[modality]
        name = f"mbt.{modality}_embeddings"
        flat_kernel = modality == "video" and config.num_sampled_frames is not None
        layout = frame_convolution if flat_kernel else convolution
        rules[f"embedding{suffix}/kernel"] = (f"{name}.patch_embeddings.projection.weight", layout)
        rules[f"embedding{suffix}/bias"] = (f"{name}.patch_embeddings.projection.bias", same)
        if config.position_embeddings == "learned":
            rules[f"Transformer/posembed_input{suffix}/pos_embedding"] = (f"{name}.position_embeddings", same)
        if config.use_modality_tokens:
            token = {"video": "rgb", "audio": "spectrogram"}[modality]
            rules[f"Encoder_modality_token_{token}"] = (f"{name}.modality_token", same)
        if config.readout == "token":
            # A single modality has its CLS under the plain name.
            rules["cls" if single else cls] = (f"{name}.cls_token", same)
    if config.uses_bottleneck:
        rules["bottleneck"] = ("mbt.bottleneck", same)
    for layer in range(config.num_hidden_layers):
        for stream in ("shared",) if config.share_encoder else config.modalities:
            suffix = "" if stream == "shared" else streams[stream][0]
            rules.update(block_rules(f"Transformer/encoderblock_{layer}{suffix}", f"mbt.layers.{layer}.{stream}"))
    rules["Transformer/encoder_norm/scale"] = ("mbt.layernorm.weight", same)
    rules["Transformer/encoder_norm/bias"] = ("mbt.layernorm.bias", same)
    if config.representation_size is not None:
        rules["pre_logits/kernel"] = ("pre_logits.weight", dense)
        rules["pre_logits/bias"] = ("pre_logits.bias", same)
    rules["output_projection/kernel"] = ("classifier.weight", dense)
    rules["output_projection/bias"] = ("classifier.bias", same)
    return rules


def dropped_names(config: MBTConfig) -> set[str]:
    """Source tensors that are dropped: the original creates a bottleneck even if it is unused (one modality, late fusion)."""
    return set() if config.uses_bottleneck else {"bottleneck"}


def convert_mbt(params: Mapping[str, np.ndarray], config: MBTConfig) -> dict[str, torch.Tensor]:
    """
    Convert Flax parameters to the state dict of `MBTForAudioVisualClassification(config)`.

    Raises:
        ConversionError: If tensors and config do not match one to one; the message names the tensors.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in MBTForAudioVisualClassification(config).state_dict().items()}
    rules = mbt_rules(config)
    params = normalize_names(params)
    # Tubelets of one frame may be stored as 2-D kernels.
    if params.get("embedding/kernel", np.empty(0)).ndim == 4 and "embedding/kernel" in rules:
        rules["embedding/kernel"] = (rules["embedding/kernel"][0], frame_convolution)
    return convert(params, rules, shapes, dropped=dropped_names(config))


def load_mbt(checkpoint: str | Path, config: MBTConfig | Mapping | None = None) -> MBTForAudioVisualClassification:
    """
    A model with the weights of a scenic checkpoint file.

    Args:
        checkpoint: The MessagePack file.
        config: A config, known `MBTConfig` fields (the rest is inferred), scenic's own fields, or None. Fields may also be
            nested under a key `config`.

    Raises:
        ConversionError: If the file cannot be read, or does not fit the config.
        ValueError: If the config's fields contradict each other.
    """
    params = read_train_state(checkpoint)
    with naming_file(checkpoint, given=bool(config)):
        return _load(normalize_names(params), config)


def _load(params: Mapping[str, np.ndarray], config: MBTConfig | Mapping | None) -> MBTForAudioVisualClassification:
    if not isinstance(config, MBTConfig):
        fields = dict(config or {})
        if isinstance(fields.get("config"), Mapping):
            fields = dict(fields["config"])
        scenic = "classifier" in fields or "modality_fusion" in fields
        unknown = set() if scenic else set(fields) - set(MBTConfig().to_dict()) - {"num_labels"}
        if unknown:
            raise ConversionError(f"The config has fields that MBTConfig does not have: {sorted(unknown)}.")
        config = config_from_scenic(fields) if scenic else infer_config(params, **fields)
    model = MBTForAudioVisualClassification(config)
    model.load_state_dict(convert_mbt(params, config), strict=True)
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Command line: convert one file into a folder that `from_pretrained` loads."""
    fields = (
        "MBTConfig fields that the checkpoint does not hold (fusion_layer, image_size, num_frames, id2label, problem_type, "
        "...), or with scenic's own model fields"
    )
    convert_file(load_mbt, __doc__, "scenic checkpoint file (MessagePack)", fields, _summary, arguments)


def _summary(model: MBTForAudioVisualClassification) -> str:
    config = model.config
    return (
        f"modalities {'+'.join(config.modalities)}, fusion {config.fusion} from layer {config.fusion_layer} of "
        f"{config.num_hidden_layers}, readout {config.readout}, {config.num_labels} labels"
    )


if __name__ == "__main__":
    main()
