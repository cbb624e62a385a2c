"""What a stock pipeline is asked for: its arguments, its guidance and its picture, each refused by name if it has none.

    arguments = arguments_of(stock, preset, timeline, 21, 16.0, None, "", 480, 832, {"image": picture})

Legend: F latent frames.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError, shorten
from longtake.timeline import Timeline
from longtake.video.dit.decode import Caught, Decoder
from longtake.video.dit.latent_space import denormalised
from longtake.video.dit.presets import Preset
from longtake.video.run import Context
from torch import Tensor

# stock pipelines whose loop cannot be driven, and why
_EACH = "steps a scheduler of its own for each latent frame"
_WINDOWS = "makes a long video itself, in windows, each with a loop of its own"
_STAGES = "runs several loops one after the other"
_REFERENCES = "steps tokens of conditions beside the video's frames (pictures in a film: hold=)"
_PARTLY = "begins in the middle of the schedule, from a video's own latents"
_UNTRIED = "is not tried here: its text encoder and guardrails are models of their own"
UNDRIVEN = {
    "Cosmos2_5_PredictBasePipeline": _UNTRIED, "Cosmos2_5_TransferPipeline": _UNTRIED,
    "ModularPipeline": "is made of blocks, each with a loop or a call of its own",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": _EACH,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": _EACH, "LTXI2VLongMultiPromptPipeline": _WINDOWS,
    "WanVideoToVideoPipeline": _PARTLY, "CogVideoXVideoToVideoPipeline": _PARTLY,
    "LTX2DFRPipeline": _STAGES, "LTX2DFRTemporalRefinePipeline": _STAGES,
    "LTXConditionPipeline": _REFERENCES, "LTX2HDRPipeline": _REFERENCES,
    "LTX2ConditionPipeline": _REFERENCES, "LTX2InContextPipeline": _REFERENCES,
}  # fmt: skip
# arguments of a stock pipeline that this one decides, and how else they are said
_OURS = {
    "latents": "noise is drawn frame by frame from the seed", "audio_latents": "noise is drawn from the seed",
    "num_videos_per_prompt": "one film is made at a time", "prompt_embeds": "give a prompt",
    "return_dict": "a VideoOutput is returned",
}  # fmt: skip


def refuse_undriven(stock: Any) -> None:
    """Raises UserError for a stock pipeline whose loop cannot be driven."""
    for base in type(stock).__mro__:
        if base.__name__ in UNDRIVEN:
            raise UserError(
                f"{type(stock).__name__} {UNDRIVEN[base.__name__]}, so its loop cannot be driven; its "
                "transformer can be: see parallelize"
            )
    if type(stock).__name__ == "HunyuanVideoImageToVideoPipeline":
        condition = stock.transformer.config.image_condition_type
        if condition != "token_replace":
            raise UserError(
                f"HunyuanVideoImageToVideoPipeline with image_condition_type={condition} drops the film's first frames "
                "after decoding: token_replace is driven"
            )


def asks_twice(stock: Any) -> bool:
    """Whether a stock pipeline asks its scheduler for an estimate before each step (Cosmos 1)."""
    return type(stock).__name__ in ("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline")


def synchronous(stock: Any) -> Any:
    """A pipeline whose loop can be driven, of the same components.

    SkyReels-V2's diffusion forcing steps every latent frame with a scheduler of its own; where all of them are as noisy
    (ar_step=0, its default) that is the loop of SkyReelsV2Pipeline with a timestep for each frame: see `forced`.
    """
    if type(stock).__name__ != "SkyReelsV2DiffusionForcingPipeline":
        return stock
    from diffusers import SkyReelsV2Pipeline

    made = SkyReelsV2Pipeline(**stock.components)
    made.set_progress_bar_config(**getattr(stock, "_progress_bar_config", {}))
    return made


def forced(given: Mapping[str, Any], frames: int, fps: float) -> dict[str, Any]:
    """A call of a transformer as diffusion forcing makes it: a timestep for each of its frames, and its pace."""
    time = given["timestep"]
    pace = [0 if fps == 16 else 1] * len(time)
    return {**given, "timestep": time[:, None].expand(-1, frames), "enable_diffusion_forcing": True, "fps": pace}


def takes_of(stock: Any) -> Mapping[str, Any]:
    """The parameters of a stock pipeline's call."""
    return inspect.signature(type(stock).__call__).parameters


def makes_sound(stock: Any) -> bool:
    """Whether a stock pipeline makes sound too."""
    return getattr(stock, "audio_vae", None) is not None


def steps_all_but_first(stock: Any) -> bool:
    """Whether a stock pipeline steps all frames but the first; those that say so by timesteps are found later."""
    replaced = getattr(stock.transformer.config, "image_condition_type", None) == "token_replace"
    return (replaced and "image" in takes_of(stock)) or type(stock).__name__ == "Kandinsky5I2VPipeline"


def arguments_of(
    stock: Any, preset: Preset, timeline: Timeline, total: int, fps: float, guidance: float | None,
    negative: str | None, height: int, width: int, given: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What the stock pipeline is called with. Raises UserError for what it does not take."""
    takes, name = takes_of(stock), type(stock).__name__
    unknown = sorted(set(given) - set(takes))
    if unknown:
        raise UserError(f"{name} does not take {', '.join(unknown)}")
    for key in _OURS:
        if given.get(key) is not None:
            raise UserError(f"{key} cannot be given to {name} here: {_OURS[key]}")
    made: dict[str, Any] = {
        "prompt": timeline.prompts[0], "height": height, "width": width, "num_frames": preset.film(total),
        "output_type": "np",
    }  # fmt: skip
    made = {key: value for key, value in made.items() if key in takes}
    if "guidance_scale" in takes:
        made["guidance_scale"] = preset.guidance if guidance is None else guidance
    elif guidance is not None and getattr(stock, "guider", None) is None:
        raise UserError(f"{name} takes no guidance_scale")
    for key in {"frame_rate", "fps"} & set(takes):  # LTX, Cosmos: the pace that the positions stand for
        made[key] = fps
    if negative is not None and "negative_prompt" in takes:
        made["negative_prompt"] = negative
    elif negative:
        raise UserError(f"{name} takes no negative_prompt")
    return {**made, **given}


@contextmanager
def guider_of(stock: Any, guidance: float | None) -> Iterator[None]:
    """Inside, a guidance scale is that of the pipeline's guider, where it has one in place of an argument."""
    had = getattr(stock, "guider", None)
    if had is None or guidance is None or "guidance_scale" in takes_of(stock):
        yield
        return
    if "guidance_scale" not in had.config:
        raise UserError(f"{type(had).__name__} takes no guidance_scale: set the pipeline's guider")
    stock.guider = had.new(guidance_scale=guidance)
    try:
        yield
    finally:
        stock.guider = had


def checked(stock: Any, call: Callable[[], Any]) -> Any:
    """What the stock pipeline finds wrong with its inputs, in one line."""
    import traceback

    try:
        return call()
    except (ValueError, TypeError) as error:
        places = [place.name for place in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, UserError) or "check_inputs" not in places:
            raise
        raise UserError(f"{type(stock).__name__}: {str(error).splitlines()[0]}") from error


def pictured(stock: Any, context: Context, span: range, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The stock arguments, with the picture that a run begins from.

    One that goes on from an earlier run begins from that run's frame at the start of what the network sees.
    Raises UserError where a picture is needed, or given for another frame.
    """
    given, name = dict(asked), type(stock).__name__
    if "image" not in takes_of(stock):
        return given
    other = ("image_embeds", "video")  # what may stand in a picture's place
    embedded = given.get("image") is None and any(given.get(key) is not None for key in other)
    if context.latents is None:
        if given.get("image") is None and not embedded:
            raise UserError(f"{name} begins from a picture: give image= (--first)")
        return given
    if span.start and (given.get("image") is not None or embedded):
        raise UserError(
            f"image is the film's first frame, and this run sees latent frames {span.start} to {span.stop - 1}: "
            "leave it out, the picture is then taken from the earlier run"
        )
    if given.get("image") is None and not embedded:
        given["image"] = _decoded_picture(stock, context.latents, span.start)
    return given


def sized(
    stock: Any, preset: Preset, scale: int, height: int | None, width: int | None, name: str | None
) -> tuple[int, int]:
    """Height and width in pixels: as named, or the preset's, or what the stock pipeline makes where nobody names them.

    scale: pixels of a latent pixel. name: of the model, for the message. Raises UserError where nothing says them.
    """
    usual: tuple[int | None, int | None] = preset.height, preset.width
    if None in usual:
        usual = usual_size(stock, scale) or (None, None)
    height, width = height or usual[0], width or usual[1]
    if height is None or width is None:
        raise UserError(
            f"say the height and width in pixels: there is no preset for {name or 'this model'}, and "
            f"{type(stock).__name__} has no usual ones"
        )
    return height, width


def usual_size(stock: Any, scale: int) -> tuple[int, int] | None:
    """Height and width in pixels that a stock pipeline makes where nobody names them; None where it does not say.

    scale: pixels of a latent pixel. By its call's defaults, or as its call decides: of itself (Mochi), by the latents
    that its transformer was trained on (CogVideoX), or by the area of those and its usual aspect (HunyuanVideo 1.5).
    """
    takes, config = takes_of(stock), stock.transformer.config
    said = [takes[name].default if name in takes else None for name in ("height", "width")]
    own = [getattr(stock, f"default_{name}", None) for name in ("height", "width")]
    trained = [scale * (getattr(config, f"sample_{name}", None) or 0) for name in ("height", "width")]
    for height, width in (said, own, trained):
        if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
            return height, width
    target = getattr(stock, "target_size", None)
    if target is None:
        return None
    across, down = getattr(stock, "default_aspect_ratio", (1, 1))
    made = stock.video_processor.calculate_default_height_width(down, across, target)
    return int(made[0]), int(made[1])


def grey(stock: Any, height: int, width: int) -> dict[str, Any]:
    """The stock argument of a plain picture, where a film begins from one: for a call that is looked at alone."""
    from PIL import Image

    return {"image": Image.new("RGB", (width, height), (128, 128, 128))} if "image" in takes_of(stock) else {}


def size_by_picture(stock: Any, image: Any) -> tuple[int, int] | None:
    """Height and width in pixels, where a stock pipeline takes none and chooses them by its picture."""
    if "height" in takes_of(stock):
        return None
    width, height = image.size
    made = stock.video_processor.calculate_default_height_width(height, width, stock.target_size)
    return int(made[0]), int(made[1])


@contextmanager
def first_frames(stock: Any, context: Context) -> Iterator[list[Tensor]]:
    """Kandinsky's last touch on its first four latent frames (I2V): a new film has it in its latents, which are what is
    noted here; a run that joins another leaves that one's frames as they are.

    Raises UserError for a film that has nothing behind those frames to even them out with.
    """
    made: list[Tensor] = []
    touch = getattr(stock, "normalize_first_frame", None)
    if touch is None:
        yield made
        return
    if context.latents is None and context.stop < 5:
        raise UserError(
            f"{type(stock).__name__} evens its first 4 latent frames out with those behind them: at least 5 are "
            f"needed, given {context.stop}"
        )

    def touched(latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made.append(latents if context.latents is not None else touch(latents, *args, **kwargs))
        return made[-1]

    stock.__dict__["normalize_first_frame"] = touched
    try:
        yield made
    finally:
        del stock.__dict__["normalize_first_frame"]


def _decoded_picture(stock: Any, latents: Tensor, index: int) -> Any:
    """The last film frame of a latent frame (F, c, h, w), as a picture; what lies before it is seen too."""
    from PIL import Image

    note = Caught()
    first = max(0, index - 3)
    note.z = denormalised(stock, latents[first : index + 1].transpose(0, 1)[None], start=first)
    if getattr(stock.vae.config, "timestep_conditioning", False):
        note.args = (torch.zeros(1).to(note.z),)
    frames = np.concatenate(list(Decoder(stock.vae, note).chunks()))
    return Image.fromarray(frames[-1])


def guarded(stock: Any, chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames (n, H, W, 3) as the guardrail of a stock pipeline lets them pass (Cosmos), which has seen none of them.

    Raises UserError where it lets none pass.
    """
    guard = getattr(stock, "safety_checker", None)
    if guard is None or not hasattr(guard, "check_video_safety"):
        yield from chunks
        return
    guard.to(stock._execution_device)
    try:
        for chunk in chunks:
            passed = guard.check_video_safety(chunk)
            if passed is None:
                raise UserError(f"the guardrail of {type(stock).__name__} does not let this film pass")
            yield passed
    finally:  # whoever reads may leave before the end
        guard.to("cpu")


class quiet:
    """The stock pipeline's progress bar only where somebody looks."""

    def __init__(self, stock: Any, shown: bool) -> None:
        self.stock, self.shown = stock, shown

    def __enter__(self) -> None:
        self.had = dict(getattr(self.stock, "_progress_bar_config", {}))
        if not self.shown:
            self.stock.set_progress_bar_config(disable=True)

    def __exit__(self, *_: Any) -> None:
        self.stock.set_progress_bar_config(**self.had)


def cut_off(stock: Any, prompts: Sequence[str]) -> list[str]:
    """A line for each prompt of which the stock pipeline's main tokenizer cuts words off, for none where it says no
    limit."""
    tokenizer: Any = getattr(stock, "tokenizer", None)
    told = inspect.signature(stock.__call__).parameters.get("max_sequence_length")
    limits = [int(told.default)] if told is not None and isinstance(told.default, int) else []
    limits += [int(most)] if (most := getattr(tokenizer, "model_max_length", None)) and most < 1e6 else []
    found = []
    for prompt in prompts if tokenizer is not None and limits else ():
        count, most = len(tokenizer(prompt, truncation=False, verbose=False).input_ids), min(limits)
        if count > most:
            found.append(f"the model reads {most} of the {count} tokens of the prompt {shorten(prompt, 40)!r}")
    return found


def repository(stock: Any) -> str | None:
    """The Hub's name of a pipeline that was loaded by it; None for a folder or one made in memory."""
    name = getattr(stock.config, "_name_or_path", None) or stock.config.get("_name_or_path")
    if not name or Path(str(name)).exists() or str(name).count("/") != 1 or str(name).startswith(("/", ".")):
        return None
    return str(name)
