"""The real page in Debian's Chromium: what a user does, what it looks like, and what it loads."""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import pytest

from chatbridge.demo import view
from tests.demo.tools import SMALL, alone, page, slowly
from tests.patience import until

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDED = "these tests drive Debian's Chromium: apt-get install chromium, pip install playwright"

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

if (CHROMIUM is None or sync_playwright is None) and os.environ.get("CI") != "true":
    pytest.skip(NEEDED, allow_module_level=True)

MARKUP = "<script>hurt=1</script><img src=x onerror=hurt=1> **b** [l](javascript:hurt=1) &amp; <b\n  c"


@pytest.fixture(scope="module")
def running(tmp_path_factory, engine):
    with page(tmp_path_factory.mktemp("page"), [engine], parallel=1) as served:
        yield served


@pytest.fixture(scope="module")
def chromium():
    assert CHROMIUM is not None and sync_playwright is not None, NEEDED
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def pictures(tmp_path):
    """Where screenshots are kept."""
    folder = Path(os.environ.get("CHATBRIDGE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


ABORTED = "signal is aborted without reason"
"""Of a fetch that gradio's components give up when they are taken away, as its audio player does; ours aborts none."""


class Tab:
    """A page in the browser, and what it did: `wrong` are messages of its console, `foreign` requests elsewhere."""

    def __init__(self, chromium, running, width=1200, height=860, **context):
        permissions = ["microphone", "camera", "clipboard-read", "clipboard-write"]
        self.context = chromium.new_context(
            viewport={"width": width, "height": height}, permissions=permissions, **context
        )
        self.page = self.context.new_page()
        self.wrong, self.foreign = [], []
        self.page.on("console", lambda one: self.wrong.append(one.text) if one.type == "error" else None)
        self.page.on("pageerror", lambda error: str(error) == ABORTED or self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, running.address))
        self.page.goto(running.address)
        self.chat, self.box = self.page.locator("#chat0"), self.page.locator("#box textarea")
        self.box.wait_for()

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "blob:", "data:")):
            self.foreign.append(url)

    def ask(self, text: str, *files: Path) -> None:
        if files:
            self.page.set_input_files("#box input[type=file]", [str(file) for file in files])
            until(lambda: self.page.locator("#box .thumbnail-item").count() == len(files))
        self.box.fill(text)
        self.box.press("Enter")

    def idle(self) -> None:
        """Wait until the answer is complete."""
        self.page.locator("#box button.submit-button").wait_for()
        self.page.locator("#box button.stop-button").wait_for(state="hidden")

    def answers(self) -> list[str]:
        return [view.unescape(text) for text in self.chat.locator(".bot .message-content").all_inner_texts()]

    def answer(self, number: int = 0) -> str:
        """One of them, as far as it is shown; gradio takes a message away and puts it back when it draws anew."""
        return dict(enumerate(self.answers())).get(number, "")

    def status(self) -> str:
        return self.page.locator("#status").inner_text()

    def sideways(self) -> bool:
        """Whether the page can be scrolled sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def tab(chromium, running):
    opened = Tab(chromium, running)
    yield opened
    opened.close()
    assert opened.foreign == [] and opened.wrong == []


def plain(answer: str) -> str:
    """As a browser shows it: runs of white space at an end are nothing."""
    return answer.strip()


def test_a_visit(engine, files, tab, pictures):
    shown = [files["a.png"], files["loud.mp4"], files["a.wav"]]
    expected = alone(engine, ("what is it?", shown))[0]
    with slowly(engine):
        tab.ask("what is it?", *shown)
        tab.page.locator("#box button.stop-button").wait_for()
        until(lambda: 0 < len(tab.answer()) < len(expected))  # it streams
        tab.page.screenshot(path=pictures / "answering.png")
        tab.idle()
    until(lambda: tab.answers() == [plain(expected)])
    for kind, count in {"img": 3, "video": 1, "audio": 1}.items():
        until(lambda kind=kind, count=count: tab.chat.locator(f".cb-media {kind}").count() == count)
    for element in tab.chat.locator(".cb-media img").all():
        until(lambda element=element: element.evaluate("e => e.complete && e.naturalWidth > 0"))
    for kind in ("video", "audio"):
        until(lambda kind=kind: tab.chat.locator(f".cb-media {kind}").evaluate("e => e.readyState > 0 && !e.error"))
    tab.page.screenshot(path=pictures / "answered.png")

    tab.page.locator("#shown input[type=checkbox]").nth(2).click()  # the video's sound
    tab.chat.locator(".cb-muted").wait_for()
    tab.chat.locator("button[aria-label=Retry]:visible").click()
    until(lambda: "without sound of loud.mp4" in tab.chat.inner_text())
    tab.idle()
    muted = until(tab.answers)
    assert len(muted) == 1 and muted != [plain(expected)]
    tab.page.screenshot(path=pictures / "muted.png")

    with slowly(engine):
        tab.ask("and why?")
        until(lambda: tab.answer(1))
        tab.page.locator("#box button.stop-button").click()
        tab.idle()
    until(lambda: "stopped" in tab.chat.inner_text() and tab.answer(1))

    tab.page.locator("#new").click()
    tab.chat.locator(".cb-media").wait_for(state="detached")
    assert tab.answers() == [] and tab.page.locator("#shown").is_hidden()
    tab.chat.locator(".example").first.wait_for()


def test_text_is_shown_as_text_edited_and_copied(engine, tab, pictures):
    expected, other = alone(engine, (MARKUP, []))[0], alone(engine, (MARKUP + "!", []))[0]
    tab.box.fill(MARKUP)
    tab.page.locator("#box button.submit-button").click()
    until(lambda: tab.answers() == [plain(expected)])
    question = tab.chat.locator(".user .message-content").first
    assert view.unescape(question.inner_text()) == MARKUP
    assert question.locator("script, img, b, a").count() == 0 and tab.page.evaluate("window.hurt") is None
    tab.page.screenshot(path=pictures / "markup.png")
    tab.chat.locator("button[aria-label='Copy message']").first.click()
    assert tab.page.evaluate("navigator.clipboard.readText()") == MARKUP
    tab.chat.locator("button[aria-label=Edit]").click()
    editor = tab.chat.locator("textarea")
    assert view.unescape(editor.input_value()) == MARKUP
    editor.fill(editor.input_value() + "!")
    tab.chat.locator("button[aria-label=Submit]").click()
    until(lambda: tab.answers() == [plain(other)])
    assert view.unescape(question.inner_text()) == MARKUP + "!"


def test_an_example_saving_and_loading(tab, tmp_path):
    tab.chat.locator(".example").nth(2).click()
    until(lambda: len(tab.answers()) == 1)
    tab.idle()
    until(lambda: tab.chat.locator(".cb-media video").count() == 1)
    with tab.page.expect_download() as download:
        tab.page.locator("#save0").click()
    download.value.save_as(tmp_path / "saved.json")
    said = until(tab.answers)
    tab.page.locator("#new").click()
    tab.chat.locator(".example").first.wait_for()
    with tab.page.expect_file_chooser() as chooser:
        tab.page.locator("#load").click()
    chooser.value.set_files(tmp_path / "saved.json")
    until(lambda: tab.answers() == said)
    assert "1 turn loaded" in tab.status()


def test_what_is_wrong_is_said_on_the_page(tab, tmp_path, pictures):
    (tmp_path / "words.mp4").write_text("this is no video\n" * 50)
    tab.ask("what is it?", tmp_path / "words.mp4")
    tab.page.locator("#status [role=alert]").wait_for()
    assert tab.status() == "words.mp4: holds no picture, video or sound in a format that is accepted here"
    assert tab.box.input_value() == "what is it?" and tab.page.locator("#box .thumbnail-item").count() == 0
    tab.page.screenshot(path=pictures / "wrong.png")
    (tmp_path / "big.wav").write_bytes(bytes(SMALL.max_bytes + 1))
    tab.page.set_input_files("#box input[type=file]", str(tmp_path / "big.wav"))
    tab.page.get_by_text("exceed the maximum").first.wait_for()
    tab.box.fill("still there?")
    tab.box.press("Enter")
    until(lambda: len(tab.answers()) == 1)
    tab.wrong.clear()  # gradio reports the refused file in the console, too


HANDED_OVER = """([box, event, name, kind, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const carried = new DataTransfer();
    carried.items.add(new File([bytes], name, {type: kind}));
    const how = {bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried};
    const made = event === "paste" ? new ClipboardEvent(event, how) : new DragEvent(event, how);
    document.querySelector(box).dispatchEvent(made);
}"""
"""Drops or pastes a file, as the browser tells a page about it."""


def test_dropped_and_pasted(engine, tab, files):
    expected = alone(engine, ("what is it?", [files["a.wav"], files["a.png"]]))[0]
    for number, (event, name, kind) in enumerate((("drop", "a.wav", "audio/wav"), ("paste", "a.png", "image/png")), 1):
        data = base64.b64encode(files[name].read_bytes()).decode()
        place = "#box textarea" if event == "paste" else "#box .full-container"
        tab.page.evaluate(HANDED_OVER, [place, event, name, kind, data])
        until(lambda number=number: tab.page.locator("#box .thumbnail-item").count() == number)
    tab.ask("what is it?")
    until(lambda: tab.answers() == [plain(expected)])
    until(lambda: tab.chat.locator(".cb-media figure").count() == 2)


def test_camera_and_microphone(engine, tab):
    tab.page.get_by_text("Camera", exact=True).click()
    tab.page.locator("#camera button", has_text="Click to Access Webcam").click()
    until(lambda: tab.page.locator("#camera video").evaluate("video => video.videoWidth > 0 && video.readyState > 1"))
    tab.page.locator("#camera button[aria-label='capture photo']").click()
    until(lambda: tab.page.locator("#box .thumbnail-item").count() == 1)
    tab.page.locator("#box button[data-testid=microphone-button]").click()
    tab.page.locator("#box .record-button").click()
    tab.page.wait_for_timeout(700)
    tab.page.locator("#box button[aria-label='Stop recording']").click()
    tab.page.locator("#box button[aria-label='Attach audio']").click()
    until(lambda: tab.page.locator("#box .thumbnail-item").count() == 2)
    tab.box.fill("what do you see and hear?")
    tab.page.locator("#box button.submit-button").click()
    until(lambda: len(tab.answers()) == 1)
    until(lambda: tab.chat.locator(".cb-media figure").count() == 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_and_in_the_dark(engine, chromium, running, files, pictures, scheme):
    tab = Tab(chromium, running, 390, 844, color_scheme=scheme, is_mobile=True, has_touch=True)
    try:
        tab.page.screenshot(path=pictures / f"phone_{scheme}_empty.png")
        assert not tab.sideways()
        tab.ask("what is it? " + "a" * 60, files["loud.mp4"], files["a.wav"])
        tab.idle()
        until(lambda: len(tab.answers()) == 1)
        tab.page.get_by_text("How it answers").click()
        tab.page.get_by_text("Camera", exact=True).click()
        tab.page.screenshot(path=pictures / f"phone_{scheme}.png", full_page=True)
        assert not tab.sideways()
        background = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = sum(int(part) for part in background.strip("rgba()").split(",")[:3]) / 765
        assert (lightness < 0.2) == (scheme == "dark")
        assert tab.wrong == [] and tab.foreign == []
    finally:
        tab.close()


def test_side_by_side_and_a_full_queue(chromium, engine, tmp_path, files, pictures):
    with page(tmp_path, [engine, engine], names=["a/one", "b/two"], parallel=1, max_waiting=1) as running:
        tabs = [Tab(chromium, running) for _ in range(3)]
        with slowly(engine, 0.1):
            tabs[0].ask("what is it?", files["a.png"])
            until(tabs[0].answer)
            tabs[1].ask("and mine?")
            tabs[1].page.get_by_text("queue:").first.wait_for()
            tabs[2].ask("and me?")
            tabs[2].page.get_by_text("currently busy").first.wait_for()
            tabs[2].page.locator("#status [role=alert]", has_text="as many questions waiting as may wait").wait_for()
            assert tabs[2].box.input_value() == "and me?"
            tabs[2].page.screenshot(path=pictures / "full.png")
            tabs[0].page.locator("#box button.stop-button").click()
            tabs[0].idle()
        tabs[0].page.screenshot(path=pictures / "compared.png")
        for number in range(2):
            until(lambda n=number: tabs[0].page.locator(f"#chat{n} .bot .message-content").count() == 1)
        assert tabs[0].page.get_by_text("b/two").count()
        for tab in tabs:
            tab.close()
