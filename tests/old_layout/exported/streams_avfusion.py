"""What models of two streams share: outputs, input checks, missing tracks, averages over streams, and per-stream heads."""

from dataclasses import dataclass
from functools import wraps

import torch
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from .losses_classification import classification_loss, infer_problem_type

# How a readout makes one feature of many tokens.
REDUCTIONS = {"mean": torch.mean, "max": torch.amax, "sum": torch.sum}


@dataclass
class AudioVisualModelOutput(ModelOutput):
    """
    Output of a base model. B batch, d `hidden_size`, n_v / n_a tokens per stream (CLS first where the model has one).

    Args:
        last_hidden_state (float [B, n_v + n_a, d]): Normalised tokens, streams in the order of `config.modalities`.
        video_hidden_state (float [B, n_v, d]): Normalised video tokens; absent without video.
        audio_hidden_state (float [B, n_a, d]): Normalised spectrogram tokens; absent without audio.
        hidden_states (tuple of `num_hidden_layers + 1` [B, n_v, d]): Video stream before and after each layer, not normalised.
        attentions (tuple of [B, heads, queries, keys]): Video stream; eager attention only. A layer that lets both streams'
            tokens attend to each other in one sequence has one map for both, found here; where a bottleneck takes part, its
            rows are last, and where a stream attends beyond itself the keys are [other stream, own tokens].
        audio_hidden_states, audio_attentions: The same of the spectrogram stream.
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
        video_logits, audio_logits (same shape): Scores of each stream alone, where the readout has them; `logits` is their
            mean over the modalities present. Rows of a missing modality are meaningless.
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
    """Let `output_hidden_states` and `output_attentions` switch the audio stream's recording as well."""

    @wraps(forward)
    def wrapper(self, *args, **kwargs):
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
            output = AudioVisualModelOutput(**{name: value for name, value in output.items() if name not in empty})
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return output if return_dict else output.to_tuple()

    return wrapper


def check_streams(
    config: PreTrainedConfig,
    pixel_values: torch.Tensor | None,
    input_features: torch.Tensor | None,
    modality_mask: torch.Tensor | None,
) -> None:
    """
    Refuse inputs that do not fit `config.modalities` or each other, and samples that have neither track.

    Raises:
        ValueError: Naming the argument.
    """
    given = {"video": pixel_values, "audio": input_features}
    if pixel_values is None and input_features is None:
        raise ValueError("Give `pixel_values` (video), `input_features` (audio) or both; got neither.")
    for modality, name in (("video", "pixel_values"), ("audio", "input_features")):
        if given[modality] is not None and modality not in config.modalities:
            raise ValueError(
                f"`{name}` was given, but this model has no {modality} stream (config.modalities = "
                f"{tuple(config.modalities)}). Leave it out, or load a model with that stream."
            )
    if pixel_values is not None and input_features is not None and pixel_values.shape[0] != input_features.shape[0]:
        raise ValueError(
            f"`pixel_values` holds {pixel_values.shape[0]} samples, `input_features` {input_features.shape[0]}; "
            "both must describe the same clips."
        )
    if modality_mask is None:
        return
    batch = (input_features if pixel_values is None else pixel_values).shape[0]
    if tuple(modality_mask.shape) != (batch, 2):
        raise ValueError(
            f"`modality_mask` must be bool [batch, 2] = [{batch}, 2] (columns video, audio), got "
            f"{tuple(modality_mask.shape)}."
        )
    # Reading values waits for a GPU and breaks a graph; there the processor's and the collator's check must do.
    if modality_mask.device.type == "cpu" and not torch.compiler.is_compiling():
        usable = modality_mask.bool() & torch.tensor([pixel_values is not None, input_features is not None])
        empty = (~usable.any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"Samples {empty} have neither video nor audio by `modality_mask`; leave them out.")


def presence_of(
    pixel_values: torch.Tensor | None, input_features: torch.Tensor | None, modality_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """bool [B, 2] (video, audio) where both modalities are given and a mask tells them apart, else None."""
    if modality_mask is None or pixel_values is None or input_features is None:
        return None
    return modality_mask.bool()


def blank_missing(values: torch.Tensor | None, present: torch.Tensor) -> torch.Tensor | None:
    """
    Zeros in the rows of `values` that are not `present`.

    Filler may be anything, NaN too, which would reach weight gradients even where the output is not used.
    """
    if values is None:
        return None
    return torch.where(present.view(-1, *[1] * (values.dim() - 1)), values, 0.0)


def has_modality(presence: torch.Tensor, modality: str) -> torch.Tensor:
    """presence bool [B, 2] (video, audio) -> [B, 1, 1] of one modality."""
    return presence[:, 0 if modality == "video" else 1][:, None, None]


def average_streams(
    video: torch.Tensor | None, audio: torch.Tensor | None, presence: torch.Tensor | None
) -> torch.Tensor:
    """Mean over the modalities present, sample by sample; the plain mean where both are."""
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
    The head that a model's streams share, as a mixin: `pre_logits` (or None), `classifier` and `config` are the model's.
    """

    def _head(self, features: torch.Tensor) -> torch.Tensor:
        if self.pre_logits is not None:
            features = torch.tanh(self.pre_logits(features))
        return self.classifier(features)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of every sample [B]; logits [B, C], or [B, S, C] for S segments, over which it is averaged."""
        config = self.config
        problem_type = infer_problem_type(config.problem_type, config.num_labels, labels)
        smoothing = config.label_smoothing if self.training else 0.0
        segments = logits.shape[1:-1]
        if segments:
            if labels.shape[: 1 + len(segments)] != logits.shape[:-1]:
                raise ValueError(
                    f"`labels` must begin with [batch, segments] = {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}."
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
        Mean over the batch. `logits` by "clip", "video" and "audio", the last two None for readouts without stream logits.

        In training each stream's logits have a loss of their own, which are averaged; in evaluation the clip's have one.
        """
        of_streams = logits["video"] is not None or logits["audio"] is not None
        if audio_labels is not None and not (of_streams and self.training):
            raise ValueError(
                f"`audio_labels` needs a readout with logits for each stream (here it is {self.config.readout!r}) and a model in "
                "training mode."
            )
        if labels is None:
            return None
        if not (self.training and of_streams):
            return self._loss(logits["clip"], labels).mean()
        audio_labels = labels if audio_labels is None else audio_labels
        video_loss = None if logits["video"] is None else self._loss(logits["video"], labels)
        audio_loss = None if logits["audio"] is None else self._loss(logits["audio"], audio_labels)
        return average_streams(video_loss, audio_loss, presence).mean()
