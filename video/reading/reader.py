"""The small reader: a tower that makes a token of every 4 x 4 pixels, a guide, and a transformer that reads what a
reducer leaves of them and answers.

It exists to measure reducers where the answer is known (see `compare`): one set of weights for all of them, 4,096
tokens a film (16 frames x 16 x 16). It is no tool for films of people.

Shapes: B films, T frames, 16 x 16 tokens of a frame, D width, N tokens that are read.
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
        self.time = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, D) -> the same."""
        films, frames, rows, columns, width = x.shape
        y = self.space(x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).view(x.shape)
        line = y.permute(0, 2, 3, 4, 1).reshape(-1, width, frames)
        y = self.time(line).view(films, rows, columns, width, frames).permute(0, 4, 1, 2, 3)
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
        """latents (B, L, D), tokens (B, N, D) -> latents."""
        key, value = self.key_value(self.norm_kv(tokens)).chunk(2, -1)
        latents = latents + self.out(self._attend(self.query(self.norm_q(latents)), key, value))
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
        """words (B, L), 0 where there is none -> (B, D)."""
        real = (words > 0).float()[..., None]
        return self.said((self.words(words) * real).sum(1) / real.sum(1))

    def scores(self, tokens: Tensor, question: Tensor) -> Tensor:
        """(B, T, H, W, D) and (B, D) -> how well each token fits the question, (B, T, H, W)."""
        seen = F.normalize(self.token_side(tokens).float(), dim=-1)
        said = F.normalize(self.word_side(question).float(), dim=-1)[:, None, None, None]
        return self.sharpness.exp().clamp(max=MOST_SHARP) * (seen * said).sum(-1)  # no matrix product: float32 stays

    def read(self, tokens: Tensor, places: Tensor, question: Tensor) -> Tensor:
        """Tokens (B, N, D) at places (B, N, 3) and the question (B, D) -> logits of `ANSWERS`, (B, 16)."""
        part = places / torch.tensor(SIZE, device=places.device)
        waves = part[..., None] * torch.pi * torch.tensor([1.0, 2.0, 4.0, 8.0], device=places.device)
        tokens = tokens + self.place(torch.cat([waves.sin(), waves.cos()], -1).flatten(2))
        latents = torch.cat([question[:, None], self.latents.expand(len(tokens), -1, -1)], 1)
        latents = latents + question[:, None]
        for block in self.blocks:
            latents = block(latents, tokens)
        return self.answer(latents[:, 0])

    def pooled(self, films: Tensor, words: Tensor, kernel: Triple, mode: WeightMode | str) -> tuple[Tensor, Tensor]:
        """Logits (B, 16) through windows of `kernel`, and the scores; gradients reach all of it."""
        tokens, question = self.tower(films), self.question(words)
        scores = self.scores(tokens, question)
        places = places_of(SIZE, films.device).expand(len(films), *SIZE, 3)
        guide = None if WeightMode(mode) is WeightMode.UNIFORM else scores
        both = torch.cat([tokens, places], -1)
        if max(kernel) > 1:
            both = prompt_guided_pool3d(
                both, logits=guide, kernel=kernel, tail=Tail.KEEP, weight_mode=mode, layout="bthwc"
            )
        both = both.flatten(1, 3)
        return self.read(both[..., :-3], both[..., -3:], question), scores

    def reduced(
        self, films: Tensor, words: Tensor, reducers: Sequence[str], budgets: Sequence[int]
    ) -> dict[Any, Tensor]:
        """Logits (B, 16) for each pair of a reducer and a budget; the tower sees each film once."""
        tokens, question = self.tower(films), self.question(words)
        scores = self.scores(tokens, question)
        found = {}
        for name in reducers:
            for budget in budgets:
                rows = [
                    self.read(*(x[None] for x in reduce(name, tokens[i], scores[i], budget)), question[i : i + 1])
                    for i in range(len(films))
                ]
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
    """The answer (B,) among those that a question of its kind may have."""
    allowed = torch.full((len(KINDS), len(ANSWERS)), float("-inf"), device=logits.device)
    for number, name in enumerate(KINDS):
        allowed[number, SPANS[name]] = 0
    return (logits + allowed[kind]).argmax(1)
