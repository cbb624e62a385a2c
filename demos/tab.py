"""What a tab shows of a modality's results; one without a file here gets its files, a preview and a word.

tab = tab_of("motion")          # demos/motion_tab.py's TAB
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.request import Request


@dataclass(frozen=True)
class Tab:
    """views: builds the components of the result, so many, with a finished sample in them where one ships;
    show(output, files, request) gives their values. glimpse(pipe, clean, path) draws a preview of the clean estimate,
    None draws none. usual: suffixes ticked at the start; kinds: those that can be had, None for all of the domain's;
    gap: seconds between a prompt and one added after it. text, lines: label and height of a prompt without times.
    sample: the command that made what is shown at first."""

    views: Callable[[], list[Any]]
    view_count: int
    show: Callable[[Any, list[Path], Request], list[Any]]
    glimpse: Callable[[Any, Any, Path], None] | None = None
    usual: tuple[str, ...] = ()
    kinds: tuple[str, ...] | None = None
    gap: float = 4.0
    text: str = "Text"
    lines: int = 4
    sample: str = ""


SAMPLES = Path(__file__).parent / "samples"  # made by the commands that the tabs name


def tab_of(name: str) -> Tab:
    """The tab of a domain."""
    module = f"longtake.demos.{name}_tab"
    try:
        found: Tab = import_module(module).TAB
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return _PLAIN
    return found


def picture(path: Path, words: str) -> str:
    """A png file as HTML that needs no other file."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img class="glimpse" src="data:image/png;base64,{data}" alt="{html.escape(words)}">'


def _plain_views() -> list[Any]:
    import gradio as gr

    return [gr.HTML(label="Result", elem_classes="plain", js_on_load=None)]


def _plain_show(output: Any, files: list[Path], request: Request) -> list[Any]:
    for path in files:
        if path.suffix == ".png":
            return [picture(path, "preview of the result")]
    return [f"<p>{html.escape(', '.join(path.name for path in files))}</p>"]


_PLAIN = Tab(views=_plain_views, view_count=1, show=_plain_show)
