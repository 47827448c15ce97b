"""
The LAVISH processor: converts a video file, or frames and a waveform, to the segments of a clip, and questions to word indices, as
published for each task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature

from ...media.modalities import CLIP_AXES, MODEL_INPUTS
from ...media.reader import Clip, MediaError
from ...media.windows import WindowPolicy
from ...processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from ...processing.processing_avfusion import AVFusionProcessor, AVFusionProcessorKwargs
from ...processing.question_words import MAX_QUESTION_LENGTH, QuestionWords
from ...processing.vggish_examples import seconds_of_examples, vggish_examples, vggish_front_end
from ...processing.video_processing_avfusion import AVFusionVideoProcessor

# Name -> segments, seconds of audio in each, side of the frames (pixels). The front end of the audio has the same name. Source:
# the data loaders of GenjiB/LAVISH, except what a comment calls CHOICE.
PRESETS: dict[str, tuple[int, float, int]] = {
    "lavish_ave_swin": (10, 1.0, 192),
    "lavish_ave_vit": (10, 1.0, 224),
    # 1 s is that of the README's command; the code's default is 1.95 s. The published loader reads stored frames of 224 x 224,
    # which AVSBench took from videos (`AVS_FRAME`) and resized bilinearly. Here they are resized as for AVE (CHOICE). The model
    # resizes them to 192. A clip of at most 1.1 s, which the original cuts at negative positions, is heard whole (CHOICE).
    "lavish_avs": (5, 1.0, 224),
    "lavish_avqa": (10, 1.95, 192),
}
# Place of a segment's frame in the segment, as a share of it: the last of 16 frames of each second (OpenNLPLab/AVSBench,
# preprocess_scripts/preprocess_s4.py).
AVS_FRAME = 15 / 16
SEGMENT_MARGIN = 0.1  # s; published, the same in all loaders
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


class LavishProcessorKwargs(AVFusionProcessorKwargs, total=False):
    """Keyword arguments of a call; LAVISH adds none."""


class LavishProcessor(AVFusionProcessor):
    """Prepares clips for LAVISH; the defaults are those of AVE with Swin-V2 (GenjiB/LAVISH).

    Ten frames from the first to the last of the clip, stretched to 192 x 192 (bicubic, no antialiasing), ImageNet mean and
    deviation. Ten pieces of 1 s of the left audio channel at 16 kHz, spread from the start to 0.1 s before the end, as 192 x 192
    log-mels each. Training and evaluation take the same. Other published settings are presets:

        LavishProcessor.from_preset("lavish_ave_vit")     # frames of 224 x 224, log-mels of 102 x 128
        LavishProcessor.from_preset("lavish_avs")         # AVSBench-S4: 5 segments of 1 s
        LavishProcessor.from_preset("lavish_avqa")        # MUSIC-AVQA: 10 segments of 1.95 s

        processor = LavishProcessor()
        inputs = processor(videos="clip.mp4", return_tensors="pt")
        inputs["pixel_values"].shape, inputs["input_features"].shape    # [1, 10, 3, 192, 192], [1, 10, 192, 192]

    A clip passed as arrays is one frame per segment, uint8 [10, H, W, 3], and the waveform of the whole clip, which is cut into
    the same segments. With `num_segments=None` a clip has one window as in the other processors, and `input_features` [B, time,
    mel], for a backbone that takes clips (VideoMAE).

    With a vocabulary it also takes questions about clips, as `text`:

        processor = LavishProcessor.from_preset("lavish_avqa", vocab=words)
        inputs = processor(videos="clip.mp4", text="How many instruments are sounding?", return_tensors="pt")
        inputs["input_ids"].shape                                       # [1, 14]
        processor(videos="clip.mp4", text=["Where is the piano?", "Is it loud?"])        # two questions: [1, 2, 14]

    Takes the arguments of `AVFusionProcessor`. `window` has `num_segments`, `segment_seconds`, `segment_margin`, and `num_frames`,
    the frames of each segment (1). Further arguments, all saved with the processor:

    Args:
        vggish (bool): also make `vggish_features`, float32 [B, segments, 96, 64], for a model with `vggish=True`: the first 0.975 s
            of each segment through the published front end of VGGish, one example. It takes the mono waveform of `channel_mix`,
            resampled to 16 kHz if the feature extractor has a higher rate (`media.resampling`).
        vocab (list of str, *optional*): words in the order of their indices, the padding "<pad>" first. None: no questions.
        max_question_length (int, *optional*): length in words to which questions are padded; with a vocabulary by default 14, that
            of MUSIC-AVQA.

    Raises:
        ValueError: a wrong vocabulary, or `vggish` with segments that do not hold one example; in a call, `num_views` other than 1
            with segments, arrays with another number of frames, or a waveform that is too short for VGGish; see also
            `AVFusionProcessor`.
        MediaError: a file whose audio is too short for VGGish, less than 0.975 s.
    """

    valid_processor_kwargs = LavishProcessorKwargs
    default_window = WindowPolicy(num_frames=1, num_segments=10, segment_seconds=1.0, segment_margin=SEGMENT_MARGIN)
    audio_preset = "lavish_ave_swin"
    takes_segments = True

    def __init__(
        self,
        video_processor=None,
        feature_extractor=None,
        window=None,
        channel_mix="left",
        vocab=None,
        max_question_length=None,
        vggish=False,
        **kwargs,
    ):
        if video_processor is None:
            video_processor = frame_processor(PRESETS[self.audio_preset][2])
        if feature_extractor is None:
            feature_extractor = AVFusionFeatureExtractor.from_preset(self.audio_preset)
        super().__init__(video_processor, feature_extractor, window=window, channel_mix=channel_mix, **kwargs)
        if vocab is None and max_question_length is not None:
            raise ValueError(
                f"max_question_length={max_question_length} is for questions, but this processor has no vocabulary: pass vocab= "
                "too, or leave it out"
            )
        length = MAX_QUESTION_LENGTH if max_question_length is None else max_question_length
        self._words = None if vocab is None else QuestionWords(vocab, length)
        self.vocab = None if vocab is None else self._words.vocab
        self.max_question_length = None if vocab is None else length
        self.vggish = vggish
        self._check_vggish()

    def _check_vggish(self) -> None:
        """Raises ValueError for segments that do not hold exactly one example of VGGish, and for too low a rate."""
        if not isinstance(self.vggish, bool):
            raise ValueError(f"vggish must be True or False, got {self.vggish!r}")
        policy, rate, needed = (
            self.window_policy,
            self.feature_extractor.sampling_rate,
            vggish_front_end().sampling_rate,
        )
        if not self.vggish:
            return
        shortest, too_long = seconds_of_examples(1), seconds_of_examples(2)
        if policy.num_segments is None:
            raise ValueError(
                "vggish=True makes one example of each segment, but num_segments is None: set num_segments, or leave vggish out"
            )
        if policy.segment_seconds < shortest or policy.longest_audio >= too_long:
            raise ValueError(
                f"segment_seconds={policy.segment_seconds} and segment_margin={policy.segment_margin}: with vggish=True a segment "
                f"holds one example, so segment_seconds must be at least {shortest} and both together less than {too_long}: "
                "change them, or leave vggish out"
            )
        if rate < needed:
            raise ValueError(
                f"the feature extractor has sampling_rate={rate} Hz, but VGGish needs {needed} Hz: pass one of at least that rate, "
                "or leave vggish out"
            )

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs: Any):
        for name in (
            "vocab",
            "max_question_length",
            "vggish",
        ):  # not fields of the video processor and the feature extractor
            kwargs.pop(name, None)
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "LavishProcessor":
        """The published processor of a task: "lavish_ave_swin", "lavish_ave_vit", "lavish_avs" or "lavish_avqa".

        `overrides` are arguments of the constructor, such as `num_segments=5` or `feature_extractor=...`.

        Raises:
            ValueError: an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"name must be a preset, one of {', '.join(PRESETS)}, got {name!r}")
        segments, seconds, side = PRESETS[name]
        overrides.setdefault("video_processor", frame_processor(side))
        overrides.setdefault("feature_extractor", AVFusionFeatureExtractor.from_preset(name))
        window = overrides.pop("window", None)
        given = window.to_dict() if isinstance(window, WindowPolicy) else dict(window or {})
        fields = {"num_segments": segments, "segment_seconds": seconds, "segment_margin": SEGMENT_MARGIN, **given}
        if name == "lavish_avs":
            fields.setdefault("segment_frame", AVS_FRAME)
        return cls(window=fields, **overrides)

    def __call__(
        self,
        videos: Any = None,
        audio: Any = None,
        generator: torch.Generator | None = None,
        *,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares clips as `AVFusionProcessor` does, and questions about them.

        Args:
            text: one question for all clips; a list with one question per clip; for a single clip, a list of questions about it;
                or a list with a list of questions per clip, as many for each.

        Returns:
            Also `input_ids`, int64 [B, max_question_length], or [B, Q, max_question_length] for Q questions about each clip.

        Raises:
            TypeError: a question that is not a text.
            ValueError: a processor without a vocabulary, a question that is empty, too long or has an unknown word, or another
                number of questions than clips; see also `AVFusionProcessor`.
        """
        if text is None:
            return super().__call__(videos, audio, generator, **kwargs)
        encoded = self.encode_questions(text)  # wrong questions fail before a clip is decoded
        inputs = super().__call__(videos, audio, generator, **kwargs)
        values = next(inputs[name] for name in MODEL_INPUTS.values() if name in inputs)
        ids = _for_each_clip(text, encoded, len(values))
        tensor_type = "pt" if torch.is_tensor(values) else "np" if isinstance(values, np.ndarray) else None
        inputs["input_ids"] = BatchFeature({"ids": ids if tensor_type else ids.tolist()}, tensor_type=tensor_type)[
            "ids"
        ]
        return inputs

    def check_windows(self, clips: Sequence[Clip], views: int | None = None) -> None:
        """As in the base class. With `vggish`, also raises MediaError for a clip whose audio is shorter than an example."""
        super().check_windows(clips, views)
        for clip in clips if self.vggish else ():
            seconds = None if clip.waveform is None else clip.waveform.shape[-1] / clip.sampling_rate
            if seconds is not None and seconds < seconds_of_examples(1):
                raise MediaError(clip.info.name, f"has {_too_short(seconds)}")

    def _audio_inputs(
        self, waveforms: list[Any], part_tensors: str | None, audio_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """As in the base class, with the examples of VGGish. The waveforms have the rate of the feature extractor."""
        rate = self.feature_extractor.sampling_rate
        shortest = min(map(len, waveforms)) / rate
        if self.vggish and shortest < seconds_of_examples(1):  # of arrays: `check_windows` has seen files
            raise ValueError(f"audio holds {_too_short(shortest)}")
        inputs = super()._audio_inputs(waveforms, part_tensors, audio_kwargs)
        if self.vggish:
            examples = [vggish_examples(waveform, rate, do_resample=True)[0] for waveform in waveforms]
            inputs["vggish_features"] = torch.stack(examples) if part_tensors else [each.numpy() for each in examples]
        return inputs

    def encode_questions(self, text: str | Sequence[str] | Sequence[Sequence[str]]) -> np.ndarray:
        """Word indices of questions, int64 [L] for one, [Q, L] for a list, or [B, Q, L] for lists of as many. L is the length.

        Raises:
            TypeError: a question that is not a text.
            ValueError: a processor without a vocabulary, lists of different lengths, none, or one that is empty, too long or has an
                unknown word.
        """
        if self._words is None:
            raise ValueError(
                "this processor has no vocabulary, so it takes no questions: leave `text` out, or pass vocab=, the words that the "
                "model knows"
            )
        if isinstance(text, str) or not any(isinstance(each, (list, tuple)) for each in text):
            return self._words(text)
        lengths = {1 if isinstance(each, str) else len(each) for each in text}
        if len(lengths) > 1 or any(isinstance(each, str) for each in text):
            raise ValueError(
                f"text holds lists of {', '.join(map(str, sorted(lengths)))} questions: give as many about each clip, or prepare "
                "the clips one by one"
            )
        return np.stack([self._words(each) for each in text])

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs of a model that the processor makes."""
        more = {"vggish_features": self.vggish, "input_ids": self._words is not None}
        return [*super().model_input_names, *(name for name, made in more.items() if made)]

    def post_process_masks(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Masks of what sounds, at the size of the clips' own frames.

        Args:
            outputs: of `LavishForSegmentation`, or its `logits`, float [B, S, H, W].
            target_sizes: height and width of each clip's frames in pixels. Default: masks keep their size.

        Returns:
            For each clip bool [S, height, width]: the pixels above 0, after a bilinear resize of the logits to the size that the
            frames had before they were stretched.

        Raises:
            ValueError: another number of sizes than clips, or a processor that crops frames, so that masks do not cover them.
        """
        logits = getattr(outputs, "logits", outputs)
        if logits.dim() != 4:
            raise ValueError(f"masks need logits [clips, segments, height, width], got {tuple(logits.shape)}")
        if target_sizes is None:
            return list(logits > 0)
        if len(target_sizes) != len(logits):
            raise ValueError(f"target_sizes holds {len(target_sizes)} sizes for {len(logits)} clips: pass one for each")
        video = self.video_processor
        if video.do_center_crop and dict(video.crop_size) != dict(video.size):
            raise ValueError(
                f"the processor crops frames to {dict(video.crop_size)}, so the masks do not cover the frames of the file: "
                "leave target_sizes out"
            )
        sizes = [tuple(int(side) for side in size) for size in target_sizes]
        resize = torch.nn.functional.interpolate
        # Segment by segment, since the floats of a clip at the size of its file may be large.
        return [
            torch.stack([resize(each[None, None].float(), size, mode="bilinear")[0, 0] > 0 for each in clip])
            for clip, size in zip(logits, sizes)
        ]

    @classmethod
    def frames_of_size(cls, height: int, width: int) -> dict[str, Any]:
        """The published frames: divided by 255, stretched to this size (bicubic, no antialiasing), ImageNet mean and deviation."""
        size = {"height": height, "width": width}
        return {
            "size": size,
            "crop_size": size,  # not used; equal to the size, since sizes of models are taken from it
            "do_center_crop": False,
            "resample": 3,  # bicubic
            "antialias": False,
            "truncate": False,
            "resize_as_float": True,
            **IMAGENET,
        }

    @property
    def windows_per_view(self) -> int:
        """Segments of a clip; 1 without segments."""
        return self.window["num_segments"] or 1

    @property
    def input_axes(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes of one view of each input, as `LavishTwoStreamConfig.input_axes`."""
        segments = () if self.window["num_segments"] is None else ("segments",)
        axes = {"pixel_values": CLIP_AXES["pixel_values"], "input_features": (*segments, *CLIP_AXES["input_features"])}
        return axes | ({"vggish_features": axes["input_features"]} if self.vggish else {})


def _too_short(seconds: float) -> str:
    return (
        f"{seconds:.3f} s of audio, but VGGish needs {seconds_of_examples(1)} s: leave the clip out, or use a model and a "
        "processor without VGGish"
    )


def _for_each_clip(text: Any, encoded: np.ndarray, clips: int) -> np.ndarray:
    """Encoded questions as `input_ids` of that many clips."""
    if encoded.ndim == 1:
        return np.repeat(encoded[None], clips, axis=0)
    if len(encoded) == clips:
        return encoded
    if clips == 1 and encoded.ndim == 2:
        return encoded[None]
    raise ValueError(
        f"text holds {len(encoded)} {'questions' if encoded.ndim == 2 else 'lists of questions'} for {clips} clips: give one for "
        "each clip (with num_views, for each view), or a list of lists for several questions about each"
    )


def frame_processor(side: int) -> AVFusionVideoProcessor:
    """The published frames of side x side pixels, see `LavishProcessor.frames_of_size`."""
    return AVFusionVideoProcessor(**LavishProcessor.frames_of_size(side, side))


__all__ = ["LavishProcessor", "LavishProcessorKwargs"]
