"""MBT: Attention Bottlenecks for Multimodal Fusion."""
