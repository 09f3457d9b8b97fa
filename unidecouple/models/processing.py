"""Processors: transformers' own, plus what sequences are built from: a system prompt, and how an image stands in a sequence."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image
from transformers import AutoProcessor, JanusProcessor, ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from unidecouple.models.configuration import UniJanusConfig

JANUS_SYSTEM_PROMPT: str = DEFAULT_SYSTEM_PROMPT
"""Janus's and Janus-Pro's own, ending in an empty line."""

SHORT_SIDES: Final = ("round", "floor")


@dataclass(frozen=True)
class ImageFormat:
    """How an image stands in a sequence; texts of special tokens.

    Attributes:
        opening, closing: before and after it; drawing starts after ``opening``.
        row_end: after each row of an image's tokens; "" where rows follow one another.
        rows: of tokens.
        columns: tokens a row, without ``row_end``.
        reserved: texts that words must not spell out, besides the tokenizer's special tokens.
    """

    opening: str
    closing: str
    row_end: str
    rows: int
    columns: int
    reserved: tuple[str, ...] = ()


class UnifiedProcessor(ProcessorMixin, metaclass=ABCMeta):
    """The processor of a base family, as data and generation use it.

    Attributes:
        system_prompt: stands before chats that are answered with text.
        system_turn: what stands before and after a system turn's text, in a chat that has one; None: a space after it.
        num_image_tokens: of an image to be drawn.
        bare_prompts: whether a prompt for an image stands without roles, and nothing stands in place of a hidden one; else it
            is a user's turn, hidden by padding of its length.
        source_tokens: whether the image tokens of an image follow its placeholders in a prompt for an image, as in Janus-4o; else
            the placeholders stand for them already, as in Emu3.
    """

    system_prompt: str
    system_turn: tuple[str, str] | None = None
    num_image_tokens: int
    bare_prompts = False
    source_tokens = True

    @property
    def text_prefix(self) -> str:
        """What stands before a chat that is answered with text: the system prompt, and a space unless it ends in one."""
        if self.system_turn is not None:
            return self.system_prompt.join(self.system_turn) if self.system_prompt else ""
        return self.system_prompt if self.system_prompt[-1:].isspace() or not self.system_prompt else f"{self.system_prompt} "

    @property
    @abstractmethod
    def image_format(self) -> ImageFormat:
        """How an image stands in a sequence."""

    @property
    @abstractmethod
    def picture_size(self) -> int:
        """Pixels a side of every image."""

    @abstractmethod
    def understood(self, picture: Image.Image) -> np.ndarray:
        """Return an image to be understood, uint8 (size, size, 3), padded to a square."""


class UniJanusProcessor(UnifiedProcessor, JanusProcessor):
    """As ``JanusProcessor``; text generation is prefixed by ``system_prompt``, image generation is not.

    ``short_side`` is how the resized short side of an image becomes a whole number of pixels: "floor" as deepseek-ai/Janus does
    (``image_processing_vlm.py``, ``resize``), or "round" as transformers' ``JanusImageProcessor`` does.

    Janus does the same with a fixed sentence of 30 words, ``JANUS_SYSTEM_PROMPT``. The prefix is what lets a causal router
    know the task from the first token after BOS, before any image or image token is seen.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        system_prompt: str = "",
        num_image_tokens: int = 576,
        short_side: str = "round",
        system_turn: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if short_side not in SHORT_SIDES:
            raise ValueError(f"short_side={short_side!r} is not one of {', '.join(SHORT_SIDES)}")
        self.system_prompt, self.short_side = system_prompt, short_side
        if system_turn is not None:  # else no key of processor_config.json
            before, after = system_turn
            self.system_turn = (before, after)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, num_image_tokens=num_image_tokens, **kwargs)

    @classmethod
    def of_janus(cls, processor: JanusProcessor) -> UniJanusProcessor:
        """Our processor with the parts of transformers' own; it makes the same ids and pixels."""
        if isinstance(processor, cls):
            return processor
        return cls(
            processor.image_processor,
            processor.tokenizer,
            chat_template=processor.chat_template,
            system_prompt=JANUS_SYSTEM_PROMPT if processor.use_default_system_prompt else "",
            num_image_tokens=processor.num_image_tokens,
        )

    @property
    def image_format(self) -> ImageFormat:
        """One run of tokens between two marks."""
        return ImageFormat(self.tokenizer.boi_token, self.tokenizer.eoi_token, "", 1, self.num_image_tokens)

    @property
    def picture_size(self) -> int:
        """See ``UnifiedProcessor``."""
        return int(self.image_processor.size["height"])

    def understood(self, picture: Image.Image) -> np.ndarray:
        """See ``UnifiedProcessor``: bicubic, antialiased, 8-bit; padded with the mean colour, half each side."""
        images, size, longest = self.image_processor, self.picture_size, max(picture.size)
        if self.short_side == "floor":
            sides = [int(side / longest * size) for side in picture.size]
        else:
            sides = [round(side * (size / longest)) for side in picture.size]
        width, height = (max(side, images.min_size) for side in sides)
        resized = picture.convert("RGB").resize((width, height), Image.Resampling(images.resample))
        square = Image.new("RGB", (max(width, height),) * 2, tuple(images.background_color))
        square.paste(resized, ((square.width - width) // 2, (square.height - height) // 2))
        return np.array(square)

    def __call__(self, text: Any = None, images: Any = None, generation_mode: str = "text", **kwargs: Any) -> BatchFeature:
        """Token ids, mask and pixels of chats rendered by the template; see ``JanusProcessor.__call__``."""
        if generation_mode not in ("text", "image"):
            raise ValueError(f"generation_mode={generation_mode!r} is not one of text, image")
        texts = [text] if isinstance(text, str) else list(text)
        if generation_mode == "text":
            texts = [self.text_prefix + sample for sample in texts]
        if images is not None and self.short_side != "round":  # squares pass transformers' own resize as they are
            images = [Image.fromarray(self.understood(to_pil_image(image))) for image in make_flat_list_of_images(images)]
        return super().__call__(text=texts, images=images, generation_mode=generation_mode, **kwargs)


AutoProcessor.register(UniJanusConfig, UniJanusProcessor)
