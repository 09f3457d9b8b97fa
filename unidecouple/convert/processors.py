"""Tokenizer and processor files of the layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import JanusProcessor, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unidecouple.convert.emu3 import emu3_generation_config, read_emu3_processor, write_emu3_processor
from unidecouple.convert.json_files import read_json
from unidecouple.convert.layouts import DEEPSEEK, TRANSFORMERS, UNIDECOUPLE, CheckpointConfig
from unidecouple.files import write_json_atomic
from unidecouple.inputs import refuse_pointer
from unidecouple.models.emu3_processing import UniEmu3Processor
from unidecouple.models.processing import JANUS_SYSTEM_PROMPT, UnifiedProcessor, UniJanusProcessor

_TAGS = {"image_token": "image_tag", "boi_token": "image_start_tag", "eoi_token": "image_end_tag"}
_PUBLISHED_TAGS = {
    "image_tag": "<image_placeholder>",
    "image_start_tag": "<begin_of_image>",
    "image_end_tag": "<end_of_image>",
    "pad_tag": "<\uff5c\u2581pad\u2581\uff5c>",
}
_PIXELS = ("min_size", "image_mean", "image_std", "rescale_factor", "do_normalize")
_SPECIAL = ("bos_token", "eos_token", "unk_token")
_ADDITIONAL = "additional_special_tokens"
_ROLES = ("<|User|>", "<|Assistant|>")

TURN_BODY = """
{%- macro body(content) -%}
  {%- if content is string -%}{{ content | trim }}
  {%- else -%}
    {%- for part in content -%}
      {%- if part['type'] == 'image' -%}
        {{ '' if loop.first else '\\n' }}IMAGE{{ '' if loop.last else '\\n' }}
      {%- elif part['type'] == 'text' -%}
        {%- set text = part['text'].lstrip() if loop.first else part['text'] -%}
        {%- if not loop.first and loop.previtem['type'] == 'text' -%}{{ ' ' }}{%- endif -%}
        {{ text.rstrip() if loop.last else text }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
""".strip()
"""Jinja macro: the text of a turn; IMAGE stands for each image, on lines of its own."""

TEMPLATE = (
    TURN_BODY
    + """
{%- for message in messages -%}
  {%- set role, said = message['role'] | lower, body(message['content']) -%}
  {%- set ended = add_generation_prompt or not loop.last -%}
  {%- if role == 'user' -%}{{ 'USER: ' + said }}
  {%- elif role == 'assistant' -%}{{ 'ASSISTANT:' + (' ' + said if said or ended else '') }}
  {%- else -%}{{ role | capitalize + ': ' + said }}
  {%- endif -%}
  {%- if ended -%}{{ '\\n\\n' if role == 'user' else eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
).strip()
"""Chats as Janus-Pro was trained with them (deepseek-ai/Janus, conversation.py, "deepseek"); names stand for its special tokens."""


def read_processor(described: CheckpointConfig) -> UnifiedProcessor | None:
    """The processor of a checkpoint; None if it has no tokenizer.json.

    Raises:
        ValueError: its files do not hold what its model needs.
    """
    folder, layout = described.folder, described.layout
    if not (folder / "tokenizer.json").is_file():
        return None
    refuse_pointer(folder / "tokenizer.json")
    try:
        if described.is_emu3:
            return read_emu3_processor(folder, layout == UNIDECOUPLE)
        if layout == UNIDECOUPLE:
            return UniJanusProcessor.from_pretrained(folder, trust_remote_code=False)
        if layout == DEEPSEEK:
            return _read_deepseek(folder)
        processor = UniJanusProcessor.of_janus(JanusProcessor.from_pretrained(folder, trust_remote_code=False))
        said = folder / "processor_config.json"
        if said.is_file():
            ours = read_json(said)
            processor.system_prompt = ours.get("system_prompt", processor.system_prompt)
            processor.short_side = ours.get("short_side", processor.short_side)
            if "system_turn" in ours:
                processor.system_turn = ours["system_turn"]
    except Exception as error:  # the libraries raise anything here, of files of any content
        raise ValueError(f"cannot read the processor of {folder}: {error!r}. Copy all of its json files again") from error
    return processor


def write_processor(folder: Path, processor: UnifiedProcessor, layout: str) -> None:
    """Save ``processor`` in ``layout`` into ``folder``."""
    if isinstance(processor, UniEmu3Processor):
        write_emu3_processor(folder, processor, layout == UNIDECOUPLE)
    elif layout == UNIDECOUPLE:
        processor.save_pretrained(folder)
    elif layout == TRANSFORMERS:
        plain = JanusProcessor(
            processor.image_processor,
            processor.tokenizer,
            chat_template=processor.chat_template,
            use_default_system_prompt=processor.system_prompt == JANUS_SYSTEM_PROMPT,
            num_image_tokens=processor.num_image_tokens,
        )
        plain.save_pretrained(folder)
        ours: dict[str, Any] = (
            {} if processor.system_prompt in ("", JANUS_SYSTEM_PROMPT) else {"system_prompt": processor.system_prompt}
        )
        ours |= {} if processor.short_side == "round" else {"short_side": processor.short_side}
        ours |= {} if processor.system_turn is None else {"system_turn": processor.system_turn}
        if ours:  # transformers' Janus has its own only, and ignores these
            path = folder / "processor_config.json"
            write_json_atomic(path, read_json(path) | ours)
    else:
        _write_deepseek(folder, processor)


def write_generation_config(source: Path, folder: Path, processor: UnifiedProcessor) -> None:
    """generation_config.json of ``source`` with what transformers' image loop needs to know added."""
    path, tokenizer = source / "generation_config.json", processor.tokenizer
    known = read_json(path) if path.is_file() else {}
    known.pop("_from_model_config", None)  # or transformers makes the file anew from config.json, without the loop's token
    if isinstance(processor, UniEmu3Processor):
        write_json_atomic(folder / path.name, emu3_generation_config(known, processor))
        return
    known = known if path.is_file() else {"guidance_scale": 5.0}
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    loop = {"boi_token_id": tokenizer.convert_tokens_to_ids(tokenizer.boi_token)}
    write_json_atomic(folder / path.name, ids | {"generation_kwargs": loop} | known)


def _read_deepseek(folder: Path) -> UniJanusProcessor:
    said = {name: read_json(folder / name) for name in ("tokenizer_config.json", "preprocessor_config.json")}
    extra = folder / "processor_config.json"
    tags = _PUBLISHED_TAGS | (read_json(extra) if extra.is_file() else {})
    tokens = said["tokenizer_config.json"]
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    absent = [tag for name, tag in tags.items() if name.endswith("_tag") and backend.token_to_id(tag) is None]
    if absent:
        raise ValueError(f"{folder / 'tokenizer.json'} has no token {absent[0]!r}: it is not Janus's")
    special = {name: _text(tokens[name]) for name in _SPECIAL if tokens.get(name)}
    start_with_bos(backend, special["bos_token"])
    _flag_special(backend, [*map(_text, _listed(folder, tokens)), *(tags[tag] for tag in (*_TAGS.values(), "pad_tag"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        pad_token=tags["pad_tag"],
        model_max_length=tokens.get("model_max_length"),
        extra_special_tokens={name: tags[tag] for name, tag in _TAGS.items()},
        **special,
    )
    pixels = said["preprocessor_config.json"]
    images = JanusImageProcessorPil(
        size={"height": pixels["image_size"], "width": pixels["image_size"]},
        **{name: pixels[name] for name in _PIXELS if name in pixels},
    )
    return UniJanusProcessor(
        images,
        tokenizer,
        chat_template=tags.get("chat_template") or _template(backend, tags["image_tag"]),
        system_prompt=tags.get("system_prompt", JANUS_SYSTEM_PROMPT),
        num_image_tokens=tags.get("num_image_tokens", 576),
        short_side=tags.get("short_side", "floor"),
        system_turn=tags.get("system_turn"),
    )


def _listed(folder: Path, tokens: dict[str, Any]) -> list[Any]:
    """``additional_special_tokens`` of either file that may list them; the role tokens are among them."""
    path = folder / "special_tokens_map.json"
    maps = (tokens, read_json(path) if path.is_file() else {})
    return [token for one in maps for token in one.get(_ADDITIONAL) or []]


def _flag_special(backend: Tokenizer, listed: list[str]) -> None:
    """Flag ``listed`` tokens, and the role tokens that the template uses, as special in the tokenizer's own file.

    That file is the one that every layout keeps, so the flag survives each conversion.
    """
    there = [token for token in dict.fromkeys([*listed, *_ROLES]) if backend.token_to_id(token) is not None]
    plain = {token.content for token in backend.get_added_tokens_decoder().values() if not token.special}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([token for token in there if token in plain or token not in known])


def _write_deepseek(folder: Path, processor: UnifiedProcessor) -> None:
    tokenizer, images = processor.tokenizer, processor.image_processor
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    tokens: dict[str, Any] = {name: getattr(tokenizer, name) for name in (*_SPECIAL, "pad_token") if getattr(tokenizer, name)}
    added = tokenizer.added_tokens_decoder.values()
    others = [str(token) for token in added if token.special and str(token) not in tokens.values()]
    tokens |= {_ADDITIONAL: others} if others else {}
    tags = {tag: getattr(tokenizer, name) for name, tag in _TAGS.items()} | {"pad_tag": tokenizer.pad_token}
    words = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "model_max_length": tokenizer.model_max_length}
    pixels: dict[str, Any] = {"image_processor_type": "VLMImageProcessor", "processor_class": "VLChatProcessor"}
    pixels |= {"image_size": images.size["height"]}
    pixels |= {name: getattr(images, name) for name in _PIXELS}
    chat = {"num_image_tokens": processor.num_image_tokens, "sft_format": "deepseek", "processor_class": "VLChatProcessor"}
    if processor.chat_template != _template(tokenizer.backend_tokenizer, tokenizer.image_token):
        chat["chat_template"] = processor.chat_template  # deepseek-ai's code has its own only, and ignores these four
    if processor.system_prompt != JANUS_SYSTEM_PROMPT:
        chat["system_prompt"] = processor.system_prompt
    if processor.short_side != "floor":
        chat["short_side"] = processor.short_side
    if processor.system_turn is not None:
        chat["system_turn"] = processor.system_turn
    write_json_atomic(folder / "tokenizer_config.json", words | tokens)
    write_json_atomic(folder / "special_tokens_map.json", tokens)
    write_json_atomic(folder / "preprocessor_config.json", pixels)
    write_json_atomic(folder / "processor_config.json", chat | tags)


def _template(backend: Tokenizer, image: str) -> str:
    """``TEMPLATE`` with the tokenizer's own tokens; Janus before Pro has none for the roles."""
    user, assistant = _ROLES if backend.token_to_id(_ROLES[0]) is not None else ("User", "Assistant")
    return TEMPLATE.replace("IMAGE", image).replace("'USER", f"'{user}").replace("'ASSISTANT", f"'{assistant}")


def start_with_bos(backend: Tokenizer, bos: str) -> None:
    """Let ``backend`` put BOS first, as deepseek-ai's tokenizer class does by itself, if its file does not say so."""
    number = backend.token_to_id(bos)
    if backend.encode("a").ids[:1] != [number]:
        first = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
        before = [] if backend.post_processor is None else [backend.post_processor]
        backend.post_processor = processors.Sequence([*before, first])


def _text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]
