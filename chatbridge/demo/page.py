"""The page: its components, and the handlers of their events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from chatbridge.demo.conversation_store import ConversationStore
from chatbridge.demo.examples import ChatExample
from chatbridge.demo.generation_controls import controls
from chatbridge.demo.handlers import Handlers
from chatbridge.demo.style import head
from chatbridge.demo.view import status

SAVE = "() => setTimeout(() => document.querySelector('button.cb-save').click(), 100)"

BUSY = "The server is busy, with as many questions waiting as may wait, or cannot be reached. Try again in a minute."


@dataclass(frozen=True)
class PageText:
    """Texts of the page.

    Attributes:
        title: of the window. models: their names. about: the line below the heading.
    """

    title: str
    models: Sequence[str]
    about: str


class ChatBlocks(gr.Blocks):
    """Passes on values as validated by api_calls.py; gradio's own preprocessing fails with tracebacks on odd ones."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *_: Any, **__: Any) -> list[Any]:
        try:
            return [_in_range(block, value) for block, value in zip(block_fn.inputs, inputs, strict=True)]
        except gr.Error as error:
            error.print_exception = False
            raise


def _in_range(block: Any, value: Any) -> Any:
    """Numbers rounded to their slider's steps; gr.Error for one out of range."""
    return value if value is None or not isinstance(block, gr.Slider | gr.Number) else block.preprocess(value)


class Page:
    """Builds the page.

    Args:
        parallel: answers at a time.
    """

    def __init__(
        self, conversations: ConversationStore, text: PageText, examples: Sequence[ChatExample], parallel: int = 2
    ):
        self.conversations, self.text, self.examples, self.parallel = conversations, text, examples, parallel
        self.sliders = controls(conversations.engines[0])
        self.handlers = Handlers(conversations, self.sliders, examples)

    def build(self) -> gr.Blocks:
        """All components and events."""
        with ChatBlocks(title=self.text.title, analytics_enabled=False, fill_width=True) as page:
            gr.HTML(head(self.text.title, self.text.about), padding=False)
            with gr.Row(elem_classes="cb-page"):
                with gr.Column(scale=3, min_width=300, elem_classes="cb-main"):
                    self._chat()
                with gr.Column(scale=1, min_width=260, elem_classes="cb-side"):
                    self._panel()
            self._wire(page)
        return page

    def _chat(self) -> None:
        compared = len(self.text.models) > 1
        with gr.Row(elem_classes="cb-chats"):
            self.chats = [self._one_chat(number, name, compared) for number, name in enumerate(self.text.models)]
        self.status = gr.HTML("", elem_id="status", padding=False)
        self.box = gr.MultimodalTextbox(
            elem_id="box",
            show_label=False,
            placeholder="Ask; drop, paste or record media",
            sources=["upload", "microphone"],
            file_count="multiple",
            max_plain_text_length=10**9,  # gradio would turn longer texts into files
            max_lines=8,
        )

    def _one_chat(self, number: int, name: str, compared: bool) -> gr.Chatbot:
        offered = [{"text": example.text, "files": [str(file) for file in example.files]} for example in self.examples]
        return gr.Chatbot(
            elem_id=f"chat{number}",
            elem_classes="cb-chat",
            label=name,
            show_label=compared,
            height=None,
            min_width=300,
            layout="bubble",
            buttons=["copy"],
            feedback_options=None,
            editable="user" if number == 0 else None,
            render_markdown=False,
            sanitize_html=True,
            allow_tags=False,
            latex_delimiters=[],
            group_consecutive_messages=False,  # in a bubble with media, gradio cannot edit the text
            examples=offered if number == 0 else None,
            placeholder="Try one of these, or ask about your own pictures, videos and sounds."
            if number == 0
            else "The same questions are put to this model.",
        )

    def _panel(self) -> None:
        self.shown = gr.CheckboxGroup(
            [],
            elem_id="shown",
            label="The model sees and hears",
            info="Untick something and ask again: would it say the same without?",
            visible=False,
        )
        with gr.Accordion("How it answers", open=False):
            for slider in self.sliders:
                slider.render()
            seed = gr.Number(
                -1, label="Seed", info="of sampling; -1 draws one", precision=0, minimum=-1, elem_id="seed"
            )
            self.settings: list[Any] = [*self.sliders, seed]
        if "image" in self.conversations.engines[0].modalities:
            with gr.Accordion("Camera", open=False):
                self.camera = gr.Image(
                    sources=["webcam"], type="filepath", show_label=False, elem_id="camera", height=200, buttons=[]
                )
        else:
            self.camera = None
        with gr.Row(elem_classes="cb-buttons"):
            self.new = gr.Button("New conversation", elem_id="new")
        with gr.Row(elem_classes="cb-buttons"):
            names = ["Save"] if len(self.text.models) == 1 else ["Save left", "Save right"]
            self.saves = [gr.Button(name, size="sm", elem_id=f"save{n}") for n, name in enumerate(names)]
            self.load = gr.UploadButton("Load", file_types=[".json"], size="sm", elem_id="load")
            self.saved = gr.DownloadButton("saved", visible="hidden", elem_classes="cb-save")

    def _wire(self, page: gr.Blocks) -> None:
        handlers, everything = self.handlers, [*self.chats, self.box, self.shown, self.status]
        slow: dict[str, Any] = {
            "outputs": everything,
            "concurrency_id": "answer",
            "concurrency_limit": self.parallel,
            "show_progress": "minimal",
            "show_progress_on": self.chats,
        }
        private = {"api_visibility": "private"}  # for the page only
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        asked = [self.box.submit(handlers.ask, [self.box, *self.settings], api_name="ask", **slow)]
        self.box.stop(handlers.stop, None, self.status, api_name="stop", **quick)
        self.new.click(handlers.clear, None, everything, api_name="clear", **quick)
        for chat in self.chats:
            asked.append(chat.retry(handlers.regenerate, self.settings, **(private if asked[1:] else {}), **slow))
            chat.clear(handlers.clear, None, everything, **private, **quick)
        asked.append(self.chats[0].edit(handlers.edit, self.settings, **private, **slow))
        asked.append(self.chats[0].example_select(handlers.example, self.settings, **private, **slow))
        for event in asked:  # the request was refused, or the server is gone
            event.failure(None, None, self.status, js=f"() => {json.dumps(status(BUSY, wrong=True))}")
        self.shown.input(handlers.mute, self.shown, everything, api_name="mute", **quick)
        for save, event, name in zip(
            self.saves, (handlers.save, handlers.save_other), ("save", "save_other"), strict=False
        ):
            written = save.click(event, None, [self.saved, self.status], api_name=name, **quick)
            written.success(None, js=SAVE)
        self.load.upload(handlers.load, self.load, everything, api_name="load", queue=False)
        if self.camera is not None:
            self.camera.input(handlers.picture, [self.box, self.camera], [self.box, self.camera], **private, **quick)
        page.unload(handlers.leave)
