"""The medical tab: slices and time to scroll through, mean beside uncertainty, and the montage with single samples."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.demos.tab import SAMPLES, Tab, picture

if TYPE_CHECKING:
    from longtake.request import Request

COMMAND = "longtake medical sample --at 24 --unit months --out growth.html --preview growth.png"


def _views() -> list[Any]:
    import gradio as gr

    page, sheet = SAMPLES / "growth.html", SAMPLES / "growth.png"
    shown = _frame(page.read_text(encoding="utf-8")) if page.is_file() else _frame(_EMPTY)
    montage = picture(sheet, "history, mean, samples, difference, deviation") if sheet.is_file() else ""
    viewer = gr.HTML(shown, label="Slices and time", padding=False, elem_classes="viewer", js_on_load=None)
    with gr.Accordion("All at a glance: history, mean, single samples, difference, deviation", open=False):
        glance = gr.HTML(montage, label="Montage", js_on_load=None)
    told = gr.Markdown(_told(None))
    with gr.Accordion("How scans are given", open=False):
        gr.Markdown(_HELP)
    return [viewer, glance, told]


def show(output: Any, files: list[Path], request: Request) -> list[Any]:
    """The viewer, the montage, and what the readers noticed."""
    from longtake.medical.viewer import viewer

    with tempfile.TemporaryDirectory() as folder:
        sheet = output.preview(Path(folder) / "montage.png")
        montage = picture(sheet, "history, mean, samples, difference, deviation")
    return [_frame(viewer(output)), montage, _told(output)]


def _told(output: Any) -> str:
    line = "**Synthetic images for research, not for clinical use.**"
    if output is None:
        return line
    made = output.prediction
    line += (
        f" {len(made.samples)} samples; the {made.level:.0%} interval: "
        f"{html.escape(str(made.info.get('calibration', '')))}."
    )
    notes = [f"- {html.escape(note)}" for note in made.series.notes[:8]]
    return "\n".join([line, "", *notes])


def _frame(text: str) -> str:
    """A page in a frame of its own."""
    return (
        '<iframe title="viewer: wheel or arrows scroll through slices and time" sandbox="allow-scripts" '
        f'srcdoc="{html.escape(text)}"></iframe>'
    )


_EMPTY = (
    "<!doctype html><html><head><style>:root{color-scheme:light dark} body{font:16px system-ui;margin:16px}</style>"
    "</head><body>The viewer comes here.</body></html>"
)
_HELP = """
Give the files of **one subject**: NIfTI (`.nii.gz`), one for each visit, named by time (`visit_m06.nii.gz`,
`scan_d129`, `2019-03-04`), or with a table `longtake.csv` (`session,path,time,unit`). Grey pictures serve for single
films. One NIfTI with a time axis is a series too. Times to predict count from the first visit. The sample is a
simulated head with a growing lesion.
"""

TAB = Tab(
    views=_views, view_count=3, show=show, usual=(".nii.gz", ".html"),
    kinds=(".nii.gz", ".nii", ".npz", ".html", ".gif", ".png"), sample=COMMAND,
)  # fmt: skip
