"""Decouple understanding from generation in unified multimodal models (arXiv 2506.03591), and measure what it buys."""

__version__ = "0.2.0"
