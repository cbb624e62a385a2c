"""The watch tab: the film, a timeline that lights up where it was seen, and moments to press."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.demos.tab import Tab, picture

if TYPE_CHECKING:
    from longtake.request import Request
    from longtake.video.watch.answer import Answer

WIDTH, HEIGHT = 640, 70  # of the timeline, in its own units
COLUMNS = 320  # of the curve
FILM = "watch-film"
_SEEK = (
    "(function(s){{const v=document.querySelector('#" + FILM + " video');if(v){{v.currentTime=s;v.play();}}}})({:.2f})"
)


def _views() -> list[Any]:
    import gradio as gr

    film = gr.Video(label="Film", elem_id=FILM, interactive=False, height=320, buttons=[])
    moments = gr.HTML(label="Moments", padding=False, elem_classes="plots", js_on_load=None)
    pictures = gr.HTML(label="Pictures", padding=False, js_on_load=None)
    return [film, moments, pictures]


def show(output: Any, files: list[Path], request: Request) -> list[Any]:
    """The film, the timeline with the moments, the preview."""
    shown = next((path for path in files if path.suffix == ".png"), None)
    drawn = "" if shown is None else picture(shown, "the moments' pictures, and where in them it was seen")
    return [str(request.inputs["film"]), timeline(output), drawn]


def timeline(answer: Answer) -> str:
    """Likeness over time as a picture to press, and the moments as buttons; a press plays the film from there."""
    from longtake.video.watch.picture import clock

    seconds = max(answer.seconds, 1e-3)
    heights = [0.0] * COLUMNS
    for time, value in zip(answer.times, answer.curve, strict=True):
        place = min(COLUMNS - 1, int(time / seconds * COLUMNS))
        heights[place] = max(heights[place], float(value))
    top = max(1.0, *heights)
    filled, last = [], 0.0
    for value in heights:  # a column without a segment is as the one before
        last = value or last
        filled.append(last)
    step = WIDTH / COLUMNS
    points = " ".join(
        f"{(place + 0.5) * step:.1f},{HEIGHT * (1 - value / top):.1f}" for place, value in enumerate(filled)
    )
    marks, buttons = [], []
    for one in answer.moments:
        left, width = one.start / seconds * WIDTH, max(3.0, (one.end - one.start) / seconds * WIDTH)
        seek = _SEEK.format(one.start)
        marks.append(
            f'<rect x="{left:.1f}" y="0" width="{width:.1f}" height="{HEIGHT}" fill="var(--color-accent)" '
            f'opacity="{0.15 + 0.5 * min(1.0, max(0.0, one.score)):.2f}" style="cursor:pointer" onclick="{seek}"/>'
        )
        heard = "" if one.heard is None else f": “{html.escape(one.heard[:80])}”"
        buttons.append(
            f'<li><button type="button" class="moment" onclick="{seek}">▶ {clock(one.start)} to {clock(one.end)}'
            f"</button> score {one.score:.2f}{heard}</li>"
        )
    said = (
        "" if answer.words is None else f"<p><b>{html.escape(str(answer.model))}:</b> {html.escape(answer.words)}</p>"
    )
    caption = html.escape(f"likeness to “{answer.asked}” over {clock(seconds)}")
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{caption}">'
        f'<polyline points="{points}"/>{"".join(marks)}</svg><figcaption>{caption}</figcaption></figure>'
        f'<ol class="moments">{"".join(buttons)}</ol>{said}'
    )


TAB = Tab(views=_views, view_count=3, show=show, text="Question", lines=1)
