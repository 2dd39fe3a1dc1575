"""How the page looks: a theme without fonts from elsewhere, and what the theme cannot say."""

from __future__ import annotations

import html

import gradio as gr

SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    """Gradio's plainest theme in blue and slate."""
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="lg", font=SANS, font_mono=MONO).set(
        body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950"
    )


def head(title: str, about: str) -> str:
    """The heading, as HTML."""
    return f'<header class="cb-head"><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p></header>'


CSS = """
.gradio-container {max-width: 1280px !important; width: 100%; margin: 0 auto !important; padding: 14px !important}
.cb-head {display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 14px; padding: 0 4px}
.cb-head h1 {font-size: 1.35rem; letter-spacing: -.01em; margin: 0}
.cb-head p {color: var(--body-text-color-subdued); margin: 0; font-size: .88rem; overflow-wrap: anywhere}
.cb-page {align-items: flex-start}
.cb-main, .cb-side {gap: 10px !important}
.cb-chat .placeholder {font-size: 1.05rem; color: var(--body-text-color-subdued); padding: 0 16px}
.cb-status {min-height: 1.4em; font-size: .82rem; line-height: 1.4; color: var(--body-text-color-subdued);
  overflow-wrap: anywhere; white-space: pre-line; padding: 0 4px}
.cb-status.wrong {color: var(--error-text-color); background: var(--error-background-fill);
  border: 1px solid var(--error-border-color); border-radius: 8px; padding: 8px 12px; font-size: .88rem}
.cb-media {display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-end; margin: 0 0 6px}
.cb-media figure {margin: 0; width: fit-content; max-width: 100%; min-width: 0}
.cb-media a {display: block; margin: 0 !important; padding: 0 !important; line-height: 0}
.cb-media img, .cb-media video {display: block; width: auto; height: 132px; max-width: 100%; object-fit: contain;
  border-radius: 8px; margin: 0 !important; padding: 0 !important}
.cb-media audio {display: block; width: 100%; min-width: 220px; height: 32px; margin-bottom: 4px}
.dark .cb-media {color-scheme: dark}
.cb-media figure.wide img {height: 96px}
.cb-media figure small {display: block; opacity: .75}
.cb-media figcaption {font-size: .75rem; line-height: 1.3; color: var(--body-text-color-subdued);
  overflow-wrap: anywhere; margin-top: 4px}
.cb-media figure.muted img, .cb-media figure.muted video {opacity: .2}
.cb-media figure.muted .cb-name {text-decoration: line-through}
.cb-muted {display: inline-block; margin-left: 6px; padding: 0 7px; border-radius: 99px; border: 1px solid currentColor;
  font-size: .7rem}
.cb-note {font-size: .78rem; color: var(--body-text-color-subdued)}
.cb-chat > .wrap:has(.error) {display: none !important}
.cb-chat .message:has(> .component .cb-media), .cb-chat .message:has(.cb-media), .cb-chat .message:has(.cb-note)
  {border: 0 !important; background: none !important; box-shadow: none !important; padding: 0 !important}
.cb-chat .message-content .md {white-space: pre-wrap}
.cb-chat .message-row:has(.cb-note) + .message-buttons {display: none}
.cb-buttons {gap: 8px !important; flex-wrap: nowrap !important}
.cb-buttons > * {min-width: 0 !important}
#box button.submit-button {background: var(--button-primary-background-fill); color: var(--button-primary-text-color)}
@media (min-width: 641px) {
  .cb-main {height: max(480px, calc(100dvh - 126px))}
  .cb-main > .cb-chats {flex: 1 1 0; min-height: 240px; align-items: stretch}
  .cb-chat {height: 100% !important}
}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important}
  .cb-chat {height: max(320px, calc(100dvh - 240px)) !important}
  .cb-chat ~ .cb-chat, .cb-chat:has(~ .cb-chat) {height: max(300px, calc(50dvh - 60px)) !important}
}
"""

SCRIPT = """<script>
// The chat keeps "<" and "&" apart from what follows by an invisible character (view.py); copies go without it.
(() => {
  const plain = (text) => text.replace(/([<&])\\u200b/g, "$1");
  document.addEventListener("copy", (event) => {
    const text = String(window.getSelection() ?? "");
    if (plain(text) !== text && event.clipboardData) {
      event.clipboardData.setData("text/plain", plain(text));
      event.preventDefault();
    }
  });
  const board = navigator.clipboard;
  if (board?.writeText) {
    const write = board.writeText.bind(board);
    board.writeText = (text) => write(plain(text));
  }
})();
</script>"""
