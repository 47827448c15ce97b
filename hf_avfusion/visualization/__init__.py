"""Figures: attention overlays, reconstructions, charts and histograms."""
