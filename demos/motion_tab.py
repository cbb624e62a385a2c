"""The motion tab: a 3-D view to turn, with captions running along, and files for Blender and game engines."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.demos.tab import SAMPLES, Tab

if TYPE_CHECKING:
    from longtake.request import Request


def _views() -> list[Any]:
    import gradio as gr

    text = (SAMPLES / "walk.html").read_text(encoding="utf-8")
    viewer = gr.HTML(_frame(text), label="Motion", padding=False, elem_classes="viewer", js_on_load=None)
    with gr.Accordion("Figures: jerk, root step and foot skate at each transition", open=False):
        seams = gr.Textbox(label="Transitions", show_label=False, lines=3, max_lines=14, elem_classes="mono")
    return [viewer, seams]


def _frame(text: str) -> str:
    """A viewer page in a frame of its own."""
    return (
        '<iframe title="3-D view of the motion: drag to turn, wheel to zoom, space to play" sandbox="allow-scripts" '
        f'srcdoc="{html.escape(text)}"></iframe>'
    )


def show(output: Any, files: list[Path], request: Request) -> list[Any]:
    """The viewer page in a frame of its own, and the seam report."""
    with tempfile.TemporaryDirectory() as folder:
        page = next((path for path in files if path.suffix == ".html"), None)
        text = (page or output.save(Path(folder) / "viewer.html")).read_text(encoding="utf-8")
    return [_frame(text), output.seams().text() if output.boundaries else "One prompt: there are no transitions."]


def glimpse(pipe: Any, clean: Any, path: Path) -> None:
    """Eight poses of the clean estimate (N, J)."""
    from longtake.motion.export.film import render_sheet

    frames = [round(place * (len(clean) - 1) / 7) for place in range(8)]
    joints = pipe.space.joints(clean.float()).cpu().numpy()
    render_sheet(path, [joints], pipe.space.form.skeleton, frames=frames)


TAB = Tab(
    views=_views,
    view_count=2,
    show=show,
    glimpse=glimpse,
    usual=(".bvh", ".glb", ".html", ".npz"),
    sample='longtake motion "0s: a person walks | 4s: waves with the right hand | 7s: runs" --seconds 11 --seed 1 '
    "--out walk.html",
)
