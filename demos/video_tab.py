"""The video tab: the film, and beside it what each frame changes and how alike it stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.demos.plots import line_plot
from longtake.demos.tab import SAMPLES, Tab

if TYPE_CHECKING:
    import numpy as np
    from longtake.request import Request

WINDOW = 16  # frames at a segment's start that the later ones are compared with


CRISP = 384  # pixels that a small film is blown up to, in whole steps, with hard edges


def _views() -> list[Any]:
    import gradio as gr

    film = gr.Video(
        str(SAMPLES / "running.mp4"), label="Film", show_label=False, loop=True, autoplay=True, interactive=False,
        height=CRISP, elem_classes=["film", "crisp"],
    )  # fmt: skip
    with gr.Accordion("Figures: what each frame changes, and how alike it stays", open=False):
        plots = gr.HTML(label="Plots", elem_classes="plots", js_on_load=None)
    return [film, plots]


def film_view(path: Path, height: int, width: int) -> Any:
    """A film in the page: a small one in whole multiples of its size with hard edges, another as large as there is
    room."""
    import gradio as gr

    times = CRISP // max(height, width)
    if times < 2:
        return gr.update(value=str(path), height=min(height, 540), elem_classes=["film"])
    return gr.update(value=str(path), height=times * height, elem_classes=["film", "crisp"])


def likeness(latents: np.ndarray, starts: list[int]) -> np.ndarray:
    """How alike each frame is to the start of its prompt: cosine of its latents (F, c, h, w) to the mean of the first
    16 from the prompt's start, (F,) float64. A fall that does not end shows a subject that is being lost.

    starts: the latents at which prompts start."""
    import numpy as np

    flat = latents.reshape(len(latents), -1).astype(np.float64)
    out = np.empty(len(flat))
    for start, stop in zip(starts, [*starts[1:], len(flat)], strict=True):
        mean = flat[start : min(start + WINDOW, stop)].mean(0)
        norms = np.linalg.norm(flat[start:stop], axis=1) * np.linalg.norm(mean)
        out[start:stop] = flat[start:stop] @ mean / np.maximum(norms, 1e-12)
    return out


def latents_of(frames: int, latents: int) -> np.ndarray:
    """Which of the latents holds each frame of a film, (frames,) int64: its own, or that of the so many frames that a
    video transformer's VAE makes of one, of which the first latent has one alone."""
    import numpy as np

    stride = max(1, -(-(frames - 1) // max(latents - 1, 1)))
    return np.minimum((np.arange(frames) + stride - 1) // stride, latents - 1)


def show(output: Any, files: list[Path], request: Request) -> list[Any]:
    """The film, and two plots over time with the changes of the prompt."""
    from longtake.media import read_video
    from longtake.video.metrics import frame_steps

    film = next(path for path in files if path.suffix in (".mp4", ".gif"))
    frames, fps = read_video(film)
    starts = [start for start, _ in request.timeline.starts] if request.timeline is not None else [0]
    marks = [start / fps for start in starts[1:]]
    plots = ""
    if len(frames) > 2:
        plots = line_plot(
            "Change from frame to frame (grey levels): a cut would stand out", frame_steps(frames), fps, marks, low=0.0
        )
        holds = latents_of(len(frames), len(output.latents))
        alike = likeness(output.latents.numpy(), [int(holds[min(start, len(frames) - 1)]) for start in starts])[holds]
        plots += line_plot("Likeness to the start of the prompt (cosine of latents)", alike, fps, marks, high=1.0)
    return [film_view(film, *frames.shape[1:3]), plots]


def glimpse(pipe: Any, clean: Any, path: Path) -> None:
    """Eight frames of the clean estimate (n, c, h, w); of a video transformer, eight latent frames as stills."""
    import torch
    from longtake.media import contact_sheet

    places = torch.linspace(0, len(clean) - 1, min(8, len(clean))).round().long()
    if hasattr(pipe, "record"):
        from longtake.video.dit.decode import stills

        frames = list(stills(pipe.stock, clean, places.tolist()))
    else:
        from longtake.video.decode import decode_chunk

        frames = list(decode_chunk(pipe.vae, clean[places.to(clean.device)]))
    contact_sheet(frames, path, columns=8)


TAB = Tab(
    views=_views,
    view_count=2,
    show=show,
    glimpse=glimpse,
    sample='longtake video "a barbarian runs" --frames 96 --seed 1 --out running.mp4',
)
