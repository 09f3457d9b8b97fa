"""Bodies of requests and responses in OpenAI's form, with our extras: seed, guidance_scale, negative_prompt, top_k, temperature.

A field that would change the result and is not supported is a 400. Fields that change nothing (``user``, ``metadata``, …), ``null``
and the neutral values of OpenAI's other fields are accepted and not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

from unidecouple.generate.sampling import MAX_GUIDANCE_SCALE, MAX_TEMPERATURE, MAX_TOP_K

MOST_SEED = 2**63 - 1
MAX_MESSAGES = 256
MAX_PARTS = 256


def _whole(value: Any) -> Any:
    """1.0 is the integer 1, as JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Name = Annotated[str, Field(max_length=256)]
Tag = Annotated[str, Field(max_length=512)]
GuidanceScale = Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)]
TopK = Annotated[int, Field(ge=0, le=MAX_TOP_K), BeforeValidator(_whole)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED), BeforeValidator(_whole)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[
    list[StopString],
    Field(fail_fast=True, max_length=4),
    BeforeValidator(_listed, json_schema_input_type=StopString | list[StopString]),
]


class Body(BaseModel):
    """What all bodies share: nothing unknown, no NaN, no strings as numbers. ``null`` is as if left out.

    Attributes:
        neutral: fields of OpenAI's that we do not have, with the values that ask for nothing; those are accepted.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: one for key, one in value.items() if one is not None and not cls._asks_nothing(key, one)}

    @classmethod
    def _asks_nothing(cls, key: str, value: Any) -> bool:
        alike = (one for one in cls.neutral.get(key, ()) if isinstance(one, bool) == isinstance(value, bool))  # False == 0
        return any(one == value for one in alike)


class TextPart(Body):
    """Words of a turn."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """An image: a data URL, or the id of an upload. Nothing is downloaded."""

    url: str = Field(min_length=1, examples=["data:image/png;base64,…", "file-0123456789abcdef"])
    detail: Literal["auto", "low", "high"] | None = Field(None, description="accepted and not used: a model has one size")


class ImagePart(Body):
    """An image of a user's turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[
    list[ContentPart],
    Field(fail_fast=True, max_length=MAX_PARTS),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[ContentPart]),
]


class Message(Body):
    """One turn. An answer of the server, also an empty one, and the ``model_dump()`` of OpenAI's client fit."""

    neutral = {"refusal": ("",), "annotations": ([],), "tool_calls": ([],)}

    role: Literal["system", "developer", "user", "assistant"]
    content: Parts = Field([], description="may be left out, null or empty in an assistant's turn only")


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]


class StreamOptions(Body):
    """What a stream holds besides."""

    neutral = {"include_obfuscation": (False,)}

    include_usage: bool = False


class ChatRequest(Body):
    """``POST /v1/chat/completions``."""

    neutral = {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "service_tier": ("auto", "default"),
    }

    model: Name
    messages: Messages
    max_tokens: Whole | None = Field(None, ge=1, description="longest answer; by default 256, or what the model has room for")
    max_completion_tokens: Whole | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens")
    temperature: Temperature = Field(0.0, description="0, which is the default, is greedy")
    top_p: TopP = 1.0
    top_k: TopK = Field(0, description="0: all tokens")
    n: Whole = Field(1, ge=1)
    seed: Seed | None = Field(None, description="random by default; the response contains it")
    stop: Stops = Field([], description="a string, or up to 4; the answer ends before the first that comes")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Tag | None = None
    safety_identifier: Tag | None = None
    prompt_cache_key: Tag | None = None
    metadata: Annotated[dict[Tag, Tag], Field(max_length=16)] | None = None
    store: bool | None = None


class ImageRequest(Body):
    """``POST /v1/images/generations``."""

    neutral = {"background": ("auto", "opaque"), "moderation": ("auto", "low"), "output_compression": (100,)}

    model: Name | None = None
    prompt: str = Field(min_length=1)
    n: Whole = Field(1, ge=1)
    size: Name | None = Field(None, description="the model's own size, or auto", examples=["auto"])
    response_format: Literal["b64_json"] = Field("b64_json", description="images are not stored, so there are no URLs")
    quality: Literal["auto", "standard"] | None = Field(None, description="accepted and not used")
    output_format: Literal["png"] | None = None
    stream: bool = Field(False, description="server-sent events; every image of n has its index in its events")
    partial_images: Whole | None = Field(
        None, ge=0, le=3, description="number of partial images per image; above 0 only with stream"
    )
    seed: Seed | None = Field(None, description="image i depends on (seed, i) only")
    guidance_scale: GuidanceScale | None = Field(None, description="1 is no guidance; left out, the checkpoint's own, or 5")
    temperature: Temperature | None = Field(None, description="left out, the checkpoint's own, or 1; as the next two")
    top_p: TopP | None = None
    top_k: TopK | None = None
    negative_prompt: str | None = None
    user: Tag | None = None


class EditRequest(ImageRequest):
    """``POST /v1/images/edits``: fields of a form; its images are no part of this."""

    neutral = {**ImageRequest.neutral, "input_fidelity": ("low", "high")}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Tokens that a request took."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def image_usage(prompt: int, sources: int, drawn: int) -> dict[str, Any]:
    """Tokens that a prompt of ``prompt`` tokens, ``sources`` of them of source images, and its images took; OpenAI's names."""
    details = {"text_tokens": prompt - sources, "image_tokens": sources}
    return {"input_tokens": prompt, "input_tokens_details": details, "output_tokens": drawn, "total_tokens": prompt + drawn}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every response from 400 on."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "something in the request is wrong",
        401: "no API key, or a wrong one",
        403: "the Host header or the origin is not allowed",
        404: "no such model or file",
        408: "the body did not come in time",
        413: "the body is too large",
        429: "too many wait; see Retry-After",
        500: "a fault of ours",
        503: "the server shuts down, or its model failed",
    }.items()
}

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the whole response, or with stream its server-sent events",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def described(kind: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAPI's description of a required body of media type ``kind``."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


def form_schema(model: type[Body], file: str) -> dict[str, Any]:
    """OpenAPI's schema of a form with the fields of ``model``, and with images in ``file``."""
    schema = model.model_json_schema()
    images = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    return {"type": "object", "required": [file, *schema["required"]], "properties": {file: images, **schema["properties"]}}


def with_schemas(describe: Callable[[], dict[str, Any]], models: Sequence[type[Body]]) -> dict[str, Any]:
    """FastAPI's description of the routes, with the schemas of the bodies that they parse themselves."""
    description = describe()
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template="#/components/schemas/{model}")
    description["components"]["schemas"] |= schemas["$defs"]
    return description
