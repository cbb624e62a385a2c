"""The motion tab: a 3-D view to turn, with captions running along, and files for Blender and game engines."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.demos.studio import Example, Modality, Setting, command_of, python_of

if TYPE_CHECKING:
    from longtake.timeline import Timeline


def _views() -> list[Any]:
    import gradio as gr

    return [
        gr.HTML(label="Motion", elem_classes="viewer", js_on_load=None),
        gr.Textbox(label="Transitions: jerk, root step, foot skate", lines=3, max_lines=14, elem_classes="mono"),
    ]


def _settings() -> list[Setting]:
    import gradio as gr

    return [
        Setting("handshake", lambda: gr.Slider(4, 38, 20, step=1, label="Handshake: frames that neighbours share")),
        Setting("people", lambda: gr.Radio([1, 2], value=1, label="People (two hear the same prompts)")),
        Setting("lock_feet", lambda: gr.Checkbox(False, label="Lock feet: standing feet do not slide")),
    ]


def show(output: Any, files: list[Path], timeline: Timeline) -> list[Any]:
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


def command(job: dict[str, Any]) -> str:
    """The line to type in a terminal."""
    from longtake.motion.jobs import FPS

    given = job["parameters"]
    more = ["--handshake", str(given["handshake"])]
    more += ["--people", "2"] if given["people"] == 2 else []
    more += ["--lock-feet"] if given["lock_feet"] else []
    return command_of(job, ["--seconds", f"{given['frames'] / FPS:g}"], more, given["outputs"])


def python(job: dict[str, Any]) -> str:
    """The same in Python."""
    given = job["parameters"]
    call = "pipe.pair" if given["people"] == 2 else "pipe"
    after = ["out.lock_feet()"] if given["lock_feet"] else []
    return python_of(
        job, "LongMotionPipeline", prompt=repr(job["timeline"]), call=call, after=after, handshake=given["handshake"]
    )


def modality() -> Modality:
    """What the page knows of motion."""
    return Modality(
        name="motion",
        title="Motion",
        about="Long human motion from prompts: walking, turning, running, waving, bowing… in any order, as long as you "
        "like. The model that ships was trained on three hours of labelled clips; its weights are non-commercial "
        "(CC BY-NC 4.0).",
        jobs="longtake.motion.jobs",
        examples=(
            Example("Walk, wave, run", "0s: a person walks | 4s: waves with the right hand | 7s: runs", 11),
            Example("Slowly, then back", "0s: walks like an elderly person | 5s: a person walks backwards", 9, 4),
            Example("A short bow", "0s: someone bows", 4, 2),
            Example("Two wave", "0s: two people wave to each other", 4, 3, {"people": 2}),
        ),
        seconds=8.0,
        most_seconds=600.0,
        gap=4.0,
        kinds=(".bvh", ".glb", ".html", ".npz", ".csv", ".mp4", ".gif"),
        usual=(".bvh", ".glb", ".html", ".npz"),
        views=_views,
        view_count=2,
        show=show,
        glimpse=glimpse,
        python=python,
        command=command,
        settings=tuple(_settings()),
    )
