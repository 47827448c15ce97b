"""Names of the modalities and of the model inputs that carry them."""

MODALITIES = ("video", "audio")  # in the order of modality_mask's columns
MODEL_INPUTS = {"video": "pixel_values", "audio": "input_features"}

__all__ = ["MODALITIES", "MODEL_INPUTS"]
