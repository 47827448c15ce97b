"""
Scenic AV-MAE checkpoints to ours: `python -m hf_avfusion.conversion.avmae --checkpoint FILE --config JSON --output DIR`.

Pretraining checkpoints become `AVMAEForPreTraining`, fine-tuned ones `MBTForAudioVisualClassification` (the project's MBT) or
`AVMAEForAudioVisualClassification` (its single-modality classifier). Needs neither JAX nor TensorFlow. Strict: a tensor without a
place, or a place without a tensor, ends in an error.
"""

import re
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedModel

from ..models.configuration_avmae import AVMAEConfig
from ..models.modeling_avmae import AVMAEForAudioVisualClassification, AVMAEForPreTraining
from ..models.modeling_mbt import MBTForAudioVisualClassification
from .flax import ConversionError, Rule, block_rules, convolution, dense, same

STREAMS = {"video": "rgb", "audio": "spectrogram"}
ENCODERS = {
    "concat_and_encode": "early",
    "same_encoder": "shared",
    "separate_encoders": "separate",
    "separate_encoders_and_concat": "mid_fusion",
}
DECODERS = {"same_decoder": "shared", "separate_decoders": "separate", "concat_and_decode": "concatenated"}
POSITIONS = {"sinusoidal_1d": "sinusoidal", "learned_1d": "learned"}
READOUTS = {"gap": "mean", "gmp": "max", "gsp": "sum", "token": "token", "none": "mean"}

Rules = dict[str, tuple[str, Rule]]


def normalize_names(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    One spelling for what the project's models call differently.

    Released code and checkpoints may say `embedding_spec` or `embedding_spectrogram`; its single-modality autoencoder leaves out
    the modality's suffix, and its decoder positions have a name of their own.

    Raises:
        ConversionError: If a tensor is there under both spellings.
    """
    params = dict(params)
    if "mask_token" in params:  # the single-modality autoencoder
        suffix = "rgb" if params["embedding/kernel"].ndim == 5 else "spectrogram"
        own = re.compile(
            r"(embedding|mask_token|decoder_projection|output_projection|posembed_input|posembed_decoder)(/|$)"
        )
        params = {own.sub(rf"\1_{suffix}\2", name, count=1): value for name, value in params.items()}
        params = {name.replace("Transformer/", f"Transformer_{suffix}/"): value for name, value in params.items()}
    renamed: dict[str, np.ndarray] = {}
    for name, value in params.items():
        new = "/".join(re.sub(r"_spec$", "_spectrogram", part) for part in name.split("/"))
        if new in renamed:
            raise ConversionError(f"The checkpoint holds {new} under both spellings, `_spec` and `_spectrogram`.")
        renamed[new] = value
    return renamed


def kind_of(params: Mapping[str, np.ndarray]) -> type[PreTrainedModel]:
    """The class that a checkpoint's (normalised) names belong to."""
    if any(name.startswith("mask_token_") for name in params):
        return AVMAEForPreTraining
    if any(name.startswith("ProjectionHeadAndClassifier_0/") for name in params):
        return MBTForAudioVisualClassification
    if "output_projection/kernel" in params:
        return AVMAEForAudioVisualClassification
    raise ConversionError(
        f"Neither mask tokens nor a classifier among the tensors, e.g. {sorted(params)[:3]}: not a checkpoint of av_mae."
    )


def config_from_scenic(
    scenic: Mapping, sizes: Mapping[str, int], modalities: tuple[str, ...] = ("video", "audio"), **fields
) -> AVMAEConfig:
    """
    The config of a pretraining model from the project's own: its `model` and `masked_feature_loss` parts.

    Args:
        scenic: With `model` (sizes, strategies, patches, decoder_config, ...) and, by default as the code has it,
            `masked_feature_loss`.
        sizes: `num_frames, height, width, spec_time, spec_freq`, and `spec_channels` where not 1, as far as the modalities
            need them.
        modalities: `"video"`, `"audio"` or both.
        **fields: Further `AVMAEConfig` fields; they win.

    Raises:
        ConversionError: For values without a counterpart here, naming them.
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
        raise ConversionError(f"masking_strategy {masking!r} has no counterpart; known are 'random' and 'tube'.")
    patch = [int(size) for size in model["patches"]["size"]]
    ratios, weights = loss.get("token_mask_probability_dict", {}), loss.get("modality_weight", {})
    strategy = _known("encoder_strategy", model.get("encoder_strategy", "concat_and_encode"), ENCODERS)
    standardization = "patch_channels" if loss.get("standardise_per_patch_channels") else None
    found: dict = {
        "hidden_size": model["hidden_size"],
        "num_hidden_layers": model["num_layers"],
        "num_attention_heads": model["num_heads"],
        "intermediate_size": model["mlp_dim"],
        "hidden_dropout_prob": model.get("dropout_rate", 0.0),
        "attention_probs_dropout_prob": model.get("attention_dropout_rate", 0.0),
        "drop_path_rate": model.get("stochastic_droplayer_rate") or 0.0,
        "patch_size": tuple(patch[:2]),
        "modalities": modalities,
        "encoder_strategy": strategy,
        "num_fusion_layers": model.get("fusion_layers") if strategy == "mid_fusion" else None,
        "decoder_strategy": _known("decoder_strategy", model.get("decoder_strategy", "same_decoder"), DECODERS),
        "objective": "modality_inpainting" if model.get("use_inpainting") else "joint_reconstruction",
        "video_masking": masking,
        "use_modality_tokens": model.get("use_modality_tokens", False),
        "position_embeddings": _known(
            "positional_embedding", model.get("positional_embedding", "sinusoidal_1d"), POSITIONS
        ),
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
    for modality, name in STREAMS.items():
        if name in ratios:
            found[f"{modality}_mask_ratio"] = ratios[name]
        if name in weights:
            found[f"{modality}_loss_weight"] = weights[name]
    if "token_mask_probability" in loss:  # the single-modality autoencoder's
        found[f"{modalities[0]}_mask_ratio"] = loss["token_mask_probability"]
    if "video" in modalities:
        found.update(tubelet_size=patch[2], num_frames=sizes["num_frames"])
        found["image_size"] = (sizes["height"], sizes["width"])
    if "audio" in modalities:
        found.update(spectrogram_length=sizes["spec_time"], num_mel_bins=sizes["spec_freq"])
        found["num_audio_channels"] = sizes.get("spec_channels", 1)
    return AVMAEConfig(**{**found, **fields})


def _known(field: str, value: str, names: Mapping[str, str]) -> str:
    if value not in names:
        raise ConversionError(f"{field} {value!r} has no counterpart; known are {sorted(names)}.")
    return names[value]


def encoder_rules(config: AVMAEConfig, prefix: str = "avmae.") -> Rules:
    """Flax path -> (our name, layout) for the encoder of a pretraining tree (spec section 10)."""
    rules: Rules = {}
    for modality in config.modalities:
        name, theirs = f"{prefix}{modality}_embeddings", STREAMS[modality]
        _conv(rules, f"embedding_{theirs}", f"{name}.patch_embeddings.projection")
        if config.position_embeddings == "learned":
            rules[f"posembed_input_{theirs}/pos_embedding"] = (f"{name}.position_embeddings", same)
        if config.use_modality_tokens:
            rules[f"Encoder_modality_token_{theirs}"] = (f"{name}.modality_token", same)
    joint = {"early": config.num_hidden_layers, "mid_fusion": config.num_fusion_layers}.get(config.encoder_strategy, 0)
    stacks = {modality: f"Transformer_{STREAMS[modality]}" for modality in config.modalities}
    if config.encoder_strategy in ("early", "shared"):
        stacks = {"shared": "Transformer"}
    joint_stack = "Transformer_concat" if config.encoder_strategy == "mid_fusion" else "Transformer"
    _stack_rules(rules, f"{prefix}encoder", config.num_hidden_layers, joint, stacks, joint_stack, config.final_norm)
    return rules


def pretraining_rules(config: AVMAEConfig) -> Rules:
    """Flax path -> (our name, layout) for every tensor of [`AVMAEForPreTraining`]."""
    rules = encoder_rules(config)
    for modality in config.modalities:
        name, theirs = f"decoder.{modality}", STREAMS[modality]
        rules[f"mask_token_{theirs}"] = (f"{name}.mask_token", same)
        rules[f"decoder_projection_{theirs}/kernel"] = (f"{name}.projection.weight", dense)
        if config.decoder_projection_bias:
            rules[f"decoder_projection_{theirs}/bias"] = (f"{name}.projection.bias", same)
        rules[f"output_projection_{theirs}/kernel"] = (f"{name}.prediction.weight", dense)
        rules[f"output_projection_{theirs}/bias"] = (f"{name}.prediction.bias", same)
        if config.use_modality_tokens:
            rules[f"Decoder_modality_token_{theirs}"] = (f"{name}.modality_token", same)
        if config.decoder_position_embeddings == "learned":
            # The original gives encoder's and decoder's table one name, so that only one of them can be learned; the
            # single-modality autoencoder has a name for the decoder's.
            table = "posembed_decoder" if config.position_embeddings == "learned" else "posembed_input"
            rules[f"{table}_{theirs}/pos_embedding"] = (f"{name}.position_embeddings", same)
    stacks = {modality: f"Decoder_{STREAMS[modality]}" for modality in config.modalities}
    if config.decoder_strategy != "separate":
        stacks = {"shared": "Decoder"}
    joint = config.decoder_num_hidden_layers if config.decoder_strategy == "concatenated" else 0
    _stack_rules(
        rules, "decoder.transformer", config.decoder_num_hidden_layers, joint, stacks, "Decoder", config.final_norm
    )
    return rules


def classifier_rules(config: AVMAEConfig) -> Rules:
    """Flax path -> (our name, layout) of the project's single-modality classifier (spec section 9.4)."""
    (modality,) = config.modalities
    name = f"avmae.{modality}_embeddings"
    rules: Rules = {}
    _conv(rules, "embedding", f"{name}.patch_embeddings.projection")
    if config.position_embeddings == "learned":
        rules["posembed_input/pos_embedding"] = (f"{name}.position_embeddings", same)
    if config.use_modality_tokens:
        rules[f"Encoder_modality_token_{STREAMS[modality]}"] = (f"{name}.modality_token", same)
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
