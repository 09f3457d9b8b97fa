"""Processor of a base made from a language model: its tokenizer and chat template, with tokens for images added.

Sequences here begin with the BOS, and text follows the system prompt. A template that begins with the BOS itself (ChatML) gives it
up, so that a chat has the same ids as in the language model.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unidecouple.convert.processors import TURN_BODY, start_with_bos
from unidecouple.models.processing import UniJanusProcessor

IMAGE_TOKENS = {"image_token": "<image>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
_PAD = "<pad>"
_SYSTEM, _USER, _ANSWER, _FURTHER = _MARKS = ("\x02system\x03", "\x02question\x03", "\x02answer\x03", "\x02further\x03")

_TEMPLATE = """
{%- for message in messages -%}
  {%- set text = body(message['content']) -%}
  {%- if message['role'] == 'system' -%}{{ SYSTEM_OPENING + text + SYSTEM_CLOSING }}
  {%- elif message['role'] == 'user' -%}
    {{ (NEXT_USER if loop.previtem is defined and loop.previtem['role'] == 'assistant' else USER) + text }}
    {%- if add_generation_prompt or not loop.last -%}{{ ASKED }}{%- endif -%}
  {%- else -%}{{ LEAD + text + ANSWERED + eos_token }}
  {%- endif -%}
{%- endfor -%}
"""


@dataclass(frozen=True)
class LanguageChat:
    """Texts around the turns of a chat; those of ``data.chat.ChatFormat``, and the ids' two ends.

    Attributes:
        bos, eos: tokens that start a sequence and end an answer.
        system_prompt: where a chat has no system turn.
        system_opening, system_closing, user, next_user, asked, lead, answered: see ``ChatFormat``.
    """

    bos: str
    eos: str
    system_prompt: str = ""
    system_opening: str = ""
    system_closing: str = " "
    user: str = "<|user|>\n"
    next_user: str = "\n<|user|>\n"
    asked: str = "\n<|assistant|>\n"
    lead: str = ""
    answered: str = ""

    def template(self, image: str) -> str:
        """The chat template in Jinja, where ``image`` is the token of an image."""
        named = {name.upper(): _literal(value) for name, value in asdict(self).items()}
        text = re.sub(r"\b[A-Z_]+\b", lambda found: named[found[0]], _TEMPLATE)
        return (TURN_BODY.replace("IMAGE", image) + text).strip()


_ROLES = ("<|user|>", "<|assistant|>")
"""Added where the language model has no chat template."""


def language_processor(tokenizer: PreTrainedTokenizerBase, parts: UniJanusProcessor) -> tuple[UniJanusProcessor, list[int]]:
    """A processor with the words of ``tokenizer`` and the images of ``parts``.

    Returns:
        The processor, and the ids of the tokens that were added.

    Raises:
        ValueError: the tokenizer has no fast form, or no token that ends an answer.
    """
    found = getattr(tokenizer, "backend_tokenizer", None)
    if found is None or (tokenizer.eos_token is None and tokenizer.chat_template is None):
        raise ValueError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json, or no EOS: give one that has")
    backend = Tokenizer.from_str(found.to_str())
    chat = chat_of(tokenizer) or LanguageChat(str(tokenizer.bos_token or tokenizer.eos_token), str(tokenizer.eos_token))
    taken = (chat.bos, chat.eos, tokenizer.unk_token)
    pad = _PAD if tokenizer.pad_token in (None, *taken) else str(tokenizer.pad_token)
    roles = [role for role in _ROLES if role in chat.user + chat.asked]
    wanted = [*IMAGE_TOKENS.values(), pad, *roles]
    before = backend.get_vocab_size(with_added_tokens=True)
    new = [token for token in wanted if backend.token_to_id(token) is None]
    backend.add_special_tokens([*wanted, chat.bos, chat.eos])
    start_with_bos(backend, chat.bos)
    unknown = getattr(backend.model, "unk_token", None)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        bos_token=chat.bos,
        eos_token=chat.eos,
        pad_token=pad,
        extra_special_tokens=IMAGE_TOKENS,
        **({} if unknown is None else {"unk_token": unknown}),
    )
    assert len(made) == before + len(new)
    processor = UniJanusProcessor(
        parts.image_processor,
        made,
        chat_template=chat.template(IMAGE_TOKENS["image_token"]),
        system_prompt=chat.system_prompt,
        num_image_tokens=parts.num_image_tokens,
        short_side=parts.short_side,
        system_turn=(chat.system_opening, chat.system_closing),
    )
    return processor, [made.convert_tokens_to_ids(token) for token in new]


def chat_of(tokenizer: PreTrainedTokenizerBase) -> LanguageChat | None:
    """What the chat template of ``tokenizer`` puts around turns; None where it has none, or one that joins turns otherwise."""
    if tokenizer.chat_template is None:
        return None
    alone, chat = _pieces(tokenizer, (_USER,)), _pieces(tokenizer, (_USER, _ANSWER, _FURTHER))
    if alone is None or chat is None or chat[3] != alone[1] or not chat[1].startswith(alone[1]):
        return None
    asked, ending = alone[1], chat[2]
    eos = _special(tokenizer, ending)
    if eos is None or ending.count(eos) != 1:
        return None
    bos = tokenizer.bos_token or _special(tokenizer, alone[0], first=True) or eos
    answered, next_user = ending.split(eos)
    around = {"next_user": next_user, "asked": asked, "lead": chat[1].removeprefix(asked), "answered": answered}
    system = _pieces(tokenizer, (_SYSTEM, _USER))
    if system is None:
        return LanguageChat(bos, eos, user=alone[0].removeprefix(bos), **around)
    opening, closing, _ = system
    default, user = "", alone[0]
    if alone[0].startswith(opening) and alone[0].endswith(closing):
        default, user = alone[0][len(opening) : len(alone[0]) - len(closing)], next_user.lstrip()
    if not closing.endswith(user.removeprefix(bos)):
        return LanguageChat(bos, eos, user=user.removeprefix(bos), **around)
    user = user.removeprefix(bos)
    return LanguageChat(bos, eos, default, opening.removeprefix(bos), closing.removesuffix(user), user, **around)


def _pieces(tokenizer: PreTrainedTokenizerBase, marks: tuple[str, ...]) -> list[str] | None:
    """What stands before, between and after ``marks`` in a chat of them; None where the template refuses or reorders them."""
    names = {_SYSTEM: "system", _ANSWER: "assistant"}
    messages: list[dict[str, Any]] = [{"role": names.get(mark, "user"), "content": mark} for mark in marks]
    try:
        text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception:  # noqa: BLE001 - templates raise errors of any type, as for a role that they do not have
        return None
    found = []
    for mark in marks:
        before, there, text = text.partition(mark)
        if not there:
            return None
        found.append(before)
    return [*found, text]


def _special(tokenizer: PreTrainedTokenizerBase, text: str, first: bool = False) -> str | None:
    """The EOS if ``text`` has it, else its first special token; with ``first`` the one that it starts with."""
    if not first and tokenizer.eos_token is not None and tokenizer.eos_token in text:
        return str(tokenizer.eos_token)
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = [(text.find(token), -len(token), token) for token in special if token in text]
    place, _, token = min(found, default=(-1, 0, ""))
    return token if found and (place == 0 or not first) else None


def _literal(text: str) -> str:
    """``text`` as a string of Jinja."""
    return "'" + text.encode("unicode_escape").decode("ascii").replace("'", "\\'") + "'"
