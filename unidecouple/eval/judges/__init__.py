"""Judges say what a generated image shows: boxes with class and confidence, and the colour inside a box.

GenEval's own pair is a Mask2Former detector and a CLIP colour classifier; any detector fits behind ``Judge``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; y grows downwards."""


@dataclass(frozen=True)
class Detection:
    """An object found in an image; ``confidence`` lies in [0, 1]."""

    name: str
    confidence: float
    box: Box


class Judge(Protocol):
    """A detector and a colour classifier under one name, which every score prints."""

    name: str

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """The detections of each image (uint8 (H, W, 3)), in any order and at any confidence."""
        ...

    def color(self, image: np.ndarray, box: Box) -> str:
        """Name of the colour of the object in ``box`` of ``image``."""
        ...
