"""What the recipe of the video prior trains on: clips and texts in one file, frames and latents on the device.

Shape legend: N frames of all clips together, H W pixels, c latent channels, h w latent grid, B rows, F frames of a
window, n clips, m the most texts of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as nnf
from longtake.errors import UserError
from longtake.prepared import Texts, load, save
from longtake.video.data import Clip

if TYPE_CHECKING:
    from longtake.text import SentenceEncoder
    from longtake.train import Dice

RECIPE = "video"
SHIFT = 4  # pixels a training frame moves at most, each way
LINGER = 4  # frames at the end of an action that stays as it ended where a window may still begin


def pack(frames: np.ndarray) -> np.ndarray:
    """Frames (N, H, W, 3) uint8 as differences that compress well, (N, 3, H, W) uint8: red and blue less green, each
    less its left neighbour, modulo 256. ``unpack`` turns them back."""
    planes = frames.transpose(0, 3, 1, 2).copy()
    planes[:, 0::2] -= planes[:, 1:2]
    planes[..., 1:] -= planes[..., :-1].copy()
    return planes


def unpack(planes: np.ndarray) -> np.ndarray:
    """Frames (N, H, W, 3) uint8 of what ``pack`` made."""
    whole = np.cumsum(planes, axis=-1, dtype=np.uint8)
    whole[:, 0::2] += whole[:, 1:2]
    return np.ascontiguousarray(whole.transpose(0, 2, 3, 1))


@dataclass(frozen=True)
class Sources:
    """All that the recipe needs: clips, and the states of the texts that name them."""

    clips: list[Clip]
    texts: Texts

    @classmethod
    def of(cls, clips: Sequence[Clip], encoder: SentenceEncoder) -> Sources:
        """Of held-out clips only the caption is encoded."""
        known = ["", *(text for clip in clips for text in (clip.wordings[:1] if clip.held_out else clip.wordings))]
        return cls(list(clips), Texts.of(known, encoder))

    @property
    def seen(self) -> list[Clip]:
        return [clip for clip in self.clips if not clip.held_out]

    @property
    def unseen(self) -> list[Clip]:
        """Held-out clips; those trained on where none is held out."""
        return [clip for clip in self.clips if clip.held_out] or self.seen

    def save(self, path: str | Path) -> Path:
        """Write one file (see ``longtake.prepared``)."""
        said = [{key: value for key, value in asdict(clip).items() if key != "frames"} for clip in self.clips]
        frames = np.concatenate([pack(clip.frames) for clip in self.clips])
        lengths = np.array([len(clip.frames) for clip in self.clips])
        return save(path, RECIPE, {"frames": frames, "lengths": lengths, **self.texts.arrays()}, {"clips": said})

    @classmethod
    def load(cls, path: str | Path) -> Sources:
        """Read what ``save`` wrote. Raises UserError for another file."""
        arrays, facts = load(path, RECIPE)
        texts = Texts.read(arrays)
        try:
            ends = np.cumsum(arrays["lengths"])
            frames = np.split(unpack(arrays["frames"]), ends[:-1])
            named = {field.name for field in fields(Clip)} - {"frames"}
            clips = [
                Clip(**{**{key: row[key] for key in named}, "wordings": tuple(row["wordings"])}, frames=own)
                for row, own in zip(facts["clips"], frames, strict=True)
            ]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{path} holds no clips that this longtake can read: {error}") from error
        return cls(clips, texts)


class Frames:
    """All frames of clips, (N, 3, H, W) uint8 on a device, and the odds of each, (N,): a subject with nine clips must
    not outweigh a subject with one."""

    def __init__(self, clips: Sequence[Clip], device: torch.device) -> None:
        images = torch.from_numpy(np.concatenate([clip.frames for clip in clips])).permute(0, 3, 1, 2).contiguous()
        count: dict[str, int] = {}
        for clip in clips:
            count[clip.subject] = count.get(clip.subject, 0) + len(clip.frames)
        self.images = images.to(device)
        self.odds = torch.tensor([count[clip.subject] ** -0.5 for clip in clips for _ in clip.frames]).to(device)

    def every(self, stride: int) -> torch.Tensor:
        """Each ``stride``-th frame, (n, 3, H, W) float32 in [-1, 1]."""
        return self.images[::stride].float() / 127.5 - 1

    def batch(self, size: int, dice: Dice) -> torch.Tensor:
        """Random frames (size, 3, H, W) in [-1, 1], shifted by up to four pixels over white, half of them mirrored."""
        images = self.images[dice.pick(self.odds, size)].float() / 127.5 - 1
        height, width = images.shape[2:]
        padded = nnf.pad(images, (SHIFT,) * 4, value=1.0)
        down, right = (dice.integers(2 * SHIFT + 1, size, 1) for _ in range(2))
        y = torch.arange(height, device=images.device) + down
        x = torch.arange(width, device=images.device) + right
        x = torch.where(dice.uniform(size, 1) < 0.5, x, x.flip(1))
        place = torch.arange(size, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[place, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()


def encode_clips(autoencoder: Any, clips: Sequence[Clip]) -> list[torch.Tensor]:
    """Latents (F, c, h, w) float32 of every clip, where the autoencoder is."""
    from longtake.train import device_of

    device, out = device_of(autoencoder), []
    with torch.inference_mode():
        for clip in clips:
            images = torch.from_numpy(clip.frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            out.append(autoencoder.encode(images).latent.float())
    return [latent.clone() for latent in out]


class Windows:
    """Latents of clips and the states of their texts on a device, and random windows of them.

    Subjects (a character and what it does; an emoji) are drawn evenly, and of one subject its clips.
    """

    def __init__(self, autoencoder: Any, clips: Sequence[Clip], texts: Texts) -> None:
        latents = encode_clips(autoencoder, clips)
        device = latents[0].device
        self.latents = torch.cat(latents)
        lengths = np.array([len(clip.frames) for clip in clips])
        wraps = np.array([clip.wraps for clip in clips])
        named = [[texts.place[text] for text in clip.wordings if text in texts.place] for clip in clips]
        most = max(map(len, named))
        table = np.array([own + [0] * (most - len(own)) for own in named])
        counts: dict[str, int] = {}
        for clip in clips:
            counts[clip.subject] = counts.get(clip.subject, 0) + 1

        def here(values: Any) -> torch.Tensor:
            return torch.as_tensor(values).to(device)

        self.starts, self.lengths, self.wraps = here(np.cumsum(lengths) - lengths), here(lengths), here(wraps)
        self.named, self.names = here(table), here([len(own) for own in named])
        self.states, self.silence = texts.stack(device), texts.place[""]
        self.odds = here([1.0 / counts[clip.subject] for clip in clips])
        room = np.where(wraps, lengths, np.maximum(1, lengths - LINGER))
        self.room = here(room)  # places where a window may begin

    def batch(self, rows: int, frames: int, dice: Dice, silent: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows (B, c, F, h, w) and states of a text that names each (B, T, E); ``silent``: share without text."""
        clip = dice.pick(self.odds, rows)
        place = dice.below(self.room[clip])[:, None] + torch.arange(frames, device=self.latents.device)
        length = self.lengths[clip][:, None]
        place = torch.where(self.wraps[clip][:, None], place % length, torch.minimum(place, length - 1))
        text = self.named[clip, dice.below(self.names[clip])]
        text = torch.where(dice.uniform(rows) < silent, self.silence, text)
        return self.latents[self.starts[clip][:, None] + place].transpose(1, 2), self.states[text]
