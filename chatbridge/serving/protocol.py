"""Schemas of requests and responses: the part of OpenAI's chat completions that a multimodal model supports.

Fields that would change an answer in ways that are not supported are refused, not ignored; so are unknown ones, which
are often mistyped. Source: OpenAI's API reference, "Create chat completion"; `video_url` and `audio_url` are vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from chatbridge.inference import GenerationSettings
from chatbridge.serving.errors import ApiError
from chatbridge.web.request_bodies import MAX_JSON_VALUES, too_many_json_values


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class MediaURL(BaseModel):
    """A data URL, or a file below the media folder. OpenAI's `detail` has no meaning here."""

    url: str


class VideoURL(MediaURL):
    """`sound`: let the video's sound be heard, too; None where there is one and the model can hear."""

    sound: bool | None = None


class InputAudio(BaseModel):
    """A sound in base64; its content is examined, `format` is ignored."""

    data: str
    format: str | None = None


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: MediaURL


class VideoPart(BaseModel):
    type: Literal["video_url"]
    video_url: VideoURL


class AudioPart(BaseModel):
    type: Literal["audio_url"]
    audio_url: MediaURL


class InputAudioPart(BaseModel):
    type: Literal["input_audio"]
    input_audio: InputAudio


MediaPart = ImagePart | VideoPart | AudioPart | InputAudioPart


MAX_MESSAGES, MAX_PARTS = 4096, 256
"""In a request, and in a message."""

MAX_STOPS, MAX_STOP_LENGTH = 16, 1000
"""Texts that end an answer, and characters of one."""


def _parts(content: Any) -> Any:
    """A text alone is a list of one part."""
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


TextParts = Annotated[list[TextPart], Field(max_length=MAX_PARTS), BeforeValidator(_parts)]
Part = Annotated[TextPart | ImagePart | VideoPart | AudioPart | InputAudioPart, Field(discriminator="type")]


class SystemMessage(BaseModel):
    role: Literal["system", "developer"]
    content: TextParts


class UserMessage(BaseModel):
    role: Literal["user"]
    content: Annotated[list[Part], Field(max_length=MAX_PARTS), BeforeValidator(_parts)]


class AssistantMessage(BaseModel):
    """Clients return whole response messages: further fields are ignored, except tool calls, which are refused."""

    role: Literal["assistant"]
    content: TextParts = []
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(BaseModel):
    include_usage: bool = False


UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
}
"""Parameters of OpenAI's that are refused unless they have one of these values, which change nothing."""

IGNORED = (
    "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "verbosity",
)  # fmt: skip
"""Parameters of OpenAI's that change no answer."""


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. Ranges of numbers are those of `GenerationSettings`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, neutral in UNSUPPORTED.items():
            if data.get(name) not in neutral:
                raise ValueError(f"{name} is not supported; leave it out")
        return {name: value for name, value in data.items() if name not in UNSUPPORTED and name not in IGNORED}

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def settings(self) -> GenerationSettings:
        """Settings of generation.

        Raises:
            ApiError: for a value out of range.
        """
        longest = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        given = {"max_new_tokens": longest} | {
            name: getattr(self, name)
            for name in ("temperature", "top_p", "seed", "top_k", "repetition_penalty", "num_beams")
        }
        try:
            return GenerationSettings(**{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            raise ApiError(400, str(error).replace("max_new_tokens", "max_tokens"), "invalid_value") from error


def read_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        ApiError: naming the first field that is wrong, without its value.
    """
    if too_many_json_values(body):
        raise ApiError(400, f"the request has more than {MAX_JSON_VALUES:,} values; send less", "invalid_request")
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = _path(first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = "is no parameter of this endpoint; leave it out (docs/serving.md lists them)"
        message = f"{param}: {reason}" if param else reason
        raise ApiError(400, message[:500], "invalid_request", param[:100] or None) from None
    longest = max(map(len, request.stops), default=1)
    if not all(request.stops) or len(request.stops) > MAX_STOPS or longest > MAX_STOP_LENGTH:
        message = f"stop takes up to {MAX_STOPS} texts of {MAX_STOP_LENGTH} characters, none of them empty"
        raise ApiError(400, message, "invalid_value", "stop")
    return request


def _path(loc: tuple[int | str, ...]) -> str:
    """Such as messages[0].content[1].text, without the names of the variants that pydantic tried."""
    path = ""
    variants = {"user", "system", "developer", "assistant", "text", "image_url", "video_url", "audio_url"}
    variants.add("input_audio")
    for before, part in zip((None, *loc), loc, strict=False):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (isinstance(before, int) and part in variants):
            path += f".{part}" if path else part
    return path


class TokenDetails(BaseModel):
    """`cached_tokens`: positions that had been read for an earlier request, and were not read again."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """`prompt_tokens` counts positions: tokens, and the rows of media."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class ChatBridgeFields(BaseModel):
    """Additions to OpenAI's format: the seed that was used, how many old turns did not fit, and remarks on the media
    of the question (a video whose sound cannot be decoded)."""

    seed: int | None = None
    dropped_turns: int = 0
    remarks: list[str] = []


Finish = Literal["stop", "length"]


class ResponseMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: ResponseMessage
    logprobs: None = None
    finish_reason: Finish


class Completion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    chatbridge: ChatBridgeFields


class OmitNone(BaseModel):
    """Leaves out fields that are None, as OpenAI does."""

    @model_serializer(mode="wrap")
    def _present(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class Delta(OmitNone):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: Finish | None = None


class Chunk(OmitNone):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    chatbridge: ChatBridgeFields | None = None


class ModelCard(BaseModel):
    """`modalities` is an addition to OpenAI's fields."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chatbridge"
    modalities: list[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
