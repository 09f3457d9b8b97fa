"""Emu3's processor with square images of one size, a system prompt, and chats whose answers end."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps
from transformers import AutoProcessor, Emu3Processor
from transformers.feature_extraction_utils import BatchFeature

from unidecouple.models.emu3 import CODE_NAME, ROW_END, UniEmu3Config
from unidecouple.models.processing import ImageFormat, UnifiedProcessor

EMU3_SYSTEM_PROMPT: Final = "You are a helpful assistant."

EMU3_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' if message['role'] != 'system' else '' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Chats as Emu3-Chat's template has them, but for an answer's end: EOS, not a space, so that the model can be taught to end."""

NEGATIVE_PROMPT: Final = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, "
    "normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""What Emu3-Gen's own script guides away from, at scale 3 and top-k 2048 (baaivision/Emu3, image_generation.py)."""


class UniEmu3Processor(UnifiedProcessor, Emu3Processor):
    """As ``Emu3Processor``, for images of ``image_size`` pixels a side; the same ids and pixels for such images.

    Prompts for images stand bare: BOS, prompt, ``<|image start|>H*W<|image token|>``, rows.
    """

    bare_prompts = True
    source_tokens = False

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        system_prompt: str = EMU3_SYSTEM_PROMPT,
        image_size: int = 720,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or EMU3_TEMPLATE, **kwargs)
        self.system_prompt, self.image_size = system_prompt, image_size
        self.downsample_ratio = image_processor.spatial_factor  # transformers has 8 here whatever the image processor says

    @classmethod
    def of_emu3(cls, processor: Emu3Processor, image_size: int) -> UniEmu3Processor:
        """Our processor with the parts of transformers' own."""
        if isinstance(processor, cls):
            return processor
        return cls(processor.image_processor, processor.tokenizer, image_size=image_size)

    def __call__(self, text: Any = None, images: Any = None, generation_mode: str = "text", **kwargs: Any) -> BatchFeature:
        """Token ids, mask and pixels of chats rendered by the template, or (``generation_mode="image"``) of bare prompts."""
        if generation_mode not in ("text", "image"):
            raise ValueError(f"generation_mode={generation_mode!r} is not one of text, image")
        texts = [text] if isinstance(text, str) else list(text)
        if generation_mode == "image":
            made = {"return_for_image_generation": True, "image_area": self.image_size**2}
            return super().__call__(text=texts, images=images, **made, **kwargs)
        return super().__call__(text=[self.text_prefix + sample for sample in texts], images=images, **kwargs)

    @property
    def num_image_tokens(self) -> int:  # type: ignore[override]  # a number that is given, in Janus
        """See ``UnifiedProcessor``."""
        return (self.image_size // self.downsample_ratio) ** 2

    @property
    def image_format(self) -> ImageFormat:
        """Its size in words, rows that end in EOL, EOF."""
        tokens, side = self.tokenizer, self.image_size // self.downsample_ratio
        opening = f"{tokens.boi_token}{side}*{side}{tokens.image_wrapper_token}"
        reserved = (ROW_END, CODE_NAME.partition("{")[0])
        return ImageFormat(opening, tokens.eof_token + tokens.eoi_token, ROW_END, side, side, reserved)

    @property
    def picture_size(self) -> int:
        """See ``UnifiedProcessor``."""
        return self.image_size

    def understood(self, picture: Image.Image) -> np.ndarray:
        """See ``UnifiedProcessor``. Ours: transformers' keeps the sides' ratio, and so makes grids of any shape."""
        method = Image.Resampling(self.image_processor.resample)
        return np.array(ImageOps.pad(picture, (self.image_size, self.image_size), method, color=(127, 127, 127)))


AutoProcessor.register(UniEmu3Config, UniEmu3Processor)
