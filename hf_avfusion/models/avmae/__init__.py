"""AV-MAE: Audiovisual Masked Autoencoders."""
