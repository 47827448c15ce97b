"""Parts that several architectures share: layers, outputs, losses, config checks."""
