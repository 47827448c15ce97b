"""The MBT processor: converts a video file, or frames and a waveform, to model inputs, by default as published."""

from ...media.windows import WindowPolicy
from ...processing.processing_avfusion import AVFusionProcessor, AVFusionProcessorKwargs


class MBTProcessorKwargs(AVFusionProcessorKwargs, total=False):
    """Keyword arguments of a call; MBT adds none."""


class MBTProcessor(AVFusionProcessor):
    """Prepares clips for MBT; the defaults are the released configuration (scenic, projects/mbt, AudioSet).

    32 RGB frames at stride 2 of 25 fps, short side 256, centre crop 224, x * 2/255 - 1; 8 s of 16 kHz mono as 800 x 128
    log-mels, (x - 1.102) / 2.762. Evaluation takes the centred window, or 4 windows with `num_views=4`. Short clips wrap to
    their start. The paper's setting is 8 frames spread over 8 s:
    `MBTProcessor(num_frames=8, span=8.0)`. The log-mel front end is a reconstruction (see feature_extraction_avfusion).

        processor = MBTProcessor()
        inputs = processor(videos="clip.mp4", return_tensors="pt")
        inputs["pixel_values"].shape, inputs["input_features"].shape    # [1, 32, 3, 224, 224], [1, 800, 128]

    Takes the arguments of `AVFusionProcessor`.
    """

    valid_processor_kwargs = MBTProcessorKwargs
    default_window = WindowPolicy()
    audio_preset = "mbt"


__all__ = ["MBTProcessor", "MBTProcessorKwargs"]
