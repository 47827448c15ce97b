"""Names of the modalities, of the model inputs that carry them, and of the axes of these inputs."""

MODALITIES = ("video", "audio")  # in the order of modality_mask's columns
MODEL_INPUTS = {"video": "pixel_values", "audio": "input_features"}
# The modality of every input: that of a stream, and further ones that some models take beside it. Where a clip lacks the modality,
# all of its inputs are missing.
INPUT_MODALITIES = {"pixel_values": "video", "input_features": "audio", "vggish_features": "audio"}

# Axes of one view in the inputs of a model, after the batch axis. A config and a processor state their own as `input_axes`. Views
# (evaluation windows and crops of one clip) are another axis, right after the batch axis, and the model itself never sees them.
CLIP_AXES = {"pixel_values": ("frames", "channels", "height", "width"), "input_features": ("time", "mel")}
WINDOW_AXES = ("clips", "segments")  # axes of an input along which the windows of one view lie; they come first

__all__ = ["CLIP_AXES", "INPUT_MODALITIES", "MODALITIES", "MODEL_INPUTS", "WINDOW_AXES"]
