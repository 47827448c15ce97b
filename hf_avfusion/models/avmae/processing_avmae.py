"""The AV-MAE processor: converts a video file, or frames and a waveform, to model inputs, by default as published."""

from ...media.windows import WindowPolicy
from ...processing.processing_avfusion import AVFusionProcessor, AVFusionProcessorKwargs


class AVMAEProcessorKwargs(AVFusionProcessorKwargs, total=False):
    """Keyword arguments of a call; AV-MAE adds none."""


class AVMAEProcessor(AVFusionProcessor):
    """Prepares clips for AV-MAE; the defaults are those of pretraining on VGGSound (scenic, projects/av_mae).

    16 RGB frames at stride 4 of 25 fps, short side 256, centre crop 224, x * 2/255 - 1; 8 s of 16 kHz mono as 800 x 128
    log-mels, not normalised. Short clips wrap to their start. Other published settings:

        AVMAEProcessor(audio_seconds=10.0)                       # pretraining on AudioSet: 1000 x 128 log-mels
        AVMAEProcessor(num_frames=32, frame_rate=12.5)           # fine-tuning: 32 frames at stride 2

    Fine-tuning on AudioSet also normalises, (x - 1.102) / 2.762: pass a feature extractor with that `mean` and `std`. The
    log-mel front end is a reconstruction (see feature_extraction_avfusion).

        processor = AVMAEProcessor()
        inputs = processor(videos="clip.mp4", return_tensors="pt")
        inputs["pixel_values"].shape, inputs["input_features"].shape    # [1, 16, 3, 224, 224], [1, 800, 128]

    Takes the arguments of `AVFusionProcessor`.
    """

    valid_processor_kwargs = AVMAEProcessorKwargs
    default_window = WindowPolicy(num_frames=16, frame_rate=6.25)
    audio_preset = "avmae"


__all__ = ["AVMAEProcessor", "AVMAEProcessorKwargs"]
