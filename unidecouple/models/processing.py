"""The processor: transformers' Janus processor with one short system prompt for understanding, stored with the model."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, JanusProcessor
from transformers.feature_extraction_utils import BatchFeature

from unidecouple.models.configuration import UniJanusConfig


class UniJanusProcessor(JanusProcessor):
    """As ``JanusProcessor``; text generation is prefixed by ``system_prompt``, image generation is not.

    Janus does the same with a fixed sentence of 30 words. The prefix is what lets a causal router know the task from the
    first token after BOS, before any picture or image token is seen.
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

    def __call__(self, text: Any = None, images: Any = None, generation_mode: str = "text", **kwargs: Any) -> BatchFeature:
        """Token ids, mask and pixels of chats rendered by the template; see ``JanusProcessor.__call__``."""
        if generation_mode not in ("text", "image"):
            raise ValueError(f"generation_mode={generation_mode!r} is not one of text, image")
        texts = [text] if isinstance(text, str) else list(text)
        if generation_mode == "text" and self.system_prompt:
            texts = [f"{self.system_prompt} {sample}" for sample in texts]
        return super().__call__(text=texts, images=images, generation_mode=generation_mode, **kwargs)


AutoProcessor.register(UniJanusConfig, UniJanusProcessor)
