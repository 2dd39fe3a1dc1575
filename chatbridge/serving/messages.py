"""Parses the messages of a request into a conversation, and finds its media."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from chatbridge.inference import Engine, Exchange, GenerationSettings, Medium
from chatbridge.inference.limits import MediaLimits
from chatbridge.processors.base import Blob, MediaError
from chatbridge.serving.errors import ApiError, media_error
from chatbridge.serving.protocol import (
    AssistantMessage,
    AudioPart,
    ChatRequest,
    ImagePart,
    InputAudioPart,
    MediaPart,
    SystemMessage,
    TextPart,
    UserMessage,
    VideoPart,
)


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """What a request asks for.

    Attributes:
        turns: the conversation, whose last question is to be answered.
        settings, stops: of generation, and texts that end the answer.
        owner: of the request; what is read for one owner is not reused for another.
    """

    turns: list[Exchange]
    settings: GenerationSettings
    stops: tuple[str, ...] = ()
    owner: str = ""


@dataclass(frozen=True, kw_only=True)
class RequestParser:
    """Parses requests.

    Args:
        engine: the model. limits: on media.
        folder: files below it may be named by requests; None for none.
        system: how system messages are treated: "refuse", "ignore", or "prepend" to the first question.
    """

    engine: Engine
    limits: MediaLimits
    folder: Path | None = None
    system: str = "refuse"

    def parse(self, request: ChatRequest, owner: str = "") -> ParsedRequest:
        """The conversation and settings. Media are checked and hashed here, and decoded when they are needed.

        Raises:
            ApiError: messages in an order that is no conversation; media that cannot be used.
        """
        settings = request.settings()
        self._check_count(request)
        turns: list[Exchange] = []
        system: list[str] = []
        for number, message in enumerate(request.messages):
            where = f"messages[{number}]"
            if isinstance(message, SystemMessage):
                system += self._system_text(message, where, first=not turns)
            elif isinstance(message, AssistantMessage):
                if not turns or turns[-1].answer is not None:
                    raise _wrong(where, "an answer must follow a user's message")
                turns[-1].answer = _joined(message.content)
            else:
                turns.append(self._exchange(message, where, system))
                system = []
        if not turns or turns[-1].answer is not None:
            raise _wrong("messages", "the last message must be the user's; answers are not continued")
        return ParsedRequest(turns=turns, settings=settings, stops=request.stops, owner=owner)

    def _check_count(self, request: ChatRequest) -> None:
        users = [message for message in request.messages if isinstance(message, UserMessage)]
        count = sum(not isinstance(part, TextPart) for message in users for part in message.content)
        try:
            self.limits.check_count(count)
        except MediaError as error:
            raise media_error(error, "messages") from error

    def _system_text(self, message: SystemMessage, where: str, first: bool) -> list[str]:
        """What a system message adds in front of the next question."""
        text = _joined(message.content)
        if not text.strip() or self.system == "ignore":
            return []
        if self.system == "refuse":
            raise _wrong(
                where,
                "this model was trained without system messages; write it into the user's message, or let the server "
                "be started with --system-messages prepend (or ignore)",
            )
        if not first:
            raise _wrong(where, "a system message must come before the first question")
        return [text]

    def _exchange(self, message: UserMessage, where: str, system: Sequence[str]) -> Exchange:
        text = _joined([part for part in message.content if isinstance(part, TextPart)])
        media: list[Medium] = []
        for number, part in enumerate(message.content):
            if not isinstance(part, TextPart):
                media += self._media(part, f"{where}.content[{number}]")
        if not text and not media:
            raise _wrong(where, "nothing is asked and nothing shown; give a text or a medium")
        return Exchange("\n".join(filter(None, [*system, text])), media)

    def _media(self, part: MediaPart, where: str) -> list[Medium]:
        """The medium of a part, a video's sound behind it."""
        try:
            if isinstance(part, InputAudioPart):
                source = self._embedded(part.input_audio.data, f"the sound in {where}")
                return [self._checked(source, "audio")]
            if isinstance(part, ImagePart):
                return [self._checked(self._source(part.image_url.url, where), "image")]
            if isinstance(part, AudioPart):
                return [self._checked(self._source(part.audio_url.url, where), "audio")]
            assert isinstance(part, VideoPart)
            video = self._checked(self._source(part.video_url.url, where), "video")
            return self.engine.video(video, part.video_url.sound)
        except MediaError as error:
            raise media_error(self.without_folder(error), where) from error

    def _checked(self, source: Path | Blob, modality: str) -> Medium:
        self.limits.check(source, modality)
        return self.engine.medium(source, modality)

    def _source(self, url: str, where: str) -> Path | Blob:
        if url[:5].lower() == "data:":
            head, comma, data = url.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise MediaError(where, "is no data URL in base64, such as data:image/png;base64,...")
            return self._embedded(data, f"the medium in {where}")
        scheme, sign, _ = url.partition("://")
        if sign and scheme.lower() in ("http", "https", "ftp", "s3"):
            raise MediaError(where, f"{scheme}:// addresses are not fetched; send the content as a data URL")
        return self._file(url, where)

    def _embedded(self, data: str, name: str) -> Blob:
        self.limits.check_bytes(name, len(data) * 3 // 4 - 2)
        try:
            return Blob(name, base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError) as error:
            raise MediaError(name, "is not base64") from error

    def _file(self, url: str, where: str) -> Path:
        """A file below the media folder. Files outside it and missing ones give the same error."""
        if self.folder is None:
            raise MediaError(where, "names a file, and this server has no --media-folder; send a data URL")
        not_found = MediaError(where, "names no file below the media folder")
        name = url
        if url[:7].lower() == "file://":
            host, slash, rest = url[7:].partition("/")
            if host not in ("", "localhost"):
                raise not_found
            name = unquote(slash + rest)
        folder = self.folder.resolve()
        try:
            file = (folder / name).resolve(strict=True)  # follows links, which may lead out of the folder
        except (OSError, ValueError, RuntimeError):
            raise not_found from None
        if not file.is_relative_to(folder) or not file.is_file():
            raise not_found
        return file

    def without_folder(self, error: MediaError) -> MediaError:
        """The same error without the path of the media folder."""
        if self.folder is None:
            return error
        places = {f"{place}/" for place in (self.folder, self.folder.resolve())}
        source, reason = error.source, error.reason
        for place in places:
            source, reason = source.replace(place, ""), reason.replace(place, "")
        return type(error)(source, reason)


def _joined(parts: Sequence[TextPart]) -> str:
    return "\n".join(part.text for part in parts)


def _wrong(where: str, reason: str) -> ApiError:
    return ApiError(400, f"{where}: {reason}", "invalid_messages", where)
