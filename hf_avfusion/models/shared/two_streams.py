"""Shared parts of two-stream models: outputs, input checks, missing modalities, classification head."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps

import torch
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput, TransformersKwargs

from .losses_classification import classification_loss, infer_problem_type

# Keyword arguments of `forward` that are not inputs: options of transformers, and what its decorators add.
_OPTIONS = frozenset(TransformersKwargs.__annotations__) | {
    "use_cache",
    "output_audio_hidden_states",
    "output_audio_attentions",
    "debug_io",
    "debug_io_dir",
    "prune_layers",
}
# Pooled readouts: name -> reduction over tokens.
REDUCTIONS = {"mean": torch.mean, "max": torch.amax, "sum": torch.sum}


@dataclass
class AudioVisualModelOutput(ModelOutput):
    """
    Output of a base model. B batch, d `hidden_size`, n_v / n_a tokens per stream (CLS first where the model has one).

    Args:
        last_hidden_state (float [B, n_v + n_a, d]): Normalised tokens, streams in the order of `config.modalities`.
        video_hidden_state (float [B, n_v, d]): Normalised video tokens; absent without video.
        audio_hidden_state (float [B, n_a, d]): Normalised audio tokens; absent without audio.
        hidden_states (tuple of `num_hidden_layers + 1` [B, n_v, d]): Video stream before and after each layer, not normalised.
        attentions (tuple of [B, heads, queries, keys]): Video stream; eager attention only. A layer in which both streams'
            tokens attend to each other in one sequence has one map for both, which is stored here. With a bottleneck, its
            rows are last. Where a stream also attends to the other stream, the keys are [other stream, own tokens].
        audio_hidden_states, audio_attentions: The same for the audio stream.
    """

    last_hidden_state: torch.FloatTensor | None = None
    video_hidden_state: torch.FloatTensor | None = None
    audio_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AudioVisualClassifierOutput(ModelOutput):
    """
    Output of a head for audio-visual classification. B batch, C `num_labels`.

    Args:
        loss (float scalar): Mean over the batch; given `labels`.
        logits (float [B, C], or [B, segments, C] in event localisation): Scores before softmax or sigmoid.
        video_logits, audio_logits (same shape): Scores of each stream alone, if the readout has them. `logits` is their mean
            over the modalities present. Rows of a missing modality are meaningless.
        hidden_states, attentions, audio_hidden_states, audio_attentions: See the base model's output.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    video_logits: torch.FloatTensor | None = None
    audio_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_attentions: tuple[torch.FloatTensor, ...] | None = None


def record_both_streams(forward):
    """
    Make `output_hidden_states` and `output_attentions` record the audio stream too.

    An unknown keyword is refused with a ValueError: a misspelt input would be taken for a missing modality.
    """
    inputs = [name for name in inspect.signature(forward).parameters if name not in ("self", "kwargs")]

    @wraps(forward)
    def wrapper(self, *args, **kwargs):
        refuse_unknown_inputs(kwargs, inputs)
        return_dict = kwargs.pop("return_dict", None)
        for name in ("hidden_states", "attentions"):
            wanted = kwargs.get(f"output_{name}")
            wanted = getattr(self.config, f"output_{name}", False) if wanted is None else wanted
            kwargs[f"output_audio_{name}"] = wanted is not None and wanted is not False
        output = forward(self, *args, return_dict=True, **kwargs)
        absent = [
            prefix
            for stream, prefix in (("video", ""), ("audio", "audio_"))
            if output.get(f"{stream}_hidden_state") is None
        ]
        if absent:
            empty = {f"{prefix}{kind}" for prefix in absent for kind in ("hidden_states", "attentions")}
            output = type(output)(**{name: value for name, value in output.items() if name not in empty})
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return output if return_dict else output.to_tuple()

    return wrapper


def refuse_unknown_inputs(given: Iterable[str], inputs: Sequence[str]) -> None:
    """Raise ValueError for a name that is neither one of a model's `inputs` nor an option of transformers."""
    for name in given:
        if name not in inputs and name not in _OPTIONS and name != "return_dict":
            close = get_close_matches(name, [*inputs, "labels", "audio_labels"], n=1, cutoff=0.4)
            hint = f"Did you mean `{close[0]}`? " if close else ""
            raise ValueError(
                f"The model has no input `{name}`. {hint}Its inputs are {', '.join(inputs)}, and `labels` of a head."
            )


def check_tensors(**inputs: torch.Tensor | None) -> None:
    """
    Check that inputs are torch tensors.

    Raises:
        TypeError: If one is not; the message names the argument.
    """
    for name, value in inputs.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(
                f"`{name}` is a {type(value).__name__}, but the model takes torch tensors. The processor makes them with"
                ' return_tensors="pt".'
            )


def check_inputs(
    config: PreTrainedConfig,
    pixel_values: torch.Tensor | None,
    input_features: torch.Tensor | None,
    modality_mask: torch.Tensor | None,
) -> None:
    """
    Check that the inputs fit `config.modalities` and each other, and that every sample has a modality.

    Raises:
        ValueError: If they do not; the message names the argument.
        TypeError: If they are no torch tensors.
    """
    check_tensors(pixel_values=pixel_values, input_features=input_features, modality_mask=modality_mask)
    given = {"video": pixel_values, "audio": input_features}
    if pixel_values is None and input_features is None:
        raise ValueError("Give `pixel_values` (video), `input_features` (audio) or both; got neither.")
    for modality, name in (("video", "pixel_values"), ("audio", "input_features")):
        if given[modality] is not None and modality not in config.modalities:
            raise ValueError(
                f"`{name}` was given, but this model has no {modality} stream (config.modalities = "
                f"{tuple(config.modalities)}). Omit it, or load a model with that stream."
            )
        if given[modality] is not None and not given[modality].is_floating_point():
            raise ValueError(
                f"`{name}` holds {given[modality].dtype} values, but the model needs normalised floats. Prepare clips with the "
                "model's own processor."
            )
    if pixel_values is not None and input_features is not None and pixel_values.shape[0] != input_features.shape[0]:
        raise ValueError(
            f"`pixel_values` holds {pixel_values.shape[0]} samples, `input_features` {input_features.shape[0]}; "
            "both must hold the same clips."
        )
    if modality_mask is None:
        return
    batch = (input_features if pixel_values is None else pixel_values).shape[0]
    if tuple(modality_mask.shape) != (batch, 2):
        raise ValueError(
            f"`modality_mask` must be bool [batch, 2] = [{batch}, 2] (columns video, audio), got "
            f"{tuple(modality_mask.shape)}."
        )
    # Reading values synchronises with the GPU and breaks a graph. There the checks of processor and collator must suffice.
    if modality_mask.device.type == "cpu" and not torch.compiler.is_compiling():
        usable = modality_mask.bool() & torch.tensor([pixel_values is not None, input_features is not None])
        empty = (~usable.any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"Samples {empty} have neither video nor audio in `modality_mask`. Remove them from the batch."
            )


def check_frames(config: PreTrainedConfig, pixel_values: torch.Tensor) -> None:
    """
    Check that frames are [B, num_frames, num_channels, height, width], with the sizes of the config.

    Raises:
        ValueError: If they are not.
    """
    expected = (config.num_frames, config.num_channels, *config.image_hw)
    if tuple(pixel_values.shape[1:]) != expected:
        raise ValueError(
            f"`pixel_values` must be [batch, num_frames, channels, height, width] = [B, {', '.join(map(str, expected))}] "
            f"for this model, got {tuple(pixel_values.shape)}. Prepare clips with the model's own processor, or load "
            "the model with matching `num_frames` and `image_size`."
        )


def spectrogram_planes(config: PreTrainedConfig, input_features: torch.Tensor) -> torch.Tensor:
    """
    Spectrogram [B, time, mel], or [B, C, time, mel] with a plane for each of `num_audio_channels` -> [B, 1 or C, time, mel].

    Raises:
        ValueError: If its axes are not those that the config states.
    """
    shape, expected = tuple(input_features.shape), (config.spectrogram_length, config.num_mel_bins)
    if shape[1:] == expected:
        return input_features.unsqueeze(1)
    if shape[1:] == (config.num_audio_channels, *expected):
        return input_features
    raise ValueError(
        "`input_features` must be [batch, time, mel] = "
        f"[B, {expected[0]}, {expected[1]}] for this model (or one such plane for each of the "
        f"{config.num_audio_channels} channels), got {shape}. Prepare audio with the model's own processor, or load "
        "the model with a matching `spectrogram_length` and `num_mel_bins`."
    )


def modality_presence(
    pixel_values: torch.Tensor | None, input_features: torch.Tensor | None, modality_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """bool [B, 2] (video, audio), or None unless both modalities and a mask are given."""
    if modality_mask is None or pixel_values is None or input_features is None:
        return None
    return modality_mask.bool()


def zero_missing(values: torch.Tensor | None, present: torch.Tensor) -> torch.Tensor | None:
    """
    `values` with zeros in the rows that are not `present`.

    Filler can hold any values, even NaN, which would reach weight gradients even if the output is not used.
    """
    if values is None:
        return None
    return torch.where(present.view(-1, *[1] * (values.dim() - 1)), values, 0.0)


def has_modality(presence: torch.Tensor, modality: str) -> torch.Tensor:
    """presence bool [B, 2] (video, audio) -> [B, 1, 1] for one modality."""
    return presence[:, 0 if modality == "video" else 1][:, None, None]


def average_streams(
    video: torch.Tensor | None, audio: torch.Tensor | None, presence: torch.Tensor | None
) -> torch.Tensor:
    """Mean over the modalities present in each sample."""
    if video is None or audio is None:
        return audio if video is None else video
    mean = (video + audio) / 2
    if presence is None:
        return mean
    shape = (-1, *[1] * (mean.dim() - 1))
    has_video, has_audio = presence[:, 0].view(shape), presence[:, 1].view(shape)
    return torch.where(has_video & has_audio, mean, torch.where(has_video, video, audio))


class StreamClassifier:
    """
    Mixin with the head that both streams share. The model has `pre_logits` (or None), `classifier` and `config`.
    """

    def _head(self, features: torch.Tensor) -> torch.Tensor:
        if self.pre_logits is not None:
            features = torch.tanh(self.pre_logits(features))
        return self.classifier(features)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of each sample [B]. logits are [B, C], or [B, S, C] with S segments, over which the loss is averaged."""
        config = self.config
        problem_type = infer_problem_type(config.problem_type, config.num_labels, labels)
        smoothing = config.label_smoothing if self.training else 0.0
        segments = logits.shape[1:-1]
        if segments:
            if labels.shape[: 1 + len(segments)] != logits.shape[:-1]:
                raise ValueError(
                    f"`labels` must start with [batch, segments] = {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}."
                )
            logits, labels = logits.flatten(0, -2), labels.flatten(0, len(segments))
        losses = classification_loss(logits, labels, problem_type, smoothing, config.class_splits)
        return losses.unflatten(0, (-1, *segments)).flatten(1).mean(dim=1) if segments else losses

    def _stream_loss(
        self,
        logits: dict[str, torch.Tensor | None],
        labels: torch.Tensor | None,
        audio_labels: torch.Tensor | None,
        presence: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """
        Mean over the batch. `logits` has the keys "clip", "video" and "audio"; the last two are None for readouts without
        stream logits.

        In training, the losses of the streams' logits are averaged. In evaluation, the loss is that of the clip's logits.
        """
        check_tensors(labels=labels, audio_labels=audio_labels)
        has_stream_logits = logits["video"] is not None or logits["audio"] is not None
        if audio_labels is not None and not (has_stream_logits and self.training):
            raise ValueError(
                f"`audio_labels` needs a readout with logits for each stream (got {self.config.readout!r}) and training mode. "
                "Omit `audio_labels`, or change the readout."
            )
        if labels is None:
            return None
        if not (self.training and has_stream_logits):
            return self._loss(logits["clip"], labels).mean()
        audio_labels = labels if audio_labels is None else audio_labels
        video_loss = None if logits["video"] is None else self._loss(logits["video"], labels)
        audio_loss = None if logits["audio"] is None else self._loss(logits["audio"], audio_labels)
        return average_streams(video_loss, audio_loss, presence).mean()
