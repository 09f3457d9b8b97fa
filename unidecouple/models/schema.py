"""Schema version of config.json: fields of older versions are migrated, fields that no version has are refused."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import transformers
from packaging.version import InvalidVersion, Version
from transformers import GenerationConfig, PreTrainedConfig

SCHEMA_VERSION = 4
"""Raised by every change of our fields, a new one too. A file without ``schema_version`` has version 1 (unidecouple 0.1)."""

VERSION_FIELD = "schema_version"

_TRANSFORMERS = (
    # Fields of Llama's, Janus's and Emu3's configurations in transformers 5.22 to 5.24; a later release may drop one.
    "architectures attention_bias attention_dropout bos_token_id chunk_size_feed_forward dtype eos_token_id head_dim hidden_act "
    "hidden_size id2label image_token_id initializer_range intermediate_size is_encoder_decoder label2id max_position_embeddings "
    "mlp_bias model_type num_attention_heads num_hidden_layers num_key_value_heads num_labels output_attentions "
    "output_hidden_states pad_token_id per_layer_config pretraining_tp problem_type return_dict rms_norm_eps rope_parameters "
    "text_config tie_word_embeddings transformers_version use_cache vision_config vocab_size vocabulary_map vq_config "
    # Names that transformers reads or writes without a field of its own, and those of its releases before 5.
    "add_cross_attention attn_implementation auto_map cross_attention_hidden_size custom_pipelines decoder_start_token_id "
    "experts_implementation finetuning_task is_decoder name_or_path partial_rotary_factor prefix pruned_heads quantization_config "
    "rope_scaling rope_theta sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torch_dtype "
    "torchscript use_bfloat16"
)

Fields = dict[str, Any]
Migration = Callable[[Fields], Fields]
C = TypeVar("C", bound=type[PreTrainedConfig])


def versioned(former: Mapping[str, str], migrate: Migration, since: Mapping[str, int] | None = None) -> Callable[[C], C]:
    """Decorate a configuration class: what it is constructed from, a config.json above all, is brought to ``SCHEMA_VERSION``.

    A ``ValueError`` refuses

    - a newer schema version than this one;
    - in a file of version 2 or later: a former name, and the absence of a field of ours that its version has. Every field of
      ours is always written, so a misspelt or renamed one is found by what is missing, whatever else transformers wrote;
    - a name that neither we nor transformers know. Unless a newer transformers wrote the file (``transformers_version``), whose
      fields nobody here can know: then only a name close to one of ours, and only in version 1, where absence means the default.

    Parts of a model that have no version of their own (the image tokenizer's) hold what transformers' classes do not check, so
    there only names close to ours are refused.

    Args:
        former: names of version 1 and what they became.
        migrate: fields of version 1, by their names there -> the same by today's.
        since: fields that are younger than version 2, and the version that brought each; absent, they have their defaults.
    """

    def decorate(cls: C) -> C:
        init = cls.__init__

        @functools.wraps(init)
        def construct(self: PreTrainedConfig, **given: Any) -> None:
            init(self, **_current(cls, given, former, migrate, since or {}))

        cls.__init__ = construct
        return cls

    return decorate


def own_fields(cls: type[PreTrainedConfig]) -> set[str]:
    """Return the fields of ``cls`` that its base, transformers' own class, lacks."""
    return {field.name for field in fields(cls)} - {field.name for field in fields(cls.__mro__[1])}


def _current(
    cls: type[PreTrainedConfig], given: Fields, former: Mapping[str, str], migrate: Migration, since: Mapping[str, int]
) -> Fields:
    """``given`` under today's names, checked; the versions stated there hold for the parts that state none."""
    stated, ours = given.get(VERSION_FIELD), own_fields(cls)
    if stated is not None and (type(stated) is not int or not 1 <= stated <= SCHEMA_VERSION):
        raise ValueError(
            f"config.json has {VERSION_FIELD}={stated!r}, and this unidecouple reads versions 1 to {SCHEMA_VERSION}: "
            "update unidecouple (pip install -U unidecouple)"
        )
    if stated is not None and stated > 1:
        absent = sorted(name for name in ours - given.keys() if since.get(name, 2) <= stated)
        if absent:
            raise _misfit(f"lacks {absent[0]!r}, which every file of its version has", given, given.keys() - ours, absent[0])
    else:
        for old, new in former.items():
            if old in given and new in given:
                raise _misfit(f"has {old!r} and {new!r}, the former and the present name of one field", given)
        given = migrate(given)
    known = {field.name for field in fields(cls)} | _generation_fields() | {*_TRANSFORMERS.split()}
    for name in given.keys() - known:
        if not (name.startswith("_") or hasattr(cls.__mro__[1], name)):
            _check_unknown(name, given, ours, former, checked=VERSION_FIELD in ours)
    return _with_versions(cls, {name: value for name, value in given.items() if name != VERSION_FIELD}, stated)


@functools.cache
def _generation_fields() -> frozenset[str]:
    return frozenset(GenerationConfig().to_dict())


def _check_unknown(name: str, given: Fields, ours: set[str], former: Mapping[str, str], checked: bool) -> None:
    if name in former:
        raise _misfit(f"has an unknown field {name!r}, which is now {former[name]!r}", given)
    old = given.get(VERSION_FIELD, 1) == 1
    candidates = ours | former.keys() if old else ours
    close = old and difflib.get_close_matches(name, candidates, 1, 0.8)
    if close or (checked and not _newer(given.get("transformers_version"))):
        raise _misfit(f"has an unknown field {name!r}", given, candidates, name)


def _misfit(problem: str, given: Fields, others: set[str] | frozenset[str] = frozenset(), name: str = "") -> ValueError:
    close = difflib.get_close_matches(name, others, 1, 0.6)
    hint = f" (is {close[0]!r} meant?)" if close else ""
    return ValueError(
        f"the configuration (schema version {given.get(VERSION_FIELD, 1)}) {problem}{hint}: correct or remove it, or copy "
        "config.json again from where the checkpoint was written"
    )


def _newer(version: object) -> bool:
    """Return whether the file's transformers is newer than the installed one."""
    try:
        return version is not None and Version(str(version)) > Version(transformers.__version__)
    except InvalidVersion:
        return False


def _with_versions(cls: type[PreTrainedConfig], given: Fields, stated: int | None) -> Fields:
    """Parts of a model are read by the versions that the whole states."""
    versions = {"transformers_version": given.get("transformers_version")} | ({} if stated is None else {VERSION_FIELD: stated})
    part = given.get("text_config")
    if "text_config" in cls.sub_configs_defaults and isinstance(part, dict):
        given["text_config"] = versions | part
    return given
