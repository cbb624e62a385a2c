"""The answer in words: a vision-language model of transformers reads the moments that were found.

    model = VisionLanguageModel.from_folder("models/Qwen3-VL-2B-Instruct")
    model.answer(Film("dog.mp4"), "what does the dog chase?", moments, seconds=3600.0, tokens=2000).text

The moments share a number of pictures by their scores (`split_budget`), the pictures' tokens are pooled towards the
question (`longtake.video.reading.pool`), and what is left stands in the prompt beside the film's own seconds: as text
for every family, and where a family's prompt has a time for each picture (Qwen3-VL, SmolVLM) there too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError, one_line
from longtake.video.reading.budget import kernel_for, split_budget
from longtake.video.reading.families import FAMILIES, family_of
from longtake.video.reading.pool import pool
from longtake.video.watch.decode import Film
from longtake.video.watch.moments import Moment

PICTURES = 32  # of all moments together
LEAST_PICTURES = 2  # of a moment
LONGEST_SIDE = 768  # of a picture, before the model's own processor
ANSWER_TOKENS = 200
CLOCK = 1000  # a second, for processors that count pictures
APART = ("qwen2_5_vl", "qwen3_vl")  # each moment is a film of its own; the others take one film in a prompt


@dataclass(frozen=True)
class Words:
    """text: the answer; read: what the model saw of the film, in a line. times: seconds of the pictures, by moment."""

    text: str
    read: str
    times: list[list[float]]


@dataclass(frozen=True)
class _Clip:
    """A moment's pictures: start, end in seconds; times (k,) seconds; frames, uint8 (H, W, 3) each."""

    start: float
    end: float
    times: list[float]
    frames: list[np.ndarray]


class VisionLanguageModel:
    """A model of one of the families that `pool` knows, with its processor. name: of the folder, for people."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.family = family_of(model)
        self.apart = self.family.name in APART

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype | None = None) -> VisionLanguageModel:
        """From a local folder of transformers (or a Hub id that was downloaded). dtype: of its weights, None as they
        are stored. Raises UserError when it holds no such model, a part of one, or no processor."""
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        path = model_folder(folder)
        config = _read(AutoConfig, path, "configuration")
        if config.model_type not in FAMILIES:
            raise UserError(f"{path} holds a {config.model_type}: --model takes one of {', '.join(FAMILIES)}")
        processor = _read(AutoProcessor, path, "processor")
        if not hasattr(processor, "tokenizer"):
            raise UserError(f"{path} has a {type(processor).__name__} and no processor that reads texts and pictures")
        model, told = _read(
            AutoModelForImageTextToText, path, "weights", config=config, dtype=dtype or "auto", output_loading_info=True
        )
        lost = sorted([*told["missing_keys"], *map(str, told["mismatched_keys"])])
        if lost:
            raise UserError(f"{path} lacks {len(lost)} of the model's weights, {lost[0]} the first")
        return cls(model, processor, path.name)

    def to(self, device: torch.device | str) -> VisionLanguageModel:
        """Move it."""
        self.model.to(device)
        return self

    def answer(self, film: Film, question: str, moments: Sequence[Moment], *, seconds: float, tokens: int) -> Words:
        """What the model says of the moments of a film. seconds: how long the film is. tokens: that the pictures may
        take in the prompt, two for each picture at least. Raises UserError where nothing of the moments can be read."""
        clips = self.clips(film, moments)
        inputs = self.inputs(question, clips, seconds)
        kernel = None if self.apart else self._kernel(inputs, sum(len(clip.times) for clip in clips), tokens)
        length = inputs["input_ids"].shape[1]
        with pool(self.model, self.processor, budget=tokens, question=question, kernel=kernel) as pooling:
            found = self.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        text = self.processor.tokenizer.decode(found[0, length:], skip_special_tokens=True).strip()
        count = sum(len(clip.times) for clip in clips)
        read = (
            f"{self.name} read {count} pictures of {len(clips)} moments: {pooling.before} tokens, {pooling.after} kept"
        )
        return Words(text, read, [clip.times for clip in clips])

    def clips(self, film: Film, moments: Sequence[Moment]) -> list[_Clip]:
        """The pictures of the moments, in order of time; higher scores get more of `PICTURES`."""
        wanted = list(moments)[: PICTURES // LEAST_PICTURES]
        shares = split_budget([one.score for one in wanted], PICTURES, least=LEAST_PICTURES)
        found = []
        for one, share in sorted(zip(wanted, shares, strict=True), key=lambda pair: pair[0].start):
            span = max(one.end - one.start, 1e-3)
            frames = list(film.frames(share / span, start=one.start, end=one.end))[:share]
            if not frames:  # a picture that is shown for longer than the moment, or the last one of a damaged film
                frames = list(film.frames(share / span, start=max(0.0, one.start - 1), end=one.end))[-1:]
            if frames:
                times, pictures = zip(*frames, strict=True)
                found.append(_Clip(one.start, one.end, list(times), [_fitted(picture) for picture in pictures]))
        if not found:
            raise UserError(f"no picture of the found moments of {film.path} could be read")
        return found

    def inputs(self, question: str, clips: Sequence[_Clip], seconds: float) -> dict[str, Any]:
        """The model's inputs, as its processor makes them: one prompt, on the model's device."""
        parts = [_Prompt(f"From {clip.start:.1f} s to {clip.end:.1f} s of the film:", clip) for clip in clips]
        if not self.apart:
            times = ", ".join(f"{time:.1f}" for clip in clips for time in clip.times)
            joined = _Clip(
                clips[0].start,
                clips[-1].end,
                [time for clip in clips for time in clip.times],
                [frame for clip in clips for frame in clip.frames],
            )
            parts = [_Prompt(f"Pictures of a film of {seconds:.1f} s, at these seconds: {times}.", joined)]
        content: list[dict[str, str]] = []
        still = not hasattr(self.processor, "video_processor")  # LLaVA's: a film is pictures
        for part in parts:
            content.append({"type": "text", "text": f"{part.text}\n"})
            content += [{"type": "image"}] * len(part.clip.frames) if still else [{"type": "video"}]
        content.append({"type": "text", "text": f"\n{question}"})
        text = self._chat(content)
        if still:
            pictures = [_picture(frame) for part in parts for frame in part.clip.frames]
            made = self.processor(text=[text], images=[pictures], return_tensors="pt")
        else:
            videos = [[_picture(frame) for frame in _even(part.clip.frames, self.apart)] for part in parts]
            notes = [_metadata(part.clip, self.apart, seconds) for part in parts]
            made = self.processor(
                text=[text], videos=videos, video_metadata=notes, do_sample_frames=False, return_tensors="pt"
            )
        given = {}
        for name, value in made.items():
            if isinstance(value, torch.Tensor):
                value = value.to(self.model.device)
                given[name] = value.to(self.model.dtype) if name.startswith("pixel_values") else value
            elif name == "second_per_grid_ts":
                given[name] = torch.tensor(value)
        return given

    def _chat(self, content: list[dict[str, str]]) -> str:
        """The prompt as the model was trained to be asked: its chat template; without one LLaVA's words."""
        template = getattr(self.processor, "chat_template", None) or getattr(
            self.processor.tokenizer, "chat_template", None
        )
        if template or self.family.name == "smolvlm":  # whose processor brings one for films
            told: str = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            return told
        marks = {name: getattr(self.processor, f"{name}_token", f"<{name}>") for name in ("image", "video")}
        said = "".join(part.get("text") or marks[part["type"]] for part in content)
        return f"USER: {said} ASSISTANT:"

    def _kernel(self, inputs: dict[str, Any], pictures: int, tokens: int) -> tuple[int, int, int]:
        """Windows within one picture each: the picture before may be of another moment."""
        token = getattr(self.model.config, self.family.token)
        each = int((inputs["input_ids"] == token).sum()) // pictures
        side = math.isqrt(each)
        spare = 1 if self.family.name == "llava_onevision" else 0  # its line break behind the film
        return kernel_for((pictures, side, side), tokens - spare, most_frames=1)


@dataclass(frozen=True)
class _Prompt:
    text: str
    clip: _Clip


def model_folder(name: str | Path) -> Path:
    """The folder of a vision-language model. Raises UserError."""
    from longtake.weights import resolve

    path = resolve(str(name), kind="vision-language model")
    if not (path / "config.json").is_file():
        raise UserError(f"the vision-language model {name} is no folder of transformers: it has no config.json")
    return path


def model_bytes(name: str | Path) -> int:
    """Size of its weights on the disk."""
    kinds = (".safetensors", ".bin")
    return sum(path.stat().st_size for path in model_folder(name).iterdir() if path.suffix in kinds)


def _read(kind: Any, path: Path, what: str, **more: Any) -> Any:
    """``from_pretrained`` of a local folder; its mistakes in one line."""
    from safetensors import SafetensorError

    try:
        return kind.from_pretrained(path, local_files_only=True, **more)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"the {what} of the vision-language model {path} cannot be read: {one_line(error)}") from error


def _fitted(frame: np.ndarray) -> np.ndarray:
    """A picture with no side longer than `LONGEST_SIDE`."""
    from PIL import Image

    height, width = frame.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def _picture(frame: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(frame)


def _even(things: list[Any], apart: bool) -> list[Any]:
    """Qwen's towers take pictures in pairs: the last one twice where there is none for it."""
    return [*things, things[-1]] if apart and len(things) % 2 else things


def _metadata(clip: _Clip, apart: bool, seconds: float) -> dict[str, Any]:
    """What processors are told of a clip: its pictures' places on a clock of `CLOCK` ticks a second."""
    times = _even(clip.times, apart)
    step = (times[-1] - times[0]) / max(1, len(clip.times) - 1) if len(clip.times) > 1 else clip.end - clip.start
    return {
        "fps": CLOCK,
        "frames_indices": [round(time * CLOCK) for time in times],
        "total_num_frames": max(1, round(len(times) * step * CLOCK)),
        "duration": seconds,
    }
