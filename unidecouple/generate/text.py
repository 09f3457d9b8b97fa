"""Answers: greedy decoding of many questions at once, left-padded, with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from unidecouple.batch import Task
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.generate.padding import check_length, left_pad, positions
from unidecouple.models.base import UnifiedModel


@torch.no_grad()
def answer(
    model: UnifiedModel,
    builder: SequenceBuilder,
    pictures: Sequence[np.ndarray | Sequence[np.ndarray]] | None,
    questions: Sequence[str],
    max_new_tokens: int = 6,
    batch_size: int = 256,
    routing: str | None = None,
) -> list[str]:
    """Answer ``questions[i]`` about ``pictures[i]``, an image (uint8, H x W x 3) or several, greedily.

    Args:
        model: of any base family.
        builder: its sequence builder.
        pictures: of each question, before its words; None asks the same words with no image in the conversation.
        questions: plain text.
        max_new_tokens: longest answer.
        batch_size: questions decoded together; answers do not depend on it.
        routing: "label" forces the understanding experts; None leaves the choice to the model's configuration.

    Returns:
        One plain answer per question.

    Raises:
        ValueError: a question spells out a special token, or leaves the answer no room within the model's length.
    """
    answers: list[str] = []
    shown = [
        [one] if isinstance(one, np.ndarray) else list(one) for one in ([()] * len(questions) if pictures is None else pictures)
    ]
    for start in range(0, len(questions), batch_size):
        chunk = slice(start, start + batch_size)
        prompts = [builder.understanding_prompt(*one) for one in zip(questions[chunk], map(len, shown[chunk]), strict=True)]
        check_length(max(map(len, prompts)), max_new_tokens, model.config.text_config.max_position_embeddings)
        every = [picture for of_question in shown[chunk] for picture in of_question]
        pixel_values = pixels(every).to(model.device) if every else None
        tokens = _decode(model, builder, prompts, pixel_values, max_new_tokens, routing)
        rows = _until_eos(tokens, builder.tokenizer.eos_token_id)
        answers += [builder.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return answers


def _decode(
    model: UnifiedModel,
    builder: SequenceBuilder,
    prompts: list[list[int]],
    pixel_values: Tensor | None,
    max_new_tokens: int,
    routing: str | None,
) -> Tensor:
    """Greedy tokens (B, at most max_new_tokens)."""
    ids, mask = left_pad(prompts, builder.tokenizer.pad_token_id, model.device)
    task = torch.full((1, 1), int(Task.MMU), device=model.device)
    inputs = {"input_ids": ids, "pixel_values": pixel_values, "position_ids": positions(mask)}
    cache, chosen = DynamicCache(config=model.config.text_config), []
    alive = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    for _ in range(max_new_tokens):
        out = model(**inputs, attention_mask=mask, cache=cache, logits_to_keep=1, task_ids=task, routing=routing)
        token = out.logits[:, -1].argmax(-1)
        chosen.append(token)
        alive &= token != builder.tokenizer.eos_token_id
        if not alive.any():
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        inputs = {"input_ids": token.unsqueeze(1), "position_ids": positions(mask)[:, -1:]}
    return torch.stack(chosen, 1)


def _until_eos(tokens: Tensor, eos: int) -> list[list[int]]:
    rows = tokens.tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]
