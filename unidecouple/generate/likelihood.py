"""Log-likelihoods of given answers, in one forward pass over many questions, and of a passage of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unidecouple.batch import Task
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.generate.padding import check_length, left_pad, positions
from unidecouple.models.base import UnifiedModel


@torch.no_grad()
def log_likelihood(
    model: UnifiedModel,
    builder: SequenceBuilder,
    pictures: Sequence[np.ndarray] | None,
    questions: Sequence[str],
    answers: Sequence[str],
) -> list[tuple[float, bool]]:
    """Log-likelihood of ``answers[i]`` to ``questions[i]`` about ``pictures[i]`` (uint8, H x W x 3), without the EOS.

    Args:
        model: of any base family.
        builder: its sequence builder.
        pictures: one per question; None asks with no image in the conversation.
        questions: plain text.
        answers: plain text.

    Returns:
        For each answer the sum of its tokens' log-probabilities in nats, and whether greedy decoding would begin with it.

    Raises:
        ValueError: an answer is empty, a text spells out a special token, or both are longer than the model takes.
    """
    answer_ids = [builder.answer_ids(answer) for answer in answers]
    if not all(answer_ids):
        raise ValueError(f"answer {answer_ids.index([])} is empty: it has no likelihood")
    prompts = [builder.understanding_prompt(question, 0 if pictures is None else 1) for question in questions]
    longest = model.config.text_config.max_position_embeddings
    for prompt, answer in zip(prompts, answer_ids, strict=True):
        check_length(len(prompt), len(answer), longest)
    rows = [prompt + answer for prompt, answer in zip(prompts, answer_ids, strict=True)]
    ids, mask = left_pad(rows, builder.tokenizer.pad_token_id, model.device)
    longest = max(map(len, answer_ids))
    logits = model(
        input_ids=ids,
        pixel_values=None if pictures is None else pixels(pictures).to(model.device),
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=False,
        logits_to_keep=longest + 1,
        task_ids=torch.full((1, 1), int(Task.MMU), device=model.device),
    ).logits[:, :-1]
    steps = torch.log_softmax(logits.float(), -1)
    targets = ids[:, -longest:]
    mine = torch.arange(longest, device=ids.device) >= torch.tensor(
        [[longest - len(answer)] for answer in answer_ids], device=ids.device
    )
    sums = (steps.gather(2, targets.unsqueeze(2)).squeeze(2) * mine).sum(1)
    greedy = ((steps.argmax(2) == targets) | ~mine).all(1)
    return list(zip(sums.tolist(), greedy.tolist(), strict=True))


@torch.no_grad()
def passage_log_likelihood(model: UnifiedModel, ids: Sequence[int], start: int = 1) -> float:
    """Log-likelihood in nats of the tokens ``ids[start:]``, each given all those before it, as understanding.

    Args:
        model: of any base family.
        ids: a sequence from its BOS on (``SequenceBuilder.passage``).
        start: of what is scored, 1 or more.
    """
    row = torch.tensor([list(ids)], device=model.device)
    task = torch.full((1, 1), int(Task.MMU), device=model.device)
    logits = model(input_ids=row, use_cache=False, task_ids=task).logits[0, :-1]
    steps = torch.log_softmax(logits.float(), -1).gather(1, row[0, 1:].unsqueeze(1))
    return float(steps[start - 1 :].double().sum())
