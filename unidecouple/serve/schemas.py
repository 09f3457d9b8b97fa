"""Bodies of requests and responses in OpenAI's form, with our extras: seed, guidance_scale, negative_prompt, top_k, temperature.

What a request asks for and we do not do is refused, not passed over: every field that is not here is a 400. Those that change
nothing about the result (``user``, ``metadata``, …) are taken and not used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_SEED = 2**63 - 1


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may spell half a surrogate pair, which no tokenizer takes
        raise ValueError("a lone surrogate is no character") from error
    return text


Text = Annotated[str, AfterValidator(_unicode)]
StopString = Annotated[Text, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """What all bodies share: nothing unknown, no NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Body):
    """Words of a turn."""

    type: Literal["text"]
    text: Text


class ImageUrl(Body):
    """A picture: a data URL, or the id of an upload. Nothing is downloaded."""

    url: str = Field(min_length=1, examples=["data:image/png;base64,…", "file-0123456789abcdef"])
    detail: Literal["auto", "low", "high"] | None = Field(None, description="taken and not used: a model has one size")


class ImagePart(Body):
    """A picture of a user's turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]


class StreamOptions(Body):
    """What a stream holds besides."""

    include_usage: bool = False


class ChatRequest(Body):
    """``POST /v1/chat/completions``."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(None, ge=1, description="longest answer; by default 256, or what the model has room for")
    max_completion_tokens: int | None = Field(None, ge=1, description="the same under OpenAI's newer name")
    temperature: float = Field(0.0, ge=0, le=100, description="0, which is the default, is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1 << 20, description="0 is all")
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="by default another one each time; the response names it")
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = Field(
        None, description="a string, or up to 4; the answer ends before the first that comes"
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None


class ImageRequest(Body):
    """``POST /v1/images/generations``."""

    model: str | None = None
    prompt: Text = Field(min_length=1)
    n: int = Field(1, ge=1)
    size: str | None = Field(None, description="the model's own size, or auto", examples=["auto"])
    response_format: Literal["b64_json"] = Field("b64_json", description="nothing is kept that a URL could name")
    quality: Literal["auto", "standard"] | None = Field(None, description="taken and not used")
    output_format: Literal["png"] | None = None
    stream: bool = Field(False, description="server-sent events; every picture of n has its index in its events")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="how often each picture is shown while it grows; above 0 only with stream"
    )
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="picture i depends on (seed, i) only")
    guidance_scale: float | None = Field(None, ge=0, le=100, description="1 is no guidance; left out, the checkpoint's own, or 5")
    temperature: float | None = Field(None, ge=0, le=100, description="left out, the checkpoint's own, or 1; as the next two")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 20)
    negative_prompt: Text | None = None
    user: str | None = None


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Tokens that a request took."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def image_usage(prompt: int, drawn: int) -> dict[str, Any]:
    """Tokens that pictures took, under OpenAI's names."""
    details = {"text_tokens": prompt, "image_tokens": 0}
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
