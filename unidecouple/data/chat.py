"""What a processor's chat template puts around questions, prompts and answers, found by rendering chats of marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from unidecouple.models.processing import UnifiedProcessor

_MARKS = ("\x02question\x03", "\x02answer\x03", "\x02further\x03")


@dataclass(frozen=True)
class ChatFormat:
    """Texts between which contents stand. A byte-pair tokenizer joins what touches, so they are tokenized together with them.

    Attributes:
        prefix: before a chat that is answered with text; the system prompt.
        user: before a chat's first question or prompt.
        image: an image among a question's words.
        next_user: before a further question, after an answer's end.
        asked: after any question or prompt; there generation starts.
        lead: before an answer.
        answered: after an answer, up to the token that ends it.
        system_opening, system_closing: before and after the text of a system turn, which stands in place of ``prefix``.
    """

    prefix: str
    user: str
    image: str
    next_user: str
    asked: str
    lead: str
    answered: str
    system_opening: str = ""
    system_closing: str = " "

    @property
    def user_with_image(self) -> str:
        """Before a chat's first question, about an image."""
        return self.prefix + self.user + self.image


def chat_format(processor: UnifiedProcessor) -> ChatFormat:
    """The texts around contents in chats of ``processor``.

    Raises:
        ValueError: its template is broken, does not place contents one after the other, or ends answers with no EOS.
    """
    image, eos = {"type": "image"}, processor.tokenizer.eos_token
    question, answer, further = ({"type": "text", "text": mark} for mark in _MARKS)
    user, asked = _between(_render(processor, [("user", [question])]), _MARKS[:1])
    chat = [("user", [image, question]), ("assistant", [answer]), ("user", [further])]
    first, second, third, last = _between(_render(processor, chat), _MARKS)
    if last != asked or not first.startswith(user) or not second.startswith(asked) or third.count(eos) != 1:
        raise ValueError(
            f"the chat template must end a question with what generation starts from ({asked!r}) and an answer with {eos!r}, but "
            f"has {second!r} and {third!r} around an answer; give the processor a template like Janus's"
        )
    answered, next_user = third.split(eos)
    around = (user, first.removeprefix(user), next_user, asked, second.removeprefix(asked), answered)
    return ChatFormat(processor.text_prefix, *around, *(processor.system_turn or ("", " ")))


def control_tokens(tokenizer: PreTrainedTokenizerFast, marks: str) -> dict[int, str]:
    """Tokens, by id, that users' text must not contain: all special ones, and added ones that occur in the template.

    Some checkpoints do not flag their role tokens as special, so ``marks``, all texts of the template, are searched, too. The
    token for unknown words is excluded: it has the same meaning in a user's text.
    """
    added = {number: (str(token), token.special) for number, token in tokenizer.added_tokens_decoder.items()}
    found = {number: token for number, (token, special) in added.items() if special or token in marks}
    found |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {number: token for number, token in found.items() if token != tokenizer.unk_token}


def _render(processor: UnifiedProcessor, turns: list[tuple[str, list[dict[str, str]]]]) -> str:
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
    try:
        return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template is broken ({error}): copy chat_template.jinja into the folder again") from error


def _between(text: str, marks: tuple[str, ...]) -> list[str]:
    """What stands before, between and after ``marks``."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ValueError(
                "the chat template leaves out, changes or reorders contents; give the processor a template like Janus's"
            )
        pieces.append(before)
    return [*pieces, text]
