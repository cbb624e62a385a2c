"""Nodes of ComfyUI that make, extend, redo and check long videos: each is a call of longtake and nothing more.

Definitions are ComfyUI's V1 ones (docs.comfy.org, custom-nodes/backend/server_overview). An IMAGE is a torch tensor
(frames, height, width, 3), float32 in 0..1. longtake is imported when a node works: ComfyUI starts as fast as before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

PIPELINE, TIMELINE, SCOPE, RUN = "LONGTAKE_PIPELINE", "LONGTAKE_TIMELINE", "LONGTAKE_SCOPE", "LONGTAKE_RUN"
CATEGORY = "longtake"
MOST_FRAMES = 1_000_000
KINDS = ("cut", "seam", "loop", "freeze", "drift", "flicker")


@dataclass(frozen=True)
class Run:
    """What extend and redo start from: clean latents (F, c, h, w), the prompt of the last frame, frames a second,
    latents of the sound (A, C) where the model makes one, and frames of film where latents hold several."""

    latents: Any
    last_prompt: str | None
    fps: float
    sound: Any = None
    film: int | None = None

    def context(self, pipeline: Any, **asked: Any) -> Any:
        """What a pipeline is asked to make of this run."""
        more = {} if self.sound is None else {"sound": self.sound}
        if hasattr(pipeline, "record"):
            more["film"] = self.film
        return pipeline.context(self.latents, **asked, **more)


def comfy(module: str) -> Any:
    """A module of ComfyUI, None where this is not it (a script, a test)."""
    try:
        return import_module(module)
    except ImportError:
        return None


def on_step(steps: int) -> Callable[..., dict[str, Any]]:
    """diffusers' ``callback_on_step_end``: moves the node's bar, and raises when the user has pressed Cancel."""
    utils, management = comfy("comfy.utils"), comfy("comfy.model_management")
    bar = None if utils is None else utils.ProgressBar(steps)

    def tell(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if bar is not None:
            bar.update_absolute(step + 1, steps)
        if management is not None:
            management.throw_exception_if_processing_interrupted()
        return tensors

    return tell


def as_images(frames: Any) -> Any:
    """uint8 (F, H, W, 3) as an IMAGE."""
    import torch

    return torch.from_numpy(frames).float() / 255.0


def number(
    kind: str, default: float, least: float, most: float, tooltip: str, **more: Any
) -> tuple[str, dict[str, Any]]:
    """A widget for a number."""
    return kind, {"default": default, "min": least, "max": most, "tooltip": tooltip, **more}


def prompt_widget(tooltip: str) -> tuple[str, dict[str, Any]]:
    return "STRING", {"multiline": True, "default": "a barbarian runs", "tooltip": tooltip}


def sampling() -> dict[str, Any]:
    """What generate, extend and redo share."""
    return {
        "steps": number("INT", 16, 1, 1000, "Denoising steps."),
        "guidance": number("FLOAT", 3.0, 0.0, 100.0, "Classifier-free guidance; 1 switches it off.", step=0.1),
        "seed": number(
            "INT", 1, 0, 2**64 - 1, "The noise of every frame is named by it and by the frame's number.",
            control_after_generate=True,
        ),
        "negative": ("STRING", {"multiline": True, "default": "", "tooltip": "What the video should not show."}),
    }  # fmt: skip


def optional() -> dict[str, Any]:
    return {
        "timeline": (TIMELINE, {"tooltip": "Prompts with times, in place of the prompt."}),
        "scope": (SCOPE, {"tooltip": "What a frame attends to; without one: 8 frames each side, 16 global ones."}),
    }


class LongtakeScope:
    """What a frame attends to."""

    CATEGORY, FUNCTION = CATEGORY, "make"
    RETURN_TYPES, RETURN_NAMES = (SCOPE,), ("scope",)
    DESCRIPTION = "The frames that a frame attends to: a window around it, and frames that every frame sees."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "window": number("INT", 8, 0, MOST_FRAMES, "Frames seen on each side of a frame."),
                "global_frames": number("INT", 16, 0, MOST_FRAMES, "Frames that every frame sees, evenly spread."),
                "gate": (
                    ["off", "soft", "hard"],
                    {
                        "default": "off",
                        "tooltip": "off: both count alike. soft: early steps favour the global frames, late ones the "
                        "window (Video-Infinity). hard: the other one is dropped.",
                    },
                ),
            }
        }

    def make(self, window: int, global_frames: int, gate: str) -> tuple[Any]:
        from longtake.video.scope import Scope

        return (Scope(window=window, global_frames=global_frames, gate=gate, bias=10.0 if gate == "soft" else 0.0),)


class LongtakeTimeline:
    """Prompts with the times at which they start."""

    CATEGORY, FUNCTION = CATEGORY, "make"
    RETURN_TYPES, RETURN_NAMES = (TIMELINE,), ("timeline",)
    DESCRIPTION = "What happens when: a line for each prompt, with its start in seconds (4s:) or frames (96:)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "0s: a barbarian runs\n3s: a barbarian jumps\n5s: a barbarian falls over",
                        "tooltip": "start: prompt, one a line (or with bars between them). The first starts at 0.",
                    },
                ),
                "fps": number("FLOAT", 12.0, 0.1, 240.0, "Frames a second, for starts in seconds.", step=0.1),
                "blend": number("INT", 8, 0, 1000, "Frames of cross-fade around each start, 0 for none."),
            }
        }

    def make(self, text: str, fps: float, blend: int) -> tuple[Any]:
        from longtake import Timeline

        lines = [line.strip().strip("|").strip() for line in text.splitlines()]
        return (Timeline.parse(" | ".join(line for line in lines if line), fps=fps, blend=blend),)


class LongtakeLoadPipeline:
    """A prior that ships, a folder in diffusers' layout, or a pipeline that another node has loaded."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = (PIPELINE,), ("pipeline",)
    DESCRIPTION = "Loads a video model for longtake: kaykit-small ships with it, other names are folders or Hub ids."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "name": (
                    "STRING",
                    {
                        "default": "kaykit-small",
                        "tooltip": "kaykit-small, a local folder in diffusers' layout, or a Hub id.",
                    },
                ),
                "dtype": (
                    ["auto", "float32", "bfloat16", "float16"],
                    {"default": "auto", "tooltip": "Number format of the weights; auto is the device's usual one."},
                ),
            },
            "optional": {
                "diffusers_pipeline": (
                    "DIFFUSERS_PIPELINE",
                    {"tooltip": "A pipeline that another node has loaded, in place of the name."},
                )
            },
        }

    def load(self, name: str, dtype: str, diffusers_pipeline: Any = None) -> tuple[Any]:
        import torch
        from longtake import LongVideoPipeline
        from longtake.device import choose_device

        if diffusers_pipeline is not None:
            return (LongVideoPipeline.from_pipeline(diffusers_pipeline),)
        choice = choose_device()
        wanted = choice.dtype if dtype == "auto" else getattr(torch, dtype)
        pipeline = LongVideoPipeline.from_pretrained(name.strip(), dtype=wanted)
        management = comfy("comfy.model_management")
        device = choice.device if management is None else management.get_torch_device()
        return (pipeline.to(device),)


class _Makes:
    """What generate, extend and redo do alike."""

    CATEGORY, FUNCTION = CATEGORY, "make"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", RUN, "FLOAT"), ("images", "run", "fps")
    OUTPUT_TOOLTIPS = ("All frames of the video.", "For Extend and Redo.", "Frames a second, for a node that saves.")

    def call(
        self, pipeline: Any, prompt: Any, frames: int, fps: float, steps: int, run: Run | None, **more: Any
    ) -> Any:
        """The pipeline's result as this node's outputs. run: the one before, None for a new one."""
        from longtake import Timeline
        from longtake.video.pipeline import as_timeline

        times = prompt if isinstance(prompt, Timeline) else as_timeline(prompt, fps)
        output = pipeline(
            times, frames, fps=fps, num_inference_steps=steps, callback_on_step_end=on_step(steps), **more
        )
        context = more.get("context")
        at_end = run is None or context.stop >= len(run.latents)
        last = times.starts[-1][1] if at_end else run.last_prompt
        made = Run(output.latents, last, fps, getattr(output, "sound_latents", None), output.info.get("frames"))
        return as_images(output.frames), made, fps


class LongtakeGenerate(_Makes):
    """A new video."""

    DESCRIPTION = "Makes a long video from a prompt, or from a timeline of prompts."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": (PIPELINE, {"tooltip": "From Load Pipeline."}),
                "prompt": prompt_widget("What the video shows; may hold times (0s: ... | 4s: ...)."),
                "frames": number("INT", 96, 1, MOST_FRAMES, "Frames to make."),
                "fps": number("FLOAT", 12.0, 0.1, 240.0, "Frames a second.", step=0.1),
                "width": number("INT", 0, 0, 8192, "Pixels; 0: as the model was trained.", step=8),
                "height": number("INT", 0, 0, 8192, "Pixels; 0: as the model was trained.", step=8),
                **sampling(),
            },
            "optional": optional(),
        }

    def make(
        self, pipeline: Any, prompt: str, frames: int, fps: float, width: int, height: int, steps: int,
        guidance: float, seed: int, negative: str, timeline: Any = None, scope: Any = "auto",
    ) -> Any:  # fmt: skip
        return self.call(
            pipeline, timeline or prompt, frames, fps, steps, None, width=width or None, height=height or None,
            guidance_scale=guidance, seed=seed, negative_prompt=negative, scope=scope,
        )  # fmt: skip


class LongtakeExtend(_Makes):
    """More frames behind a video, whose latents stay bit for bit."""

    DESCRIPTION = (
        "Adds frames to a run; the frames it has stay as they are, and its last prompt fades into the new one."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": (PIPELINE, {"tooltip": "The one that made the run."}),
                "run": (RUN, {"tooltip": "From Generate, Extend or Redo."}),
                "prompt": prompt_widget("What the new frames show."),
                "frames": number("INT", 48, 1, MOST_FRAMES, "Frames to add."),
                **sampling(),
            },
            "optional": optional(),
        }

    def make(
        self, pipeline: Any, run: Run, prompt: str, frames: int, steps: int, guidance: float, seed: int,
        negative: str, timeline: Any = None, scope: Any = "auto",
    ) -> Any:  # fmt: skip
        context = run.context(pipeline, frames=frames, before=run.last_prompt)
        return self.call(
            pipeline, timeline or prompt, frames, run.fps, steps, run, context=context,
            guidance_scale=guidance, seed=seed, negative_prompt=negative, scope=scope, **size_of(pipeline, run.latents),
        )  # fmt: skip


class LongtakeRedo(_Makes):
    """Some frames of a video anew; the latents of all others stay bit for bit."""

    DESCRIPTION = (
        "Makes the frames start to stop - 1 of a run anew; the latents of the rest stay as they are. Video "
        "transformers make all frames of a latent anew (Wan: 4), and their decoders change frames beside them a little."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": (PIPELINE, {"tooltip": "The one that made the run."}),
                "run": (RUN, {"tooltip": "From Generate, Extend or Redo."}),
                "prompt": prompt_widget("What these frames show."),
                "start": number("INT", 24, 0, MOST_FRAMES, "First frame to make anew, counted from 0."),
                "stop": number("INT", 48, 1, MOST_FRAMES, "Frame before which to stop."),
                **sampling(),
            },
            "optional": optional(),
        }

    def make(
        self, pipeline: Any, run: Run, prompt: str, start: int, stop: int, steps: int, guidance: float, seed: int,
        negative: str, timeline: Any = None, scope: Any = "auto",
    ) -> Any:  # fmt: skip
        context = run.context(pipeline, redo=(start, stop))
        return self.call(
            pipeline, timeline or prompt, stop - start, run.fps, steps, run, context=context,
            guidance_scale=guidance, seed=seed, negative_prompt=negative, scope=scope, **size_of(pipeline, run.latents),
        )  # fmt: skip


def size_of(pipeline: Any, latents: Any) -> dict[str, int]:
    """Height and width in pixels of a run's latents (F, c, h, w); a video transformer knows them of its earlier run."""
    if hasattr(pipeline, "record"):
        return {}
    return {"height": 8 * int(latents.shape[2]), "width": 8 * int(latents.shape[3])}


class LongtakeCheck:
    """Cuts, seams, loops, freezes, drift and flicker of any frames."""

    CATEGORY, FUNCTION = CATEGORY, "check"
    RETURN_TYPES, RETURN_NAMES = ("STRING", "BOOLEAN", "IMAGE"), ("report", "clean", "picture")
    OUTPUT_TOOLTIPS = ("The table.", "Whether nothing was found.", "Curves with the findings marked.")
    OUTPUT_NODE = True
    DESCRIPTION = "Looks through frames of any generator for cuts, seams, loops, freezes, drift and flicker."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames of a video, in order."}),
                "fps": number("FLOAT", 12.0, 0.1, 240.0, "Frames a second.", step=0.1),
                "allow": (
                    "STRING",
                    {"default": "", "tooltip": f"Kinds that are wanted, with commas: {', '.join(KINDS)}."},
                ),
            }
        }

    def check(self, images: Any, fps: float, allow: str) -> dict[str, Any]:
        import numpy as np
        from longtake.media import to_uint8
        from longtake.video.check import check_frames
        from longtake.video.check.picture import draw_report
        from PIL import Image

        kinds = [name.strip() for name in allow.split(",") if name.strip()]
        tell = on_step(len(images))
        report = check_frames(
            (to_uint8(image) for image in images), fps, allow=kinds,
            on_frame=lambda done, _: tell(None, done - 1, None, {}) if done % 16 == 0 else None,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            draw_report(report, Path(folder) / "check.png", frames=(to_uint8(image) for image in images))
            with Image.open(Path(folder) / "check.png") as drawn:
                picture = as_images(np.array(drawn.convert("RGB"))[None])
        return {"ui": {"text": [report.table()]}, "result": (report.table(), report.clean, picture)}


NODES = (
    LongtakeLoadPipeline,
    LongtakeTimeline,
    LongtakeScope,
    LongtakeGenerate,
    LongtakeExtend,
    LongtakeRedo,
    LongtakeCheck,
)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LongtakeLoadPipeline": "Longtake: Load Pipeline",
    "LongtakeTimeline": "Longtake: Timeline",
    "LongtakeScope": "Longtake: Scope",
    "LongtakeGenerate": "Longtake: Generate",
    "LongtakeExtend": "Longtake: Extend",
    "LongtakeRedo": "Longtake: Redo",
    "LongtakeCheck": "Longtake: Check",
}
