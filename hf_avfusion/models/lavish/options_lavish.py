"""Options of LAVISH's adapters and heads, and checks of them. Imports no models, since a config is loaded before they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...media.limits import check_sizes

MASK_LOSSES = ("bce_of_probabilities", "bce_with_logits")
MASK_POOLINGS = ("avg", "max")
LOCALIZATION_LOSSES = ("cross_entropy", "bce_of_probabilities", "bce_of_log_probabilities")
NUM_STAGES = 4  # of a backbone whose maps the mask decoder reads

DIRECTIONS = ("both", "audio_to_video", "video_to_audio", "none")
TOKEN_INITS = ("uniform", "zeros")
UNIMODAL_ACTIVATIONS = ("relu", "none")


@dataclass
class AdapterOptions:
    """
    Options of all adapters of a model. The defaults are the published AVE command, except for `token_init` in AVS and AVQA.

    Args:
        num_tokens: Latent tokens that carry information from one stream to the other (T in the paper, 2 to 64).
        reduction: The width of the hidden layer is the stream's width over this.
        groups: Groups of both dense layers (grouped 1x1 convolutions); must divide both widths.
        use_bn: Batch normalisation after both dense layers, over all tokens of a batch.
        gate_audio, gate_video: A learned factor of the residual, initially 0, so that a new adapter changes nothing. The
            published video adapters always have it.
        ln_before: LayerNorm before the first dense layer.
        ln_before_with_fusion: Whether adapters that read the other stream apply it too. The AVS code creates this norm in
            such adapters, but does not apply it.
        ln_post: LayerNorm of the residual.
        gate_before_post_norm: Multiplies by the gate before that LayerNorm, as the AVS code does. The AVE and AVQA code
            multiplies after it.
        token_init: `"uniform"` in [0, 1), as the paper's text and the AVE code; `"zeros"` as the AVS and AVQA code. Latents
            that start as zeros stay equal to each other, so that they act as one.
        unimodal_activation: Activation between the dense layers of an adapter that never reads the other stream: `"relu"` as
            the AVQA and AVS code, or `"none"` as the AVE code.
        direction: `"both"`: each stream reads the other; `"audio_to_video"`: the video stream reads audio; `"video_to_audio"`;
            `"none"`.

    Raises:
        ValueError: An option has a value that is not allowed; the message names it.
    """

    num_tokens: int = 2
    reduction: int = 8
    groups: int = 2
    use_bn: bool = True
    gate_audio: bool = True
    gate_video: bool = True
    ln_before: bool = True
    ln_before_with_fusion: bool = True
    ln_post: bool = True
    gate_before_post_norm: bool = False
    token_init: str = "uniform"
    unimodal_activation: str = "relu"
    direction: str = "both"

    def check(self, widths: Iterable[int] = ()) -> None:
        """Raises ValueError if an option is not allowed, or does not fit the widths of the streams."""
        for each in fields(AdapterOptions):
            value = getattr(self, each.name)
            kind = {"int": int, "bool": bool, "str": str}[
                each.type if isinstance(each.type, str) else each.type.__name__
            ]
            if type(value) is not kind:
                raise ValueError(f"`{each.name}` of the adapters must be a {kind.__name__}, got {value!r}.")
        for name in ("num_tokens", "reduction", "groups"):
            check_sizes({name: getattr(self, name)})
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` of the adapters must be at least 1, got {getattr(self, name)}.")
        choices = {"token_init": TOKEN_INITS, "unimodal_activation": UNIMODAL_ACTIVATIONS, "direction": DIRECTIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` of the adapters must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}."
                )
        for width in sorted(set(widths)):
            hidden = width // self.reduction
            if width % self.groups or hidden % self.groups or hidden < self.groups:
                raise ValueError(
                    f"`groups` ({self.groups}) must divide the width of each block and that of the adapter's hidden layer, but a "
                    f"block has width {width}, and {width} // `reduction` ({self.reduction}) = {hidden}. Choose another "
                    "`groups` or `reduction`."
                )

    def reads_other(self, modality: str) -> bool:
        """Whether the adapters of this stream read the other stream."""
        return self.direction == "both" or self.direction.endswith(f"to_{modality}")

    def to_mapping(self) -> dict[str, Any]:
        """The options as plain values."""
        return {each.name: getattr(self, each.name) for each in fields(AdapterOptions)}

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> "AdapterOptions":
        """The options of a saved config. Raises ValueError naming a key that is no option."""
        known = [each.name for each in fields(AdapterOptions)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"Adapters have no option {unknown[0]!r}. Their options are {', '.join(known)}.")
        return AdapterOptions(**given)


def check_tpavi(tpavi_stages: Sequence[int], video_audio: bool, video_video: bool) -> None:
    """
    Check the TPAVI options of a decoder, also for a config.

    Raises:
        ValueError: On unknown or repeated stages, and stages without attention.
    """
    stages = list(tpavi_stages)
    if len(set(stages)) != len(stages) or not set(stages) <= set(range(NUM_STAGES)):
        raise ValueError(f"`tpavi_stages` must be different numbers from 0 to {NUM_STAGES - 1}, got {stages}.")
    if stages and not (video_audio or video_video):
        raise ValueError(
            f"`tpavi_stages` {stages} need video-audio or video-video attention, but both are off. Switch one on, or leave "
            "`tpavi_stages` empty."
        )


def check_matching_stages(stages: Sequence[int], with_audio: Sequence[int]) -> None:
    """
    Check the stages of the matching loss, also for a config.

    Args:
        stages: Stages of the loss.
        with_audio: Stages with TPAVI video-audio attention.

    Raises:
        ValueError: If there is no stage, or one without TPAVI video-audio attention. The original crashes on these.
    """
    if not stages or not set(stages) <= set(with_audio):
        raise ValueError(
            f"The matching loss needs stages with TPAVI video-audio attention, which this decoder has at {sorted(with_audio)}, "
            f"got {list(stages)}. List stages that have it, or switch the matching loss off."
        )


__all__ = [
    "DIRECTIONS",
    "LOCALIZATION_LOSSES",
    "MASK_LOSSES",
    "MASK_POOLINGS",
    "NUM_STAGES",
    "TOKEN_INITS",
    "UNIMODAL_ACTIVATIONS",
    "AdapterOptions",
    "check_matching_stages",
    "check_tpavi",
]
