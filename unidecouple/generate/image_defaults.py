"""How a checkpoint wants its pictures drawn, where whoever asks for them does not say."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import GenerationConfig

from unidecouple.generate.drawing import GUIDANCE
from unidecouple.generate.sampler import Choice, check_guidance


@dataclass(frozen=True)
class ImageDefaults:
    """A checkpoint's settings for pictures.

    Attributes:
        guidance_scale: see ``drawing.ImageJob``.
        choice: how image tokens are chosen.
    """

    guidance_scale: float = GUIDANCE
    choice: Choice = field(default_factory=Choice)

    def __post_init__(self) -> None:
        check_guidance(self)

    def filled(
        self, guidance_scale: float | None, temperature: float | None, top_k: int | None, top_p: float | None = None
    ) -> ImageDefaults:
        """These, but for what is given.

        Raises:
            ValueError: a value is out of its range.
        """
        mine = self.choice
        choice = Choice(
            mine.temperature if temperature is None else temperature,
            mine.top_k if top_k is None else top_k,
            mine.top_p if top_p is None else top_p,
        )
        return ImageDefaults(self.guidance_scale if guidance_scale is None else guidance_scale, choice)


def image_defaults(said: GenerationConfig | None) -> ImageDefaults:
    """What generation_config.json says of pictures, under transformers' names; where it is silent, guidance 5 and all tokens.

    A temperature and a choice among few count only beside ``do_sample: true``, as in transformers. What is meant for answers
    cannot be told from it, so answers never read it.

    Raises:
        ValueError: a value is out of its range.
    """
    if said is None:
        return ImageDefaults()
    sampled = (said.temperature, said.top_k, said.top_p) if said.do_sample else (None, None, None)
    return ImageDefaults().filled(said.guidance_scale, *sampled)
