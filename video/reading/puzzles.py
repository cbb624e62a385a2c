"""Films with questions whose answers are known, put together from clips: what the small reader learns and is judged on.

A film has 16 frames of 64 x 64 pixels in four scenes. In each scene stand one character that acts and one emoji, each
in a quadrant of its own, over white; the four characters differ. Questions, in words of the captions: when the
character is seen (which scene), where (which quadrant), what it does (which of `ACTIONS`).

Shapes: B films, Q questions of each, clips at 32 x 32 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from longtake.errors import UserError
from longtake.train import Dice
from longtake.video.data import Clip, load_clips
from torch import Tensor

SCENES, SCENE, SIDE = 4, 4, 64
FRAMES = SCENES * SCENE
HALF = SIDE // 2
STEP = 3  # frames of a clip between two of a scene
ACTIONS = ("lie", "sit", "run", "cheer", "kick", "jump")
KINDS = ("when", "where", "what")
SCENE_NAMES = ("in the first scene", "in the second scene", "in the third scene", "in the last scene")
PLACES = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")
ANSWERS = (*SCENE_NAMES, *PLACES, *ACTIONS)
SPANS = {"when": slice(0, 4), "where": slice(4, 8), "what": slice(8, 8 + len(ACTIONS))}
FORMS = {"when": "when does the {} appear", "where": "where is the {}", "what": "what does the {} do"}
WORDS = ("when", "where", "what", "does", "is", "do", "appear", "the", "hooded", "knight", "barbarian", "mage", "rogue")


def words_of(question: str) -> list[int]:
    """Numbers of a question's words, from 1 on. Raises UserError for a word that the reader does not know."""
    said = question.lower().rstrip("?").split()
    strange = sorted(set(said) - set(WORDS))
    if strange or not said:
        raise UserError(f"the small reader knows only the words {', '.join(WORDS)}; not {', '.join(strange) or 'none'}")
    return [1 + WORDS.index(word) for word in said]


@dataclass
class Batch:
    """films: (B, 16, 3, 64, 64) float32 in [-1, 1]. words: (B, Q, 6) int64, 0 behind the end. kind: (B, Q) of `KINDS`.
    answer: (B, Q) of `ANSWERS`. asked: (B, Q, 16, 64, 64) bool, where the character that is asked for stands."""

    films: Tensor
    words: Tensor
    kind: Tensor
    answer: Tensor
    asked: Tensor

    def __len__(self) -> int:
        return len(self.films)


class Cast:
    """The clips of puzzles: characters by what they do, and emoji. Built on the device where the films are to be."""

    def __init__(self, characters: Sequence[Clip], emoji: Sequence[Clip], device: torch.device) -> None:
        acting = [clip for clip in characters if clip.action in ACTIONS]
        self.names = sorted({clip.character for clip in acting})
        if len(self.names) < SCENES or not emoji:
            raise UserError(f"puzzles need {SCENES} characters and an emoji, {len(self.names)} and {len(emoji)} found")
        clips = [*acting, *emoji]
        self.device = device
        self.pixels = torch.cat([_halved(clip) for clip in clips]).to(device)
        lengths = torch.tensor([len(clip.frames) for clip in clips])
        self.first = (lengths.cumsum(0) - lengths).to(device)
        self.length = lengths.to(device)
        self.wraps = torch.tensor([clip.wraps for clip in clips]).to(device)
        self.action = torch.tensor([ACTIONS.index(clip.action) for clip in acting]).to(device)
        self.emoji = torch.arange(len(acting), len(clips), device=device)
        owner = torch.tensor([self.names.index(clip.character) for clip in acting])
        # an action is as likely as another, whatever number of clips it has
        weight = torch.tensor(
            [1.0 / sum(a.action == c.action and a.character == c.character for a in acting) for c in acting]
        )
        self.odds = torch.stack([weight * (owner == number) for number in range(len(self.names))]).to(device)

    @classmethod
    def load(cls, path: str | Path, device: torch.device, held_out: bool = False, emoji: int = 200) -> "Cast":
        """From a folder with the zips of `longtake.video.data`. held_out: of the pairs that no training has seen."""
        characters = [clip for clip in load_clips(path, "kaykit") if clip.held_out == held_out]
        others = load_clips(path, "emoji")
        return cls(characters, others[:: max(1, len(others) // emoji)], device)

    def batch(self, count: int, dice: Dice, questions: int = 1) -> Batch:
        """`count` random films with so many questions each."""
        place = self.device
        who = dice.uniform(count, len(self.names)).argsort(1)[:, :SCENES]  # (B, scene)
        clip = torch.multinomial(self.odds[who.flatten()], 1, generator=dice.generator).view(count, SCENES)
        emoji = self.emoji[dice.integers(len(self.emoji), count, SCENES)]
        quadrant = dice.uniform(count, SCENES, 4).argsort(2)[:, :, :2]
        films = torch.full((count, SCENES, SCENE, 3, 2, HALF, 2, HALF), 255, dtype=torch.uint8, device=place)
        there = torch.zeros(count, SCENES, SCENE, 2, HALF, 2, HALF, dtype=torch.bool, device=place)
        rows, scenes = torch.arange(count, device=place)[:, None], torch.arange(SCENES, device=place)[None]
        for which, actors in enumerate((emoji, clip)):
            moving = self._moving(actors, dice)  # (B, scene, frame, 3, 32, 32)
            y, x = quadrant[:, :, which] // 2, quadrant[:, :, which] % 2
            films[rows, scenes, :, :, y, :, x] = moving
            if which == 1:
                there[rows, scenes, :, y, :, x] = (moving < 250).any(3)
        kind, scene = dice.integers(len(KINDS), count, questions), dice.integers(SCENES, count, questions)
        each = torch.stack([scene, 4 + quadrant[rows, scene, 1], 8 + self.action[clip[rows, scene]]], -1)
        asks = zip(kind.flatten().tolist(), who[rows, scene].flatten().tolist(), strict=True)
        words = torch.stack([self._question(*ask) for ask in asks]).view(count, questions, -1)
        only = scene[..., None] == torch.arange(SCENES, device=place)  # (B, Q, scene)
        asked = there.view(count, 1, SCENES, SCENE, SIDE, SIDE) & only[..., None, None, None]
        pixels = films.view(count, FRAMES, 3, SIDE, SIDE).float() / 127.5 - 1
        answer = each.gather(-1, kind[..., None])[..., 0]
        return Batch(pixels, words.to(place), kind, answer, asked.view(count, questions, FRAMES, SIDE, SIDE))

    def _question(self, kind: int, who: int) -> Tensor:
        said = words_of(FORMS[KINDS[kind]].format(self.names[who]))
        return torch.tensor([*said, *[0] * (6 - len(said))])

    def _moving(self, clips: Tensor, dice: Dice) -> Tensor:
        """Four frames of each clip from a random one on: (..., 4, 3, 32, 32) uint8."""
        length = self.length[clips]
        begin = dice.below(length)
        at = begin[..., None] + STEP * torch.arange(SCENE, device=self.device)
        last = torch.minimum(at, length[..., None] - 1)
        at = torch.where(self.wraps[clips][..., None], at % length[..., None], last)
        return self.pixels[self.first[clips][..., None] + at]


def _halved(clip: Clip) -> Tensor:
    """Frames (F, 3, 32, 32) uint8, each pixel the mean of four."""
    frames = np.asarray(clip.frames, dtype=np.float32)
    count, high, wide, _ = frames.shape
    small = frames.reshape(count, HALF, high // HALF, HALF, wide // HALF, 3).mean((2, 4))
    return torch.from_numpy(small.round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
