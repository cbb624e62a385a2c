"""Speech as codes, to train VALL-E R from: pairs of utterances of one voice, the first of them the prompt.

Shape legend: U utterances, B rows of a batch, L phonemes, T frames at the merged rate, m frames a merged one, D layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.speech.alignment import search
from longtake.speech.codec.mels import MelCodec

GRAIN = 16  # lengths of batches are multiples: kernels of a GPU like them
SIDE_BY_SIDE = 64  # utterances encoded or aligned at once


@dataclass(frozen=True)
class Flat:
    """Utterances as flat tensors on one device, as ``longtake.speech.data.Corpus`` has them.

    mels (sum of F, 80), normalised; owner (sum of F,): the symbol of each frame within its utterance; ids (sum of L,);
    first_frame, frames, first_symbol, counts, voice (U,) int64.
    """

    mels: torch.Tensor
    owner: torch.Tensor
    ids: torch.Tensor
    first_frame: torch.Tensor
    frames: torch.Tensor
    first_symbol: torch.Tensor
    counts: torch.Tensor
    voice: torch.Tensor

    @classmethod
    def of(cls, corpus: Any) -> Flat:
        """Of a corpus that has tensors of these names."""
        return cls(**{name: getattr(corpus, name) for name in cls.__dataclass_fields__})

    def to(self, device: torch.device | str) -> Flat:
        """The same elsewhere."""
        return Flat(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    def crops(self, rows: int, frames: int, dice: Any) -> torch.Tensor:
        """Mels (rows, frames, 80) float32 of random places; 0 beyond the end of a shorter utterance."""
        chosen = dice.pick(self.frames.float(), rows)
        begin = dice.below((self.frames[chosen] - frames).clamp_min(0) + 1)
        return self.cut(chosen, begin, frames)

    def cut(self, chosen: torch.Tensor, begin: torch.Tensor, frames: int) -> torch.Tensor:
        """Mels (B, frames, 80) float32 of utterances (B,) from their frames ``begin`` (B,) on; 0 beyond their ends."""
        steps = begin[:, None] + torch.arange(frames, device=chosen.device)
        here = steps < self.frames[chosen][:, None]
        place = torch.where(here, self.first_frame[chosen][:, None] + steps, 0)
        return torch.where(here[..., None], self.mels[place], 0).float()


@dataclass(frozen=True)
class Coded:
    """Utterances as codes. codes (U, D, m T) int16, text (U, L) int16, labels (U, T) int16: the phoneme of each merged
    frame; all 0 beyond ``frames`` (U,), merged ones, and ``counts`` (U,). voice (U,). rows (U,): which utterance of the
    corpus each is."""

    codes: torch.Tensor
    text: torch.Tensor
    labels: torch.Tensor
    frames: torch.Tensor
    counts: torch.Tensor
    voice: torch.Tensor
    rows: torch.Tensor

    def to(self, device: torch.device | str) -> Coded:
        """The same elsewhere."""
        return Coded(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    @property
    def merge(self) -> int:
        """m."""
        return self.codes.shape[2] // self.labels.shape[1]

    @classmethod
    def heard(cls, flat: Flat, codec: MelCodec, ways: Sequence[tuple[int, float]]) -> Coded:
        """Encode all utterances once in each of ``ways``: (first frame, what is added to the log mels)."""
        parts = [cls.of(flat, codec, *way) for way in ways]
        size = max(part.labels.shape[1] for part in parts)
        wide = [part.padded(size) for part in parts]
        return cls(**{name: torch.cat([getattr(part, name) for part in wide]) for name in cls.__dataclass_fields__})

    def padded(self, frames: int) -> Coded:
        """The same with room for ``frames`` merged frames."""
        more = frames - self.labels.shape[1]
        return replace(self, codes=F.pad(self.codes, (0, more * self.merge)), labels=F.pad(self.labels, (0, more)))

    @classmethod
    @torch.no_grad()
    def of(cls, flat: Flat, codec: MelCodec, begin: int = 0, louder: float = 0.0) -> Coded:
        """Encode all utterances from their frame ``begin`` on, ``louder`` added to their log mels; last frames that
        fill no merged one are left out.

        Utterances with more phonemes than merged frames are left out too. Raises UserError when none remains.
        """
        merge = codec.merge[0]
        merged = (flat.frames - begin) // merge
        rows = (merged >= flat.counts).nonzero()[:, 0]
        if not len(rows):
            raise UserError("no utterance has a merged frame for each phoneme: use a codec with less merging")
        rows = rows[merged[rows].argsort()]
        frames, counts = merged[rows], flat.counts[rows]
        most, longest = int(frames.max()), int(counts.max())
        device = rows.device
        text = _padded(flat.ids, flat.first_symbol[rows], counts, longest)
        codes = torch.zeros(len(rows), codec.layers, merge * most, dtype=torch.int16, device=device)
        labels = torch.zeros(len(rows), most, dtype=torch.int16, device=device)
        for start in range(0, len(rows), SIDE_BY_SIDE):
            part = slice(start, start + SIDE_BY_SIDE)
            high = int(frames[part].max())
            mel = flat.cut(rows[part], torch.full_like(rows[part], begin), merge * high)
            mel = mel * codec.deviation + codec.mean + louder
            found = codec.encode(mel.transpose(1, 2), merge * frames[part])
            inside = torch.arange(merge * high, device=device) < merge * frames[part][:, None]
            codes[part, :, : merge * high] = torch.where(inside[:, None], found, 0).to(torch.int16)
            owner = _padded(flat.owner.long(), flat.first_frame[rows[part]] + begin, merge * frames[part], merge * high)
            owner = torch.where(inside, owner, -1)
            labels[part, :high] = projected(owner, counts[part], frames[part], merge).to(torch.int16)
        return cls(codes, text.to(torch.int16), labels, frames, counts, flat.voice[rows], rows)

    def pairs(self, each: int, seed: int) -> torch.Tensor:
        """Prompts and targets (n, 2) int64 of one voice, ``each`` of every target whose voice has others.

        One utterance encoded in two ways makes no pair. Raises UserError where no voice has two utterances.
        """
        generator = torch.Generator().manual_seed(seed)
        voice = self.voice.cpu()
        found = []
        for name in voice.unique().tolist():
            mine = (voice == name).nonzero()[:, 0]
            if len(mine) < 2:
                continue
            step = torch.randint(1, len(mine), (len(mine), each), generator=generator)
            here = torch.arange(len(mine))[:, None]
            found.append(torch.stack([mine[(here + step) % len(mine)], mine[here.expand_as(step)]], -1).flatten(0, 1))
        if not found:
            raise UserError("VALL-E R learns from pairs of one voice: no voice has two utterances")
        pairs = torch.cat(found)
        rows = self.rows.cpu()[pairs]
        return pairs[rows[:, 0] != rows[:, 1]].to(self.voice.device)

    def join(self, pair: torch.Tensor, symbols: int, frames: int) -> Joined:
        """The pairs (B, 2) one after the other, padded to ``symbols`` phonemes and ``frames`` merged frames."""
        one, two = pair[:, 0], pair[:, 1]
        device = pair.device

        def both(table: torch.Tensor, first: torch.Tensor, second: torch.Tensor, size: int) -> torch.Tensor:
            place = torch.arange(size, device=device)
            in_first = place < first[:, None]
            after = place - first[:, None]
            in_second = ~in_first & (after < second[:, None])
            row = torch.where(in_first, one[:, None], two[:, None])
            column = torch.where(in_first, place, torch.where(in_second, after, 0)).clamp_max(table.shape[-1] - 1)
            if table.ndim == 3:
                found = table[row, :, column].long().transpose(1, 2)
                return torch.where((in_first | in_second)[:, None], found, 0)
            return torch.where(in_first | in_second, table[row, column].long(), 0)

        merge = self.merge
        text = both(self.text, self.counts[one], self.counts[two], symbols)
        labels = both(self.labels, self.frames[one], self.frames[two], frames)
        later = torch.arange(frames, device=device) >= self.frames[one][:, None]
        lengths = self.frames[one] + self.frames[two]
        inside = torch.arange(frames, device=device) < lengths[:, None]
        labels = torch.where(inside, labels + torch.where(later, self.counts[one][:, None], 0), 0)
        codes = both(self.codes, merge * self.frames[one], merge * self.frames[two], merge * frames)
        return Joined(text, self.counts[one] + self.counts[two], codes, labels, lengths, self.frames[one])


@dataclass(frozen=True)
class Joined:
    """Rows of prompt and target. text (B, L), text_lengths (B,); codes (B, D, m T), labels (B, T), lengths (B,) merged
    frames, prompt (B,) merged frames that are the prompt's; int64."""

    text: torch.Tensor
    text_lengths: torch.Tensor
    codes: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor
    prompt: torch.Tensor


@dataclass(frozen=True)
class Bucket:
    """Pairs (n, 2) of about one length, with the ``symbols`` and ``frames`` that their batches are padded to."""

    pairs: torch.Tensor
    symbols: int
    frames: int

    def rows(self, tokens: int) -> int:
        """How many rows have about ``tokens`` places."""
        return max(2, tokens // (self.symbols + self.frames))


def buckets(coded: Coded, pairs: torch.Tensor, count: int = 3) -> list[Bucket]:
    """Pairs sorted into ``count`` buckets of equal size by their frames; the longest fiftieth is left out."""
    frames, symbols = coded.frames[pairs].sum(1), coded.counts[pairs].sum(1)
    order = frames.argsort()
    order = order[: max(count, len(order) - len(order) // 50)]
    found = []
    for part in order.chunk(min(count, len(order))):
        # a row of sound more, its begin: both together are a multiple of the grain
        high = -(-(int(frames[part].max()) + 1) // GRAIN) * GRAIN - 1
        found.append(Bucket(pairs[part], -(-int(symbols[part].max()) // GRAIN) * GRAIN, high))
    return found


def projected(owner: torch.Tensor, counts: torch.Tensor, frames: torch.Tensor, merge: int) -> torch.Tensor:
    """The phoneme (B, T) int64 of each merged frame that agrees with most of its frames, none of them left out.

    owner: (B, m T), -1 beyond the end; counts, frames: (B,) phonemes and merged frames.
    """
    symbols = torch.arange(int(counts.max()), device=owner.device)
    overlap = (owner.unflatten(1, (-1, merge))[:, None] == symbols[:, None, None]).sum(3)
    return search(overlap.float(), counts, frames).argmax(1)


def _padded(flat: torch.Tensor, first: torch.Tensor, counts: torch.Tensor, size: int) -> torch.Tensor:
    """Rows (B, size) of a flat tensor from ``first`` (B,) on, 0 beyond ``counts`` (B,)."""
    steps = torch.arange(size, device=flat.device)
    inside = steps < counts[:, None]
    return torch.where(inside, flat[torch.where(inside, first[:, None] + steps, 0)], 0)
