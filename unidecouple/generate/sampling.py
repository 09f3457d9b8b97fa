"""How a token is chosen: the one set of sampling settings of commands, requests, scores and both generators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from unidecouple import bounds

if TYPE_CHECKING:
    from transformers import GenerationConfig

MAX_GUIDANCE_SCALE: Final = 100.0
"""Above it float32 logits may overflow to infinity minus infinity; published scales are 1 to 20."""
MAX_TEMPERATURE: Final = 100.0
MAX_TOP_K: Final = 1 << 20

_MIN_TEMPERATURE: Final = 1e-6
"""Logits divided by less overflow; below it sampling is greedy, which is the limit."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a token is chosen from logits; the values are checked here and nowhere else.

    Attributes:
        guidance_scale: w of ``uncond + w (cond - uncond)`` (classifier-free guidance of images); 1 is none; at most 100.
        temperature: 0 is greedy; at most 100.
        top_k: sample among the k likeliest tokens; 0 is all; at most 2^20.
        top_p: sample among the likeliest tokens that hold this probability together (arXiv 1904.09751); 1 is all.

    Raises:
        ValueError: a value is out of its range, NaN, infinite or no number.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        bounds.between(0, MAX_GUIDANCE_SCALE, self, "guidance_scale")
        bounds.between(0, MAX_TEMPERATURE, self, "temperature")
        bounds.whole(0, MAX_TOP_K, self, "top_k")
        bounds.above(0, self, "top_p", most=1)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: at temperature 0, and so near it that float32 logits would overflow."""
        return self.temperature < _MIN_TEMPERATURE

    def override(self, **given: float | None) -> SamplingParams:
        """Return these settings with the values of ``given`` that are not None in place of their own.

        Raises:
            ValueError: a value is out of its range.
        """
        values = {name: value for name, value in given.items() if value is not None}
        return replace(self, **values)  # type: ignore[arg-type]


GREEDY: Final = SamplingParams(temperature=0.0)

IMAGE_SAMPLING: Final = SamplingParams(guidance_scale=5.0)
"""Of Janus-Pro's published scores (arXiv 2501.17811) and code."""


def image_sampling(config: GenerationConfig | None) -> SamplingParams:
    """Return a checkpoint's settings for images: those of its generation_config.json, else ``IMAGE_SAMPLING``.

    Temperature, top-k and top-p count only beside ``do_sample: true``, as in transformers. The file does not tell settings for
    answers from settings for images, so answers never read it.

    Raises:
        ValueError: a value is out of its range.
    """
    if config is None:
        return IMAGE_SAMPLING
    names = ("guidance_scale", "temperature", "top_k", "top_p") if config.do_sample else ("guidance_scale",)
    return IMAGE_SAMPLING.override(**{name: getattr(config, name) for name in names})
