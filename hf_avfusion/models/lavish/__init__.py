"""LAVISH: one frozen backbone for both modalities, with adapters between them."""
