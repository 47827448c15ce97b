"""Models, inputs and calls that benchmarks/gpu.py measures, at their published sizes and in miniature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_avfusion.evaluation.costs import count_flops
from hf_avfusion.models.avmae.configuration_avmae import AVMAEConfig
from hf_avfusion.models.avmae.modeling_avmae import AVMAEForPreTraining
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.training.optimization import AdamDecoupled, momentum_sgd

NUM_LABELS = 309  # VGGSound

# Fields that make a model small enough for a test on a CPU. A patch is 16 pixels, as published.
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "num_frames": 4,
    "spectrogram_length": 32,
    "num_mel_bins": 32,
}
TINY_DECODER: dict[str, Any] = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "video_mask_ratio": 0.5,
}


@dataclass(frozen=True)
class Subject:
    """One model and its published input: what is built, trained and timed."""

    name: str
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    optimizer_name: str
    first_batch: int  # where the doubling of batch sizes starts
    extra_inputs: dict[str, list[list[bool]]] = field(default_factory=dict)  # of two clips

    def build(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model on the device, the same weights each time. Weights that start at zero become random.

        With a zero head all gradients below it are zero, and matrix products on zeros run faster than on real data.
        """
        torch.manual_seed(0)
        with torch.device(device):
            model = self.model_class(self.config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.device.type != "meta" and not parameter.any():
                    parameter.normal_(std=0.02)
        return model.to(dtype)

    def inputs(self, batch: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Random clips of the published sizes; labels for a classifier."""
        config, shape = self.config, {"device": device, "dtype": dtype}
        torch.manual_seed(1)
        inputs = {
            "pixel_values": torch.rand(batch, config.num_frames, 3, *config.image_hw, **shape).mul_(2).sub_(1),
            "input_features": torch.randn(batch, config.spectrogram_length, config.num_mel_bins, **shape),
        }
        if self.model_class is MBTForAudioVisualClassification:
            inputs["labels"] = torch.arange(batch, device=device) % config.num_labels
        return inputs | {name: torch.tensor(value, device=device) for name, value in self.extra_inputs.items()}

    def sizes(self) -> dict[str, int]:
        """Sizes of a clip, for the records."""
        config = self.config
        return {
            "frames": config.num_frames,
            "height": config.image_hw[0],
            "width": config.image_hw[1],
            "spectrogram": config.spectrogram_length,
            "mel": config.num_mel_bins,
        }

    def flops(self) -> tuple[int, int]:
        """FLOPs of one clip's forward pass and of its training step, as torch.utils.flop_counter sees meta tensors."""
        model, inputs = self.build("meta").train(), self.inputs(1, "meta")
        return count_flops(lambda: model(**inputs)), count_flops(lambda: model(**inputs).loss.backward())


def mbt(tiny: bool, fusion: str = "bottleneck", missing: bool = False) -> Subject:
    """MBT-Base as released: 32 frames of 224 x 224, 8 s of audio. `missing`: the second of two clips has no audio."""
    fields = TINY if tiny else {}
    config = MBTConfig(**fields, fusion=fusion, num_labels=NUM_LABELS, fusion_layer=0 if tiny else 8)
    return Subject(
        name=f"MBT {fusion}" + ", a clip without audio" * missing,
        model_class=MBTForAudioVisualClassification,
        config=config,
        optimizer=partial(momentum_sgd, learning_rate=1e-6),
        optimizer_name="momentum SGD",
        first_batch=2 if tiny else 8,
        extra_inputs={"modality_mask": [[True, True], [True, False]]} if missing else {},
    )


def avmae(tiny: bool, strategy: str = "separate") -> Subject:
    """AV-MAE-Base pretraining as on VGGSound: 16 frames of 224 x 224, 8 s of audio, 0.9 and 0.5 of the tokens masked."""
    fields = TINY | TINY_DECODER if tiny else {}
    if tiny and strategy == "mid_fusion":
        fields = fields | {"num_hidden_layers": 2, "num_fusion_layers": 1}
    return Subject(
        name=f"AV-MAE pretraining, {strategy}",
        model_class=AVMAEForPreTraining,
        config=AVMAEConfig(**fields, encoder_strategy=strategy),
        optimizer=partial(AdamDecoupled, lr=1e-6),
        optimizer_name="Adam, decoupled decay",
        first_batch=2 if tiny else 32,
    )


def published_models(tiny: bool) -> list[Subject]:
    """The models whose precision, speed and memory are measured."""
    return [mbt(tiny), avmae(tiny)]


def attention_paths(tiny: bool) -> list[Subject]:
    """Every model whose attention calls differ from those of the others, the most used first."""
    others = [avmae(tiny, strategy) for strategy in ("mid_fusion", "early", "shared")]
    return [*published_models(tiny), mbt(tiny, "self_attention"), mbt(tiny, missing=True), *others]


def forward_call(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    """Evaluation mode, no gradients, no labels; returns the model's output."""
    unlabelled = {name: value for name, value in inputs.items() if name != "labels"}

    def call() -> Any:
        model.eval()
        with torch.no_grad():
            return model(**unlabelled)

    return call


def training_call(
    model: nn.Module, inputs: dict[str, Tensor], optimizer: torch.optim.Optimizer, device: torch.device
) -> Callable[[], None]:
    """One training step in bf16 autocast with float32 weights: forward, loss, backward, update."""

    def call() -> None:
        model.train()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def outputs_of(output: Any) -> Tensor:
    """What a model says of the first clip, as one float64 vector: logits, or the predicted patches of both modalities."""
    names = ("logits",) if "logits" in output else ("video_predictions", "audio_predictions")
    return torch.cat([output[name][0].double().flatten() for name in names])


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """||ours - reference|| / ||reference||."""
    return float((ours - reference).norm() / reference.norm())
