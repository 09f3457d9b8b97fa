"""JSON bodies of requests: bounded before they are parsed, then validated, with one error that names the wrong field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from unidecouple.serve.errors import ApiError
from unidecouple.serve.schemas import Body

MAX_DEPTH = 16
"""Most lists and objects inside one another."""

MAX_MARKS = 60_000
"""Most brackets, commas and strings of a body. 256 turns of 20 parts have 43,000."""

MAX_ESCAPES = 500_000
r"""Most backslashes of a body, since each is slow to read. 20 MB of base64 whose slashes are written ``\/`` have 310,000."""

_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]|[^"\[\]{},]++', re.DOTALL)
"""A string, a mark of structure, or what stands between. Possessive: no backtracking, so a long string takes no memory."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_DIGITS = 20

_DATA_URL = '{"url": "data:image/png;base64,…"}'
_REMEDIES = {
    "input_text": 'is of the Responses API; here it is {"type": "text", "text": "…"}',
    "input_image": f'is of the Responses API; here it is {{"type": "image_url", "image_url": {_DATA_URL}}}',
}
_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not supported; leave it out",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "union_tag_not_found": "is missing",
}

B = TypeVar("B", bound=Body)


def parse(model: type[B], content: bytes, content_type: str) -> B:
    """Read a JSON body as ``model``. Takes memory of a few times the body's size, whatever is in it.

    Raises:
        ApiError: 400. It is not JSON, has too many values, or a field is wrong; the first wrong field only.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        given = f"not {kind[:64]!r}" if kind else "and none was given"
        raise ApiError(400, f"send the header Content-Type: application/json, {given}", code="invalid_content_type")
    value = _loaded(content)
    if _SURROGATE.search(content) and (place := _half_surrogate(value, ())) is not None:
        where = _dotted(place)
        raise ApiError(400, f"{where or 'the body'}: half a surrogate pair is no character", where, "invalid_unicode")
    return _validated(model, value)


def parse_form(model: type[B], fields: Mapping[str, str]) -> B:
    """Read the text fields of a form as ``model``, whose numbers and truth values they write as JSON does; raises as ``parse``."""
    plain = {name for name, field in model.model_fields.items() if str in _types(field.annotation)}
    value = {name: text if name in plain or name not in model.model_fields else _scalar(text) for name, text in fields.items()}
    return _validated(model, value)


def _types(annotation: Any) -> set[Any]:
    """The types that a union, optional, annotated or literal type is made of."""
    inner = {type(one) if get_origin(annotation) is Literal else one for one in get_args(annotation)}
    return set().union(*map(_types, inner)) if inner and get_origin(annotation) is not Literal else inner or {annotation}


def _scalar(text: str) -> Any:
    try:
        found = json.loads(text, parse_int=_integer, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(found, list | dict | str) else found


def _validated(model: type[B], value: Any) -> B:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_error(error, value) from None


def _loaded(content: bytes) -> Any:
    if not content.strip():
        raise ApiError(400, "the body is empty; send JSON", code="invalid_json")
    _check_structure(content)
    try:
        return json.loads(
            content.decode("utf-8-sig"), parse_int=_integer, parse_constant=_no_constant, object_pairs_hook=_without_duplicates
        )
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


def _check_structure(content: bytes) -> None:
    """Refuse what would become too many objects, in one pass that makes none."""
    if content.count(b"\\") > MAX_ESCAPES:
        raise ApiError(400, f"the body has more than {MAX_ESCAPES:,} backslashes", code="too_many_values")
    depth = marks = 0
    for found in _MARK.finditer(content):
        first = content[found.start()]
        marks += first in b'"[]{},'
        depth += (first in b"[{") - (first in b"]}")
        if depth > MAX_DEPTH:
            raise ApiError(400, f"the body has more than {MAX_DEPTH} lists and objects inside one another", code="too_deep")
        if marks > MAX_MARKS:
            message = f"the body has more than {MAX_MARKS:,} brackets, commas and strings"
            raise ApiError(400, message, code="too_many_values")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:64]!r} comes twice in an object")
        found[key] = value
    return found


def _half_surrogate(value: Any, place: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Where a string that is no Unicode stands, or None."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        wrong = place if _half_surrogate(key, place) is not None else _half_surrogate(one, (*place, key))
        if wrong is not None:
            return wrong
    return None


def _first_error(error: ValidationError, value: Any) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = _place(first["loc"], value)
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        place = [*place, "type"]
    where = _dotted(place)
    return ApiError(400, f"{where or 'the body'}: {_words(first, place)}", where, first["type"])


def _place(steps: Sequence[int | str], value: Any) -> list[int | str]:
    """``steps`` of pydantic without its names of alternatives, which are nowhere in the body."""
    place: list[int | str] = []
    for number, step in enumerate(steps):
        after_index = number > 0 and isinstance(steps[number - 1], int)
        if after_index and isinstance(value, dict) and value.get("type") == step:
            continue  # the kind of a part, which pydantic puts before the part's fields
        if isinstance(value, dict) and (step in value or number + 1 == len(steps)):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        place.append(step)
    return place


def _dotted(place: Sequence[int | str]) -> str | None:
    return ".".join(str(step)[:64] for step in place) or None


def _words(error: ErrorDetails, place: Sequence[int | str]) -> str:
    context = error.get("ctx", {})
    if error["type"] == "union_tag_invalid":
        tag = str(context["tag"])[:64]
        remedy = _REMEDIES.get(tag, 'is no type of part; there are "text" and "image_url"')
        return f'"{tag}" {remedy}'
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"must be an object: {_DATA_URL}" if place[-1:] == ["image_url"] else "must be an object"
    plain = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return _WORDS.get(error["type"], plain)
