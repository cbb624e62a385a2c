"""The motion tab: a 3-D view to turn, with captions running along, and files for Blender and game engines."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.demos.tab import Tab

if TYPE_CHECKING:
    from longtake.request import Request


def _views() -> list[Any]:
    import gradio as gr

    return [
        gr.HTML(label="Motion", elem_classes="viewer", js_on_load=None),
        gr.Textbox(label="Transitions: jerk, root step, foot skate", lines=3, max_lines=14, elem_classes="mono"),
    ]


def show(output: Any, files: list[Path], request: Request) -> list[Any]:
    """The viewer page in a frame of its own, and the seam report."""
    with tempfile.TemporaryDirectory() as folder:
        page = next((path for path in files if path.suffix == ".html"), None)
        text = (page or output.save(Path(folder) / "viewer.html")).read_text(encoding="utf-8")
    frame = (
        '<iframe title="3-D view of the motion: drag to turn, wheel to zoom, space to play" sandbox="allow-scripts" '
        f'srcdoc="{html.escape(text)}"></iframe>'
    )
    return [frame, output.seams().text() if output.boundaries else "One prompt: there are no transitions."]


def glimpse(pipe: Any, clean: Any, path: Path) -> None:
    """Eight poses of the clean estimate (N, J)."""
    from longtake.motion.export.film import render_sheet

    frames = [round(place * (len(clean) - 1) / 7) for place in range(8)]
    joints = pipe.space.joints(clean.float()).cpu().numpy()
    render_sheet(path, [joints], pipe.space.form.skeleton, frames=frames)


TAB = Tab(views=_views, view_count=2, show=show, glimpse=glimpse, usual=(".bvh", ".glb", ".html", ".npz"))
