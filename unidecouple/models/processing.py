"""The processor: transformers' Janus processor with one short system prompt for understanding, stored with the model."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, JanusProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from unidecouple.models.configuration import UniJanusConfig

JANUS_SYSTEM_PROMPT: str = DEFAULT_SYSTEM_PROMPT
"""Janus's and Janus-Pro's own, ending in an empty line."""


class UniJanusProcessor(JanusProcessor):
    """As ``JanusProcessor``; text generation is prefixed by ``system_prompt``, image generation is not.

    Janus does the same with a fixed sentence of 30 words, ``JANUS_SYSTEM_PROMPT``. The prefix is what lets a causal router
    know the task from the first token after BOS, before any picture or image token is seen.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        system_prompt: str = "",
        num_image_tokens: int = 576,
        **kwargs: Any,
    ) -> None:
        self.system_prompt = system_prompt
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
    def text_prefix(self) -> str:
        """What stands before a chat that is answered with text: the system prompt, and a space unless it ends in one."""
        return self.system_prompt if self.system_prompt[-1:].isspace() or not self.system_prompt else f"{self.system_prompt} "

    def __call__(self, text: Any = None, images: Any = None, generation_mode: str = "text", **kwargs: Any) -> BatchFeature:
        """Token ids, mask and pixels of chats rendered by the template; see ``JanusProcessor.__call__``."""
        if generation_mode not in ("text", "image"):
            raise ValueError(f"generation_mode={generation_mode!r} is not one of text, image")
        texts = [text] if isinstance(text, str) else list(text)
        if generation_mode == "text":
            texts = [self.text_prefix + sample for sample in texts]
        return super().__call__(text=texts, images=images, generation_mode=generation_mode, **kwargs)


AutoProcessor.register(UniJanusConfig, UniJanusProcessor)
