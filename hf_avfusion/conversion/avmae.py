"""
Converts scenic AV-MAE checkpoints: `python -m hf_avfusion.conversion.avmae --checkpoint FILE --config JSON --output DIR`.

Pretraining checkpoints become `AVMAEForPreTraining`. Fine-tuned ones become `MBTForAudioVisualClassification` (the project's
MBT) or `AVMAEForAudioVisualClassification` (its single-modality classifier). Needs neither JAX nor TensorFlow. Strict: a source
tensor without a target, or a target without a source, is an error.
"""

from .command_line import check_arguments, convert_file

if __name__ == "__main__":
    check_arguments()  # wrong arguments are answered before the imports below, which take seconds

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ..models.avmae.configuration_avmae import AVMAEConfig
from ..models.avmae.modeling_avmae import AVMAEForAudioVisualClassification, AVMAEForPreTraining, AVMAEModel
from ..models.mbt.configuration_mbt import MBTConfig
from ..models.mbt.modeling_mbt import MBTForAudioVisualClassification
from .flax import (
    ConversionError,
    Rule,
    block_rules,
    check_label_names,
    convert,
    convolution,
    dense,
    naming_file,
    read_train_state,
    same,
    shape_of,
)
from .mbt import dropped_names, mbt_rules
from .mbt import normalize_names as rename_spectrograms

SCENIC_NAMES = {"video": "rgb", "audio": "spectrogram"}
ENCODERS = {
    "concat_and_encode": "early",
    "same_encoder": "shared",
    "separate_encoders": "separate",
    "separate_encoders_and_concat": "mid_fusion",
}
DECODERS = {"same_decoder": "shared", "separate_decoders": "separate", "concat_and_decode": "concatenated"}
POSITIONS = {"sinusoidal_1d": "sinusoidal", "learned_1d": "learned"}
READOUTS = {"gap": "stream_mean", "gmp": "stream_max", "gsp": "stream_sum"}  # of the project's MBT

Rules = dict[str, tuple[str, Rule]]


def normalize_names(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    Rename parameters to one spelling.

    Released code and checkpoints use `embedding_spec` or `embedding_spectrogram`. The single-modality autoencoder has no modality
    suffix and a separate name for its decoder positions.

    Raises:
        ConversionError: If a tensor exists in both spellings.
    """
    params = dict(params)
    if "mask_token" in params:  # the single-modality autoencoder
        suffix = "rgb" if params["embedding/kernel"].ndim == 5 else "spectrogram"
        own = re.compile(
            r"(embedding|mask_token|decoder_projection|output_projection|posembed_input|posembed_decoder)(/|$)"
        )
        params = {own.sub(rf"\1_{suffix}\2", name, count=1): value for name, value in params.items()}
        params = {name.replace("Transformer/", f"Transformer_{suffix}/"): value for name, value in params.items()}
    return rename_spectrograms(params)


def infer_model_class(params: Mapping[str, np.ndarray]) -> type[PreTrainedModel]:
    """The model class of a checkpoint, from its (normalised) names."""
    if any(name.startswith("mask_token_") for name in params):
        return AVMAEForPreTraining
    if any(name.startswith("ProjectionHeadAndClassifier_0/") for name in params):
        return MBTForAudioVisualClassification
    if "output_projection/kernel" in params:
        return AVMAEForAudioVisualClassification
    raise ConversionError(
        f"Not a checkpoint of av_mae: it has neither mask tokens nor a classifier; its tensors are {sorted(params)[:3]}, ..."
    )


def config_from_scenic(
    scenic: Mapping, sizes: Mapping[str, int], modalities: tuple[str, ...] = ("video", "audio"), **fields
) -> AVMAEConfig:
    """
    The AVMAEConfig of a pretraining model, from the `model` and `masked_feature_loss` parts of the project's config.

    Args:
        scenic: A map with `model` (sizes, strategies, patches, decoder_config, ...) and optionally `masked_feature_loss`; missing
            values default as in the project's code.
        sizes: `num_frames, height, width, spec_time, spec_freq`, as far as the modalities need them, and `spec_channels` if not 1.
        modalities: `"video"`, `"audio"` or both.
        **fields: Further `AVMAEConfig` fields; they override inferred values.

    Raises:
        ConversionError: For values without a counterpart here; the message names them.
    """
    model, loss = scenic["model"], scenic.get("masked_feature_loss", {})
    decoder = model.get("decoder_config", {})
    needed = {"hidden_size", "num_heads", "mlp_dim", "num_layers", "patches"} - set(model)
    if needed:
        raise ConversionError(f"The scenic config's `model` lacks {sorted(needed)}.")
    if model.get("shuffle_inpainted_tokens"):
        raise ConversionError("`shuffle_inpainted_tokens` has no counterpart here; no released configuration uses it.")
    masking = loss.get("masking_strategy", "random")
    if masking not in ("random", "tube"):
        raise ConversionError(f"masking_strategy {masking!r} has no counterpart; supported are 'random' and 'tube'.")
    ratios, weights = loss.get("token_mask_probability_dict", {}), loss.get("modality_weight", {})
    strategy = _known("encoder_strategy", model.get("encoder_strategy", "concat_and_encode"), ENCODERS)
    standardization = "patch_channels" if loss.get("standardise_per_patch_channels") else None
    found: dict = {
        **_sizes_and_rates(model, sizes, modalities),
        "encoder_strategy": strategy,
        "num_fusion_layers": model.get("fusion_layers") if strategy == "mid_fusion" else None,
        "decoder_strategy": _known("decoder_strategy", model.get("decoder_strategy", "same_decoder"), DECODERS),
        "objective": "modality_inpainting" if model.get("use_inpainting") else "joint_reconstruction",
        "video_masking": masking,
        "use_modality_tokens": model.get("use_modality_tokens", False),
        "decoder_position_embeddings": _known(
            "positional_embedding_decoder", model.get("positional_embedding_decoder", "sinusoidal_1d"), POSITIONS
        ),
        "final_norm": model.get("normalise_encoder_output", True),
        "decoder_hidden_dropout_prob": decoder.get("dropout_rate", 0.0),
        "decoder_attention_probs_dropout_prob": decoder.get("attention_dropout_rate", 0.0),
        "decoder_drop_path_rate": decoder.get("stochastic_droplayer_rate") or 0.0,
        "decoder_projection_bias": decoder.get("use_projection_bias", True),
        "target_standardization": "patch" if loss.get("standardise_per_patch") else standardization,
        "central_frame_target": loss.get("select_central_frame") or False,
        "loss_on_visible_tokens": loss.get("loss_unmasked_tokens", False),
        "average_over_features": loss.get("normalise_by_output_dimension", False),
    }
    for ours, theirs in (
        ("hidden_size", "hidden_size"),
        ("num_hidden_layers", "num_layers"),
        ("num_attention_heads", "num_heads"),
        ("intermediate_size", "mlp_dim"),
    ):
        if theirs in decoder:
            found[f"decoder_{ours}"] = decoder[theirs]
    for modality, name in SCENIC_NAMES.items():
        if name in ratios:
            found[f"{modality}_mask_ratio"] = ratios[name]
        if name in weights:
            found[f"{modality}_loss_weight"] = weights[name]
    if "token_mask_probability" in loss:  # the single-modality autoencoder's
        found[f"{modalities[0]}_mask_ratio"] = loss["token_mask_probability"]
    return AVMAEConfig(**{"drop_remainder": True, **found, **fields})  # as the original does


def _sizes_and_rates(model: Mapping, sizes: Mapping[str, int], modalities: tuple[str, ...]) -> dict:
    """The fields that the configurations of AV-MAE and MBT share."""
    patch = [int(size) for size in model["patches"]["size"]]
    found = {
        "hidden_size": model["hidden_size"],
        "num_hidden_layers": model["num_layers"],
        "num_attention_heads": model["num_heads"],
        "intermediate_size": model["mlp_dim"],
        "hidden_dropout_prob": model.get("dropout_rate", 0.0),
        "attention_probs_dropout_prob": model.get("attention_dropout_rate", 0.0),
        "drop_path_rate": model.get("stochastic_droplayer_rate") or 0.0,
        "patch_size": tuple(patch[:2]),
        "modalities": modalities,
        "position_embeddings": _known(
            "positional_embedding", model.get("positional_embedding", "sinusoidal_1d"), POSITIONS
        ),
    }
    if "video" in modalities:
        found.update(tubelet_size=patch[2], num_frames=sizes["num_frames"])
        found["image_size"] = (sizes["height"], sizes["width"])
    if "audio" in modalities:
        found.update(spectrogram_length=sizes["spec_time"], num_mel_bins=sizes["spec_freq"])
        found["num_audio_channels"] = sizes.get("spec_channels", 1)
    return found


def _known(field: str, value: str, names: Mapping[str, str]) -> str:
    if value not in names:
        raise ConversionError(f"{field} {value!r} has no counterpart; supported are {sorted(names)}.")
    return names[value]


def encoder_rules(config: AVMAEConfig, prefix: str = "avmae.") -> Rules:
    """Flax path -> (our name, layout) for the encoder of a pretraining tree."""
    rules: Rules = {}
    for modality in config.modalities:
        name, theirs = f"{prefix}{modality}_embeddings", SCENIC_NAMES[modality]
        _conv(rules, f"embedding_{theirs}", f"{name}.patch_embeddings.projection")
        if config.position_embeddings == "learned":
            rules[f"posembed_input_{theirs}/pos_embedding"] = (f"{name}.position_embeddings", same)
        if config.use_modality_tokens:
            rules[f"Encoder_modality_token_{theirs}"] = (f"{name}.modality_token", same)
    joint = {"early": config.num_hidden_layers, "mid_fusion": config.num_fusion_layers}.get(config.encoder_strategy, 0)
    stacks = {modality: f"Transformer_{SCENIC_NAMES[modality]}" for modality in config.modalities}
    if config.encoder_strategy in ("early", "shared"):
        stacks = {"shared": "Transformer"}
    joint_stack = "Transformer_concat" if config.encoder_strategy == "mid_fusion" else "Transformer"
    _stack_rules(rules, f"{prefix}encoder", config.num_hidden_layers, joint, stacks, joint_stack, config.final_norm)
    return rules


def pretraining_rules(config: AVMAEConfig) -> Rules:
    """Flax path -> (our name, layout) for every tensor of [`AVMAEForPreTraining`]."""
    rules = encoder_rules(config)
    for modality in config.modalities:
        name, theirs = f"decoder.{modality}", SCENIC_NAMES[modality]
        rules[f"mask_token_{theirs}"] = (f"{name}.mask_token", same)
        rules[f"decoder_projection_{theirs}/kernel"] = (f"{name}.projection.weight", dense)
        if config.decoder_projection_bias:
            rules[f"decoder_projection_{theirs}/bias"] = (f"{name}.projection.bias", same)
        rules[f"output_projection_{theirs}/kernel"] = (f"{name}.prediction.weight", dense)
        rules[f"output_projection_{theirs}/bias"] = (f"{name}.prediction.bias", same)
        if config.use_modality_tokens:
            rules[f"Decoder_modality_token_{theirs}"] = (f"{name}.modality_token", same)
        if config.decoder_position_embeddings == "learned":
            # The original has one name for the encoder's and the decoder's table, so only one of them can be learned. The
            # single-modality autoencoder has a separate name for the decoder's.
            table = "posembed_decoder" if config.position_embeddings == "learned" else "posembed_input"
            rules[f"{table}_{theirs}/pos_embedding"] = (f"{name}.position_embeddings", same)
    stacks = {modality: f"Decoder_{SCENIC_NAMES[modality]}" for modality in config.modalities}
    if config.decoder_strategy != "separate":
        stacks = {"shared": "Decoder"}
    joint = config.decoder_num_hidden_layers if config.decoder_strategy == "concatenated" else 0
    _stack_rules(
        rules, "decoder.transformer", config.decoder_num_hidden_layers, joint, stacks, "Decoder", config.final_norm
    )
    return rules


def classifier_rules(config: AVMAEConfig) -> Rules:
    """Flax path -> (our name, layout) for the project's single-modality classifier."""
    (modality,) = config.modalities
    name = f"avmae.{modality}_embeddings"
    rules: Rules = {}
    _conv(rules, "embedding", f"{name}.patch_embeddings.projection")
    if config.position_embeddings == "learned":
        rules["posembed_input/pos_embedding"] = (f"{name}.position_embeddings", same)
    if config.use_modality_tokens:
        rules[f"Encoder_modality_token_{SCENIC_NAMES[modality]}"] = (f"{name}.modality_token", same)
    if config.readout == "token":
        rules["cls"] = (f"{name}.cls_token", same)
    _stack_rules(
        rules,
        "avmae.encoder",
        config.num_hidden_layers,
        0,
        {modality: "Transformer"},
        "",
        config.final_norm,
    )
    if config.pooled_norm:
        _norm(rules, "encoder_norm", "pooled_layernorm")
    if config.representation_size is not None:
        _dense(rules, "pre_logits", "pre_logits")
    if config.freeze_encoder:
        for theirs, ours in (("mean", "running_mean"), ("var", "running_var")):
            rules[f"batch_stats/BatchNorm_0/{theirs}"] = (f"probe_norms.{modality}.{ours}", same)
    _dense(rules, "output_projection", "classifier")
    return rules


def _stack_rules(
    rules: Rules, target: str, layers: int, joint: int, stacks: Mapping[str, str], joint_stack: str, norm: bool
) -> None:
    """`stacks`: our block (a modality or "shared") -> Flax stack; the last `joint` layers come from `joint_stack`."""
    for index in range(layers - joint):
        for block, stack in stacks.items():
            rules.update(block_rules(f"{stack}/encoderblock_{index}", f"{target}.layers.{index}.{block}"))
    for index in range(joint):
        place = f"{target}.layers.{layers - joint + index}.shared"
        rules.update(block_rules(f"{joint_stack}/encoderblock_{index}", place))
    if not norm:
        return
    for block, stack in stacks.items():
        if block != "shared":
            _norm(rules, f"{stack}/encoder_norm", f"{target}.{block}_layernorm")
    if joint or "shared" in stacks:
        _norm(rules, f"{joint_stack if joint else stacks['shared']}/encoder_norm", f"{target}.layernorm")


def _norm(rules: Rules, source: str, target: str) -> None:
    rules[f"{source}/scale"], rules[f"{source}/bias"] = (f"{target}.weight", same), (f"{target}.bias", same)


def _dense(rules: Rules, source: str, target: str) -> None:
    rules[f"{source}/kernel"], rules[f"{source}/bias"] = (f"{target}.weight", dense), (f"{target}.bias", same)


def _conv(rules: Rules, source: str, target: str) -> None:
    rules[f"{source}/kernel"], rules[f"{source}/bias"] = (f"{target}.weight", convolution), (f"{target}.bias", same)


def finetuning_rules(config: MBTConfig) -> Rules:
    """Flax path -> (our name, layout) for the project's MBT: the rules of the project `mbt`, renamed."""
    rules: Rules = {}
    for source, place in mbt_rules(config).items():
        if source.startswith(("output_projection/", "pre_logits/")):
            source = f"ProjectionHeadAndClassifier_0/{source}"
        # The first (or only) modality has the blocks without suffix.
        if config.modalities[0] == "audio" and not config.share_encoder:
            source = re.sub(r"(encoderblock_\d+)/", r"\1_rgb/", source)
            source = re.sub(r"(encoderblock_\d+)_spectrogram/", r"\1/", source)
        # Position tables are next to the stack, not inside it.
        rules[source.replace("Transformer/posembed_input", "posembed_input")] = place
    return rules


def mbt_config_from_scenic(scenic: Mapping, sizes: Mapping[str, int], num_labels: int, **fields) -> MBTConfig:
    """
    The MBTConfig of the project's MBT, from its fine-tuning config (`model`, `label_smoothing`, `model_name`).

    Args:
        sizes: As in [`config_from_scenic`].
        num_labels: Number of classes.
        **fields: Further `MBTConfig` fields; they override inferred values.
    """
    model = scenic["model"]
    names = model.get("modality_fusion", ("rgb", "spectrogram"))
    modalities = tuple(
        _known("modality_fusion", name, {theirs: ours for ours, theirs in SCENIC_NAMES.items()}) for name in names
    )
    dataset = scenic.get("dataset_configs") or {}
    splits = dict(zip(dataset.get("split_names") or map(str, range(1, 99)), dataset.get("class_splits") or ()))
    multi_label = "multilabel" in scenic.get("model_name", "")
    found: dict = {
        **_sizes_and_rates(model, sizes, modalities),
        "fusion": "bottleneck" if model.get("use_bottleneck", False) else "self_attention",
        "fusion_layer": model.get("fusion_layer", 0),
        "num_bottleneck_tokens": model.get("n_bottlenecks", 4),
        "test_with_bottlenecks": model.get("test_with_bottlenecks", True),
        "share_encoder": model.get("share_encoder", False),
        "readout": _known("classifier", model.get("classifier", "gap"), READOUTS),
        # The multi-label class never creates modality tokens.
        "use_modality_tokens": bool(model.get("use_modality_tokens")) and not multi_label,
        "representation_size": model.get("representation_size"),
        "label_smoothing": scenic.get("label_smoothing") or 0.0,
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
        "num_labels": num_labels,
    }
    if splits:
        found.update(class_splits=splits, problem_type="multi_head_classification")
    return MBTConfig(**{"drop_remainder": True, **found, **fields})  # as the original does


def infer_config(params: Mapping[str, np.ndarray], **known) -> AVMAEConfig | MBTConfig:
    """
    The config of a checkpoint, inferred from the names and shapes of its tensors.

    The file does not hold these, so defaults are used: `num_frames`, `image_size`, `spectrogram_length` and `num_mel_bins` (16
    frames, 32 if fine-tuned, of 224 x 224, and 800 x 128), mask ratios, target options and loss weights (the config's defaults),
    `fusion_layer` of MBT (two thirds of the layers), and the pooled readout of classifiers (mean). An early-fusion encoder has the
    same tensors as a shared one, and a concatenating decoder as a shared one: without `encoder_strategy` and `decoder_strategy`
    they are assumed to be shared.

    Args:
        params: Flat Flax parameters with normalised names.
        **known: Known config fields; they override inferred values.
    """
    kind = infer_model_class(params)
    stacks = {name.split("/")[0] for name in params if "/encoderblock_0/" in name}
    stack = next((name for name in sorted(stacks, reverse=True) if name.startswith("Transformer")), "Transformer")
    if not any(name.startswith(f"{stack}/encoderblock_0/") for name in params):
        raise ConversionError(
            f"The checkpoint has no {stack}/encoderblock_0; its tensors are {sorted(params)[:3]}, ..."
        )
    hidden, heads, _ = shape_of(params, f"{stack}/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel", 3)
    fields: dict = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": shape_of(params, f"{stack}/encoderblock_0/MlpBlock_0/Dense_0/kernel", 2)[1],
        "use_modality_tokens": any(name.startswith("Encoder_modality_token_") for name in params),
        "position_embeddings": "learned" if any(name.startswith("posembed_input") for name in params) else "sinusoidal",
    }
    video = params.get("embedding_rgb/kernel", params.get("embedding/kernel"))
    audio = params.get("embedding_spectrogram/kernel")
    if audio is None and video is not None and video.ndim == 4:  # the single-modality classifier of spectrograms
        video, audio = None, video
    modalities = ("video",) * (video is not None) + ("audio",) * (audio is not None)
    if not modalities:
        raise ConversionError(f"The checkpoint has no patch embedding; its tensors are {sorted(params)[:3]}, ...")
    fields["modalities"] = modalities
    for kernel, axes in ((video, 5), (audio, 4)):
        if kernel is not None:
            shape_of({"the kernel of a patch embedding": kernel}, "the kernel of a patch embedding", axes)
    if audio is not None:
        fields.update(patch_size=tuple(audio.shape[:2]), num_audio_channels=audio.shape[2])
    if video is not None:
        fields.update(patch_size=tuple(video.shape[1:3]), tubelet_size=video.shape[0])
    if kind is not AVMAEForPreTraining:
        return _infer_classifier(kind, params, fields, known)
    layers = {name: _layers(params, name) for name in stacks}
    joint = layers.get("Transformer_concat", 0)
    fields["num_hidden_layers"] = joint + max(
        [layers[name] for name in layers if re.match(r"Transformer(_rgb|_spectrogram)?$", name)]
    )
    fields["encoder_strategy"] = "mid_fusion" if joint else "shared" if "Transformer" in stacks else "separate"
    if joint:
        fields["num_fusion_layers"] = joint
    decoder = next((name for name in sorted(stacks) if name.startswith("Decoder")), None)
    if decoder is None:
        raise ConversionError("Not a pretraining checkpoint of av_mae: it has no Decoder*/encoderblock_0.")
    hidden, heads, _ = shape_of(params, f"{decoder}/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel", 3)
    own = SCENIC_NAMES[modalities[0]]
    fields.update(
        decoder_strategy="shared" if decoder == "Decoder" else "separate",
        decoder_hidden_size=hidden,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=shape_of(params, f"{decoder}/encoderblock_0/MlpBlock_0/Dense_0/kernel", 2)[1],
        decoder_num_hidden_layers=layers[decoder],
        decoder_projection_bias=f"decoder_projection_{own}/bias" in params,
        final_norm=f"{decoder}/encoder_norm/scale" in params,
    )
    table = params.get(f"posembed_input_{own}/pos_embedding")
    if table is not None and table.shape[-1] != fields["hidden_size"]:  # the decoder's table has the encoder's name
        fields.update(position_embeddings="sinusoidal", decoder_position_embeddings="learned")
    if f"posembed_decoder_{own}/pos_embedding" in params:
        fields["decoder_position_embeddings"] = "learned"
    if video is not None:
        (values,) = shape_of(params, "output_projection_rgb/bias", 1)
        fields["central_frame_target"] = video.shape[0] > 1 and values == video[0, ..., 0].size
    return AVMAEConfig(**{"drop_remainder": True, **fields, **known})


def _infer_classifier(
    kind: type[PreTrainedModel], params: Mapping[str, np.ndarray], fields: dict, known: dict
) -> AVMAEConfig | MBTConfig:
    fields["num_hidden_layers"] = _layers(params, "Transformer")
    fields["num_frames"] = 32
    if kind is MBTForAudioVisualClassification:
        head = "ProjectionHeadAndClassifier_0/"
        both = len(fields["modalities"]) == 2
        if any(re.search(r"encoderblock_\d+_rgb/", name) for name in params):  # the second modality's blocks
            fields["modalities"] = ("audio", "video")
        fields.update(
            readout="stream_mean",
            fusion="bottleneck" if "bottleneck" in params else "self_attention",
            share_encoder=both and not any(re.search(r"encoderblock_\d+_\w+/", name) for name in params),
        )
        if "bottleneck" in params:
            fields["num_bottleneck_tokens"] = shape_of(params, "bottleneck", 3)[1]
    else:
        head = ""
        fields.update(
            readout="token" if "cls" in params else "mean",
            pooled_norm="encoder_norm/scale" in params,
            final_norm="Transformer/encoder_norm/scale" in params,
            freeze_encoder="batch_stats/BatchNorm_0/mean" in params,
        )
    fields["num_labels"] = shape_of(params, f"{head}output_projection/bias", 1)[0]
    if f"{head}pre_logits/bias" in params:
        fields["representation_size"] = shape_of(params, f"{head}pre_logits/bias", 1)[0]
    check_label_names(known, fields["num_labels"])
    config_class = MBTConfig if kind is MBTForAudioVisualClassification else AVMAEConfig
    return config_class(**{"drop_remainder": True, **fields, **known})


def _layers(params: Mapping[str, np.ndarray], stack: str) -> int:
    found = (re.match(rf"{stack}/encoderblock_(\d+)", name) for name in params)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def convert_avmae(
    params: Mapping[str, np.ndarray], config: AVMAEConfig | MBTConfig, model_class: type[PreTrainedModel] | None = None
) -> dict[str, torch.Tensor]:
    """
    Convert Flax parameters to the state dict of `model_class(config)`.

    Args:
        params: Flat Flax parameters.
        model_class: By default inferred from the names. `AVMAEModel` uses the encoder of a pretraining tree; a decoder is dropped.

    Raises:
        ConversionError: If tensors and config do not match one to one; the message names the tensors.
    """
    params = normalize_names(params)
    model_class = infer_model_class(params) if model_class is None else model_class
    dropped: set[str] = set()
    if model_class is AVMAEForPreTraining:
        rules = pretraining_rules(config)
    elif model_class is AVMAEModel:
        rules = encoder_rules(config, prefix="")
        decoding = r"(Decoder|mask_token_|decoder_projection_|output_projection_|posembed_decoder)"
        dropped = {name for name in params if re.match(decoding, name)}
    elif model_class is MBTForAudioVisualClassification:
        rules, dropped = finetuning_rules(config), dropped_names(config)
    else:
        rules = classifier_rules(config)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in model_class(config).state_dict().items()}
    return convert(params, rules, shapes, dropped=dropped)


def load_avmae(checkpoint: str | Path, config: AVMAEConfig | MBTConfig | Mapping | None = None) -> PreTrainedModel:
    """
    A model with the weights of a checkpoint file. Its class is inferred from the tensors.

    Args:
        checkpoint: The MessagePack file, an old train state (pretraining) or a new one (fine-tuning).
        config: A config, known config fields (the rest is inferred), the project's own config (a map with `model`) together with
            the input sizes (`num_frames, height, width, spec_time, spec_freq`), or None.

    Raises:
        ConversionError: If the file cannot be read, or does not fit the config.
        ValueError: If the config's fields contradict each other.
    """
    params = read_train_state(checkpoint)
    with naming_file(checkpoint, given=bool(config)):
        return _load(normalize_names(params), checkpoint, config)


def _load(
    params: Mapping[str, np.ndarray], checkpoint: str | Path, config: AVMAEConfig | MBTConfig | Mapping | None
) -> PreTrainedModel:
    model_class = infer_model_class(params)
    if not isinstance(config, (AVMAEConfig, MBTConfig)) and config and isinstance(config.get("model"), Mapping):
        config = _config_from_scenic_file(params, model_class, config)
    if not isinstance(config, (AVMAEConfig, MBTConfig)):
        config_class = model_class.config_class
        unknown = set(config or {}) - set(config_class().to_dict()) - {"num_labels"}
        if unknown:
            raise ConversionError(
                f"The config has fields that {config_class.__name__} does not have: {sorted(unknown)}."
            )
        config = infer_config(params, **(config or {}))
    elif not isinstance(config, model_class.config_class):
        raise ConversionError(
            f"{checkpoint} holds a {model_class.__name__}, so `config` must be a {model_class.config_class.__name__}, got a "
            f"{type(config).__name__}."
        )
    model = model_class(config)
    model.load_state_dict(convert_avmae(params, config), strict=True)
    return model.eval()


def _config_from_scenic_file(
    params: Mapping[str, np.ndarray], model_class: type[PreTrainedModel], scenic: Mapping
) -> AVMAEConfig | MBTConfig:
    embeddings = {"video": ("embedding_rgb/kernel", "embedding/kernel"), "audio": ("embedding_spectrogram/kernel",)}
    modalities = tuple(name for name, places in embeddings.items() if any(place in params for place in places))
    needed = {"num_frames", "height", "width"} if "video" in modalities else set()
    needed |= {"spec_time", "spec_freq"} if "audio" in modalities else set()
    if needed - set(scenic):
        raise ConversionError(
            f"A config with `model` must also have the sizes of the inputs, but lacks {sorted(needed - set(scenic))}."
        )
    sizes = {name: scenic[name] for name in needed}
    if "audio" in modalities:
        sizes["spec_channels"] = params["embedding_spectrogram/kernel"].shape[2]
    if model_class is AVMAEForPreTraining:
        return config_from_scenic(scenic, sizes, modalities)
    if model_class is MBTForAudioVisualClassification:
        labels = params["ProjectionHeadAndClassifier_0/output_projection/bias"].shape[0]
        return mbt_config_from_scenic(scenic, sizes, labels)
    raise ConversionError("For the single-modality classifier, give fields of AVMAEConfig instead of `model`.")


def main(arguments: list[str] | None = None) -> None:
    """Command line: convert one file into a folder that `from_pretrained` loads."""
    fields = (
        "config fields that the checkpoint does not hold (encoder_strategy, fusion_layer, num_frames, "
        "spectrogram_length, id2label, ...)"
    )
    convert_file(load_avmae, __doc__, "scenic checkpoint file (MessagePack)", fields, _summary, arguments)


def _summary(model: PreTrainedModel) -> str:
    config = model.config
    return f"modalities {'+'.join(config.modalities)}, {config.num_hidden_layers} layers of {config.hidden_size}"


if __name__ == "__main__":
    main()
