"""
Converts checkpoints of the authors' LAVISH (GenjiB/LAVISH, PyTorch with timm 0.6.7) to ours.

    python -m hf_avfusion.conversion.lavish --checkpoint AVE.pt --output lavish-ave --config fields.json
    python -m hf_avfusion.conversion.lavish --checkpoint AVS.pt --output lavish-avsbench-s4
    python -m hf_avfusion.conversion.lavish --checkpoint AVQA.pt --output lavish-music-avqa
    python -m hf_avfusion.conversion.lavish --checkpoint AVE.pt --output frozen-base --adapter_output lavish-ave-adapter

The authors released no checkpoint, so this converts checkpoints that were trained with their code. The tensors tell the task: AVE,
AVSBench-S4 or MUSIC-AVQA. Tensors that the original builds but never uses are dropped: the backbone's head,
`adapter_token_downsampler`, `gate_tk`, `attn_mask` buffers, AVSBench's `encoder_backbone`, and layers of the heads.

The model has the adapters built in. With `--adapter_output` the folder of `--output` holds the backbone without adapters, and that
of `--adapter_output` an adapter of peft, with the head. A processor is written, the published one of the task with the sizes of the
model; that of MUSIC-AVQA has the published words of its questions, or those of `--words`.
"""

from .command_line import check_arguments, convert_file

if __name__ == "__main__":
    check_arguments(
        "--words", splits_adapter=True
    )  # wrong arguments are answered before the imports below, which take seconds

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..lazy_registration import load_reference
from ..models.lavish.configuration_lavish import LavishTwoStreamConfig
from ..models.lavish.modeling_lavish import LavishForAudioVisualClassification, LavishPreTrainedModel
from ..models.lavish.modeling_lavish_heads import LavishForQuestionAnswering, LavishForSegmentation
from ..models.lavish.processing_lavish import LavishProcessor
from ..models.shared.torch_files import read_tensors
from ..processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from ..processing.video_processing_avfusion import AVFusionVideoProcessor
from . import lavish_question_answering as answers
from . import lavish_segmentation as masks
from .flax import ConversionError, Rule, convert, same

Params = dict[str, np.ndarray]
Rules = dict[str, tuple[str, Rule]]

# Tensors that the original builds and never uses.
_UNUSED = re.compile(
    r"(ViT\.v|swin)\.head\.|swin\.layers\.\d+\.blocks\.\d+\.attn_mask$|adapter_token_downsampler\.|.*\.gate_tk$|encoder_backbone\."
)
_PARTS = {"p1": "attn", "p2": "mlp"}
_ADAPTERS = {"audio": "audio", "vis": "video"}
_ADAPTER_NAMES = {
    "my_tokens": "latents",
    "gate_av": "fusion_gate",
    "gate": "gate",
    "down_sampler.weight": "down.weight",
    "up_sampler.weight": "up.weight",
    "ln_before.weight": "norm_in.weight",
    "ln_before.bias": "norm_in.bias",
    "ln_post.weight": "norm_out.weight",
    "ln_post.bias": "norm_out.bias",
    **{
        f"{source}.{name}": f"{target}.{name}"
        for source, target in (("bn1", "bn_down"), ("bn2", "bn_up"))
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    },
}
_PAIRS = ("weight", "bias")


def read_state(path: str | os.PathLike) -> Params:
    """
    The tensors of a PyTorch checkpoint file, without the prefix of `DataParallel`.

    Raises:
        ConversionError: It is not a file of tensors by name; the message names the file.
    """
    try:
        state = read_tensors(path, "the original's `model.state_dict()`")
    except ValueError as error:
        raise ConversionError(str(error)) from error
    return {name.removeprefix("module."): value.float().numpy() for name, value in state.items()}


def normalize_names(params: Mapping[str, np.ndarray]) -> Params:
    """The tensors that are used, with the joint query, key and value weights split."""
    used: Params = {}
    for name, value in params.items():
        if _UNUSED.match(name):
            continue
        if ".attn.qkv." not in name:
            used[name] = value
            continue
        if value.shape[0] % 3:
            raise ConversionError(f"{name} has {value.shape[0]} rows, expected queries, keys and values of one size.")
        for part, rows in zip("qkv", np.split(np.asarray(value), 3)):
            used[name.replace("qkv", part)] = rows
    return used


def backbone_rules(config: LavishTwoStreamConfig) -> Rules:
    """timm's name -> name in transformers' model, for the backbone."""
    if config.backbone_config.model_type == "vit":
        return _vit_rules(config.backbone_config)
    if config.backbone_config.model_type == "swinv2":
        return _swin_rules(config.backbone_config)
    raise ConversionError(
        f"The original has the backbones vit and swinv2, not {config.backbone_config.model_type!r}. Set `backbone_config`."
    )


def _vit_rules(config: Any) -> Rules:
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        **_pairs("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        **_pairs("norm", "layernorm"),
    }
    for index in range(config.num_hidden_layers):
        source, target = f"blocks.{index}", f"layers.{index}"
        for theirs, ours in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("proj", "o_proj")):
            names |= _pairs(f"{source}.attn.{theirs}", f"{target}.attention.{ours}")
        for theirs, ours in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            names |= _pairs(f"{source}.{theirs}", f"{target}.{ours}")
        for layer in ("mlp.fc1", "mlp.fc2"):
            names |= _pairs(f"{source}.{layer}", f"{target}.{layer}")
    return {f"ViT.v.{theirs}": (f"backbone.{ours}", same) for theirs, ours in names.items()}


def _swin_rules(config: Any) -> Rules:
    names = {
        **_pairs("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        **_pairs("patch_embed.norm", "embeddings.norm"),
        **_pairs("norm", "layernorm"),
    }
    for stage, depth in enumerate(config.depths):
        if stage < len(config.depths) - 1:
            source = f"layers.{stage}.downsample"
            names |= {f"{source}.reduction.weight": f"encoder.{source}.reduction.weight"}
            names |= _pairs(f"{source}.norm", f"encoder.{source}.norm")
        for index in range(depth):
            source, target = f"layers.{stage}.blocks.{index}", f"encoder.layers.{stage}.blocks.{index}"
            attention, own = f"{source}.attn", f"{target}.attention.self"
            for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
                names[f"{attention}.{theirs}.weight"] = f"{own}.{ours}.weight"
            names[f"{attention}.q_bias"] = f"{own}.query.bias"
            names[f"{attention}.v_bias"] = f"{own}.value.bias"
            names[f"{attention}.logit_scale"] = f"{own}.logit_scale"
            names |= _pairs(f"{attention}.cpb_mlp.0", f"{own}.continuous_position_bias_mlp.0")
            names[f"{attention}.cpb_mlp.2.weight"] = f"{own}.continuous_position_bias_mlp.2.weight"
            names |= _pairs(f"{attention}.proj", f"{target}.attention.output.dense")
            for theirs, ours in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
                names |= _pairs(f"{source}.{theirs}", f"{target}.{ours}")
            for theirs, ours in (("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")):
                names |= _pairs(f"{source}.{theirs}", f"{target}.{ours}")
    return {f"swin.{theirs}": (f"backbone.{ours}", same) for theirs, ours in names.items()}


def _pairs(source: str, target: str) -> dict[str, str]:
    return {f"{source}.{name}": f"{target}.{name}" for name in _PAIRS}


def squeeze(array: np.ndarray) -> np.ndarray:
    """Kernel of a 1x1 convolution [out, in, 1, 1] -> [out, in]."""
    return array.reshape(array.shape[:2])


def adapter_rules(names: set[str]) -> Rules:
    """Name of an adapter's tensor in the original -> ours, for the names that occur."""
    return {
        theirs: (ours, squeeze if theirs.endswith("_sampler.weight") else same)
        for theirs, ours in _ADAPTER_NAMES.items()
        if theirs in names
    }


def adapters_rules(params: Mapping[str, np.ndarray]) -> Rules:
    """The same for all adapters of a model: `{audio,vis}_adapter_blocks_p{1,2}.<block>.<tensor>`."""
    rules: Rules = {}
    pattern = re.compile(r"(audio|vis)_adapter_blocks_(p[12])\.(\d+)\.(.+)")
    for name in params:
        match = pattern.fullmatch(name)
        if match and match[4] in _ADAPTER_NAMES:
            target, layout = adapter_rules({match[4]})[match[4]]
            slot = f"blocks.{match[3]}.fusion_{_PARTS[match[2]]}.{_ADAPTERS[match[1]]}"
            rules[name] = (f"{slot}.{target}", layout)
    return rules


HEAD_RULES: Rules = {
    f"{theirs}.{name}": (f"{ours}.{name}", same)
    for theirs, ours in (("mlp_class", "pre_classifier"), ("mlp_class_2", "classifier"))
    for name in _PAIRS
}


def model_class_of(params: Mapping[str, np.ndarray]) -> type[LavishPreTrainedModel]:
    """Our class for a checkpoint of the original, by the names of its head's tensors."""
    if "fc_ans.weight" in params:
        return LavishForQuestionAnswering
    return LavishForSegmentation if "output_conv.0.weight" in params else LavishForAudioVisualClassification


def convert_lavish(params: Mapping[str, np.ndarray], config: LavishTwoStreamConfig) -> dict[str, torch.Tensor]:
    """
    Convert the original's tensors to the state dict of `model_class_of(params)(config)`.

    Raises:
        ConversionError: If tensors and config do not match one to one; the message names the tensors.
    """
    model_class = model_class_of(params)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in model_class(config).state_dict().items()}
    params, head, dropped = normalize_names(params), HEAD_RULES, ()
    if model_class is LavishForQuestionAnswering:
        params, head, dropped = answers.split_attention(params), answers.head_rules("head."), answers.UNUSED
    elif model_class is LavishForSegmentation:
        tpavi = (config.tpavi_stages, config.tpavi_video_audio)
        head, dropped = masks.decoder_rules(*tpavi, prefix="decoder."), masks.dropped_decoder_names(*tpavi)
    rules = {
        name: (f"lavish.{target}", layout)
        for name, (target, layout) in {**backbone_rules(config), **adapters_rules(params)}.items()
    }
    return convert(params, {**rules, **head}, shapes, dropped=dropped)


def infer_adapter(params: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """The options of the adapters, from the names and shapes of block 0. None if there are none."""
    block = {
        stream: {name.split(".", 2)[2] for name in params if name.startswith(f"{stream}_adapter_blocks_p1.0.")}
        for stream in _ADAPTERS
    }
    if not block["vis"]:
        return None
    first = "vis_adapter_blocks_p1.0"
    down = np.shape(params[f"{first}.down_sampler.weight"])
    width = np.shape(params[f"{first}.up_sampler.weight"])[0]
    names = block["vis"]
    options = {
        "reduction": width // down[0],
        "groups": width // down[1],
        "use_bn": "bn1.weight" in names,
        "gate_audio": "gate" in block["audio"],
        "gate_video": "gate" in names,
        "ln_before": "ln_before.weight" in names,
        "ln_post": "ln_post.weight" in names,
        "direction": "both" if "my_tokens" in names else "none",
        "unimodal_activation": "none",  # of the AVE code
    }
    if model_class_of(params) is LavishForQuestionAnswering:
        options |= {"unimodal_activation": "relu", "token_init": "zeros"}
    elif model_class_of(params) is LavishForSegmentation:
        # Its adapters create `ln_before` and never apply it in the multimodal path, and scale by the gate before `ln_post`.
        options |= {
            "unimodal_activation": "relu",
            "token_init": "zeros",
            "gate_before_post_norm": True,
            "ln_before_with_fusion": False,
        }
    if "my_tokens" in names:
        options["num_tokens"] = len(params[f"{first}.my_tokens"])
    return options


def infer_backbone(params: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    The config of the backbone as a dict, from names and shapes. `given` are its fields that these do not tell.

    Raises:
        ConversionError: If it is no ViT or Swin-V2 of timm.
        KeyError: If a tensor is missing.
    """
    if "ViT.v.cls_token" in params:
        return {**_infer_vit(params, given), **given}
    if "swin.patch_embed.proj.weight" in params:
        return {**_infer_swin(params), **given}
    raise ConversionError("It holds neither `ViT.v` nor `swin` tensors. Give a LAVISH checkpoint.")


def infer_config(params: Mapping[str, np.ndarray], **fields: Any) -> LavishTwoStreamConfig:
    """
    The config of a checkpoint. Names and shapes give the sizes of the backbone, the adapters and the head.

    Args:
        params: As [`normalize_names`] returns them.
        **fields: Fields that the tensors do not hold, such as `spectrogram_length`. `backbone_config` may hold fields of the
            backbone alone: `image_size`, `window_size` and, for a ViT whose heads do not have 64 channels,
            `num_attention_heads`. `question_num_attention_heads` is 4 by default.

    Raises:
        ConversionError: If it is no such checkpoint.
    """
    given = dict(fields.pop("backbone_config", None) or {})
    if fields.get("vggish"):
        raise ConversionError(
            "`vggish` is set, but the original's checkpoints hold no VGGish. Leave it out, and train a model with "
            "LavishForAudioVisualClassification.from_vggish(...)."
        )
    try:
        backbone = infer_backbone(params, given)
        if model_class_of(params) is LavishForQuestionAnswering:
            head = answers.infer_head_fields(params)
        elif model_class_of(params) is LavishForSegmentation:
            head = masks.infer_head_fields(params)
        else:
            sizes = [np.shape(params[f"{name}.weight"])[0] for name in ("mlp_class", "mlp_class_2")]
            head = dict(zip(("classifier_hidden_size", "num_labels"), sizes))
        adapter = infer_adapter(params)
    except (KeyError, IndexError) as error:
        raise ConversionError(
            f"It lacks tensors of a LAVISH model for AVE, AVSBench-S4 or MUSIC-AVQA ({error}). Give such a checkpoint."
        ) from error
    inferred = {"adapter": adapter, **head}
    if backbone["model_type"] == "vit":  # as published, 102 x 128 with patches of 16
        inferred |= {"spectrogram_length": 102, "num_mel_bins": 128, "drop_remainder": True}
    if "id2label" in fields:
        inferred.pop("num_labels")
    return LavishTwoStreamConfig(**{**inferred, "backbone_config": backbone, **fields})


def _infer_vit(params: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    kernel = np.shape(params["ViT.v.patch_embed.proj.weight"])
    width, patch = kernel[0], kernel[2]
    depth = 1 + max(int(name.split(".")[3]) for name in params if name.startswith("ViT.v.blocks."))
    side = round((np.shape(params["ViT.v.pos_embed"])[1] - 1) ** 0.5) * patch
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": given.get("num_attention_heads", max(width // 64, 1)),
        "intermediate_size": np.shape(params["ViT.v.blocks.0.mlp.fc1.weight"])[0],
        "patch_size": patch,
        "image_size": side,
        "layer_norm_eps": 1e-6,  # of timm's ViT
    }


def _infer_swin(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    kernel = np.shape(params["swin.patch_embed.proj.weight"])
    depths: dict[int, int] = {}
    for name in params:
        parts = name.split(".")
        if name.startswith("swin.layers.") and parts[3] == "blocks":
            stage = int(parts[2])
            depths[stage] = max(depths.get(stage, 0), int(parts[4]) + 1)
    stages = range(len(depths))
    return {
        "model_type": "swinv2",
        "embed_dim": kernel[0],
        "patch_size": kernel[2],
        "depths": [depths[stage] for stage in stages],
        "num_heads": [np.shape(params[f"swin.layers.{stage}.blocks.0.attn.logit_scale"])[0] for stage in stages],
        "mlp_ratio": np.shape(params["swin.layers.0.blocks.0.mlp.fc1.weight"])[0] / kernel[0],
        "image_size": 192,
        "window_size": 12,
    }


def load_lavish(checkpoint: str | Path, config: Mapping | None = None) -> LavishPreTrainedModel:
    """
    A model with built-in adapters and the weights of a checkpoint of the original.

    Args:
        checkpoint: The file of the original's `model.state_dict()`.
        config: Fields of the config that the file does not hold, see [`infer_config`].

    Raises:
        ConversionError: If the file cannot be read, or does not fit the config; the message names it.
    """
    params = read_state(checkpoint)
    try:
        fitted = infer_config(normalize_names(params), **dict(config or {}))
        model = model_class_of(params)(fitted)
        model.load_state_dict(convert_lavish(params, fitted), strict=True)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint}: {error}") from error
    return model.eval()


# MUSIC-AVQA's words lie beside the other published lists of benchmarks, as a file without code.
MUSIC_AVQA_WORDS = Path(__file__).parents[1] / "data" / "benchmarks" / "labels" / "music_avqa_words.txt"


def make_processor(model: LavishPreTrainedModel, words: str | os.PathLike | None = None) -> LavishProcessor:
    """
    The published processor of a converted model, with the model's sizes.

    Args:
        words: File with the words of the questions, one a line in the order of their indices; default: MUSIC-AVQA's.

    Raises:
        ConversionError: If there are another number of words than in the model, or words for a model without questions.
    """
    if not isinstance(model, LavishForQuestionAnswering):
        if words is not None:
            raise ConversionError(
                f"--words {words}: the checkpoint is of a model that takes no questions. Leave it out."
            )
        if isinstance(model, LavishForSegmentation):  # which resizes frames of the masks' size itself, as published
            return _sized_processor("lavish_avs", model.config, model.config.mask_hw)
        kind = "vit" if model.config.backbone_config.model_type == "vit" else "swin"
        return _sized_processor(f"lavish_ave_{kind}", model.config, model.config.image_hw)
    config = model.config
    vocab = Path(words or MUSIC_AVQA_WORDS).read_text(encoding="utf-8").splitlines()
    if len(vocab) != config.vocab_size:
        raise ConversionError(
            f"The checkpoint knows {config.vocab_size} words, but {words or 'the published list of MUSIC-AVQA'} has {len(vocab)}. "
            "Give the words of its training as --words."
        )
    return _sized_processor("lavish_avqa", config, config.image_hw, vocab=vocab)


def _sized_processor(
    preset: str, config: LavishTwoStreamConfig, frame_size: tuple[int, int], **options: Any
) -> LavishProcessor:
    sizes = {"spectrogram_length": config.spectrogram_length, "num_mel_bins": config.num_mel_bins}
    return LavishProcessor.from_preset(
        preset,
        num_segments=config.num_segments,
        video_processor=AVFusionVideoProcessor(**LavishProcessor.frames_of_size(*frame_size)),
        feature_extractor=AVFusionFeatureExtractor.from_preset(preset, **sizes),
        **options,
    )


def split_adapter(model: LavishPreTrainedModel) -> Any:
    """
    A peft model whose base is the converted model without adapters; the adapter has the head, too.

    Raises:
        ConversionError: If the checkpoint has no adapters.
    """
    if model.config.adapter is None:
        raise ConversionError("--adapter_output: the checkpoint has no adapters. Leave it out.")
    head = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    # By its name, since `adapters` is no room below this one. peft is imported here alone.
    return load_reference("adapters.converting:take_out")(model, modules_to_save=head)


def main(arguments: list[str] | None = None) -> None:
    """Command line: convert one file into a folder that `from_pretrained` loads."""
    fields = "LavishTwoStreamConfig fields that the checkpoint does not hold (spectrogram_length, num_segments, id2label, ...)"
    options = {"--words": "file with the words of the questions, one a line; default: MUSIC-AVQA's"}
    convert_file(
        load_lavish,
        __doc__,
        "the original's state dict (PyTorch)",
        fields,
        _summary,
        arguments,
        make_processor=make_processor,
        processor_files=options,
        split_adapter=split_adapter,
    )


def _summary(model: LavishPreTrainedModel) -> str:
    config = model.config
    about = f"backbone {config.backbone_config.model_type}, adapters {config.adapter}"
    if isinstance(model, LavishForSegmentation):
        return f"{about}, masks of {config.mask_hw[0]} x {config.mask_hw[1]} pixels"
    return f"{about}, {config.num_labels} labels"


if __name__ == "__main__":
    main()
