"""The small reader: a tower that makes a token of every 4 x 4 pixels, a guide, and a transformer that reads what a
reducer leaves of them and answers.

It exists to measure reducers where the answer is known (see `compare`): one set of weights for all of them, 4,096
tokens a film (16 frames x 16 x 16). It is no tool for films of people.

Shapes: B films, Q questions of each, T frames, 16 x 16 tokens of a frame, D width, N tokens that are read, L latents
of a question.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.journal import write_tensors
from longtake.kernels.pooling.guided import WeightMode, prompt_guided_pool3d
from longtake.kernels.pooling.windows import Tail, Triple
from longtake.video.reading.puzzles import ANSWERS, FRAMES, KINDS, SIDE, SPANS, WORDS
from longtake.video.reading.reducers import places_of, reduce
from longtake.weights import load_state
from torch import Tensor, nn

PATCH = 4
GRID = SIDE // PATCH
SIZE: Triple = (FRAMES, GRID, GRID)
MOST_SHARP = 100.0


@dataclass(frozen=True)
class ReaderSettings:
    """width: of tokens. heads: of attention. blocks: of the reader. latents: that read beside the question."""

    width: int = 64
    heads: int = 4
    blocks: int = 2
    latents: int = 4
    shared: int = 32  # width of the space in which words and tokens are compared


class Local(nn.Module):
    """A token sees its neighbours in its frame and in the frames before and behind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.time = nn.Parameter(torch.tensor([0.25, 0.5, 0.25])[:, None].repeat(1, width))
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, D) -> the same."""
        y = self.space(x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).view(x.shape)
        wide = F.pad(y, (0, 0) * 3 + (1, 1))
        y = self.time[0] * wide[:, :-2] + self.time[1] * y + self.time[2] * wide[:, 2:]
        return x + self.down(F.gelu(self.up(self.norm(y))))


class Block(nn.Module):
    """The latents look at the tokens, at each other, and think."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_kv, self.norm_s, self.norm_m = (nn.LayerNorm(width) for _ in range(4))
        self.query, self.key_value, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.own, self.own_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """latents (B * Q, L, D), tokens (B, N, D) -> latents. The latents of one question see only each other."""
        key, value = self.key_value(self.norm_kv(tokens)).chunk(2, -1)
        query = self.query(self.norm_q(latents)).view(len(tokens), -1, latents.shape[-1])
        latents = latents + self.out(self._attend(query, key, value)).view(latents.shape)
        latents = latents + self.own_out(self._attend(*self.own(self.norm_s(latents)).chunk(3, -1)))
        return latents + self.think(self.norm_m(latents))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        split = [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value)]
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Reader(nn.Module):
    """Films and words -> answers, through any reducer."""

    def __init__(self, settings: ReaderSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or ReaderSettings()
        width = settings.width
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.local = Local(width)
        self.seen = nn.LayerNorm(width)
        self.words = nn.Embedding(len(WORDS) + 1, width, padding_idx=0)
        self.said = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.token_side, self.word_side = nn.Linear(width, settings.shared), nn.Linear(width, settings.shared)
        self.sharpness = nn.Parameter(torch.tensor(10.0).log())
        self.place = nn.Linear(24, width)
        self.latents = nn.Parameter(0.02 * torch.randn(settings.latents, width))
        self.blocks = nn.ModuleList([Block(width, settings.heads) for _ in range(settings.blocks)])
        self.answer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(ANSWERS)))

    def tower(self, films: Tensor) -> Tensor:
        """films (B, T, 3, 64, 64) in [-1, 1] -> tokens (B, T, 16, 16, D)."""
        x = self.patches(films.flatten(0, 1)).movedim(1, -1).unflatten(0, films.shape[:2])
        return self.seen(self.local(F.gelu(x)))

    def question(self, words: Tensor) -> Tensor:
        """words (..., n), 0 where there is none -> (..., D)."""
        real = (words > 0).float()[..., None]
        return self.said((self.words(words) * real).sum(-2) / real.sum(-2))

    def scores(self, tokens: Tensor, question: Tensor) -> Tensor:
        """(B, T, H, W, D) and (B, Q, D) -> how well each token fits each question, (B, Q, T, H, W), float32."""
        seen, said = self.token_side(tokens), self.word_side(question)
        with torch.autocast(seen.device.type, enabled=False):
            seen, said = F.normalize(seen.float(), dim=-1), F.normalize(said.float(), dim=-1)
            return self.sharpness.exp().clamp(max=MOST_SHARP) * torch.einsum("bthwc,bqc->bqthw", seen, said)

    def read(self, tokens: Tensor, places: Tensor, question: Tensor) -> Tensor:
        """Tokens (B, N, D) at places (B, N, 3) and the questions (B, Q, D) -> logits of `ANSWERS`, (B, Q, answers)."""
        part = places / torch.tensor(SIZE, device=places.device)
        waves = part[..., None] * torch.pi * torch.tensor([1.0, 2.0, 4.0, 8.0], device=places.device)
        tokens = tokens + self.place(torch.cat([waves.sin(), waves.cos()], -1).flatten(2))
        asked = question.flatten(0, 1)[:, None]
        latents = asked + torch.cat([torch.zeros_like(asked), self.latents.expand(len(asked), -1, -1)], 1)
        for block in self.blocks:
            latents = block(latents, tokens)
        return self.answer(latents[:, 0]).unflatten(0, question.shape[:2])

    def pooled(self, films: Tensor, words: Tensor, kernel: Triple, mode: WeightMode | str) -> tuple[Tensor, Tensor]:
        """films (B, ...) and words (B, Q, n) -> logits (B, Q, answers) through windows of `kernel`, and the scores
        (B, Q, T, H, W); gradients reach all of it."""
        tokens, question = self.tower(films), self.question(words)
        scores = self.scores(tokens, question)
        both = torch.cat([tokens, places_of(SIZE, films.device).expand(len(films), *SIZE, 3)], -1)
        guided = max(kernel) > 1 and WeightMode(mode) is not WeightMode.UNIFORM
        if guided:  # every question has its own windows
            both = both.repeat_interleave(question.shape[1], 0)
            question = question.flatten(0, 1)[:, None]
        if max(kernel) > 1:
            both = prompt_guided_pool3d(
                both, logits=scores.flatten(0, 1) if guided else None, kernel=kernel, tail=Tail.KEEP, weight_mode=mode,
                layout="bthwc",
            )  # fmt: skip
        both = both.flatten(1, 3)
        logits = self.read(both[..., :-3], both[..., -3:], question)
        return logits.view(*words.shape[:2], -1), scores

    def reduced(
        self, films: Tensor, words: Tensor, reducers: Sequence[str], budgets: Sequence[int]
    ) -> dict[tuple[str, int], Tensor]:
        """Logits (B, answers) of the first question for each reducer and budget; the tower sees each film once."""
        tokens, question = self.tower(films), self.question(words)[:, :1]
        scores = self.scores(tokens, question)[:, 0]
        found = {}
        for name in reducers:
            for budget in budgets:
                rows = []
                for i in range(len(films)):
                    kept, places = reduce(name, tokens[i], scores[i], budget)
                    rows.append(self.read(kept[None], places[None], question[i : i + 1])[0])
                found[name, budget] = torch.cat(rows)
        return found

    def save(self, path: str | Path) -> None:
        """Weights as safetensors, settings in their header."""
        write_tensors(Path(path), dict(self.state_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "Reader":
        """What `save` wrote, with the usual settings. Raises UserError for other weights."""
        reader = cls()
        try:
            reader.load_state_dict(load_state(Path(path)))
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{path} holds no small reader: {str(error).splitlines()[0]}") from error
        return reader.eval()

    @property
    def facts(self) -> dict[str, Any]:
        return asdict(self.settings)


def chosen(logits: Tensor, kind: Tensor) -> Tensor:
    """The answer (...) by logits (..., answers) among those that a question of its kind (...) may have."""
    allowed = torch.full((len(KINDS), len(ANSWERS)), float("-inf"), device=logits.device)
    for number, name in enumerate(KINDS):
        allowed[number, SPANS[name]] = 0
    return (logits + allowed[kind]).argmax(-1)
