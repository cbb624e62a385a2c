"""The autoregressive part of VALL-E R: the first codec layer, frame by frame, with a monotone pointer into the text.

A row of sound carries the code before it and the phoneme that the pointer stands on (section 3 of arXiv 2406.07855).
Ours go further where asked: ``pointer="stay_go"`` asks only whether the pointer moves, so that equal neighbours are no
coin flip (the finding of Lu et al., Interspeech 2025); ``lead`` tells a row the phoneme of its own frame instead of the
one before; ``around``, ``place`` and ``dwell`` tell it the neighbours, the pointer's place, and for how long it stands.
Shape legend: B batch, L phonemes of the text, T frames of sound at the merged rate, V symbols, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.kernels import Ranges, SliceKind
from longtake.speech.valle_r.cache import Cache
from longtake.speech.valle_r.network import Places, Size, Transformer, by_mask, by_rule
from torch import nn

POINTERS = ("none", "identity", "stay_go")
IGNORED = -100  # a target that no loss sees


def around_ids(text: torch.Tensor, pointer: torch.Tensor, reach: int) -> torch.Tensor:
    """Phonemes (B, T, 2 reach) left and right of a pointer (B, T) into text (B, L); 0, the pad, beyond the ends."""
    steps = torch.arange(-reach, reach + 1, device=text.device)
    steps = torch.cat([steps[:reach], steps[reach + 1 :]])
    where = pointer[..., None] + steps
    inside = (where >= 0) & (where < text.shape[1])
    found = text.gather(1, where.clamp(0, text.shape[1] - 1).flatten(1)).view(where.shape)
    return torch.where(inside, found, 0)


def dwelt(pointer: torch.Tensor) -> torch.Tensor:
    """How many rows before each row of a pointer (B, T) stood on the same phoneme without a break, int64."""
    place = torch.arange(pointer.shape[1], device=pointer.device).expand_as(pointer)
    moved = F.pad(pointer[:, 1:] != pointer[:, :-1], (1, 0), value=True)
    return place - torch.where(moved, place, 0).cummax(1).values


class Spoken(nn.Module):
    """What a row knows of the phoneme the pointer stands on: itself, its neighbours, its place, the time spent."""

    def __init__(self, symbols: int, width: int, around: int, place: bool, dwell: int) -> None:
        super().__init__()
        self.symbols, self.around, self.longest = symbols, around, dwell
        self.here = nn.Embedding(symbols, width)
        self.near = nn.Embedding(2 * around * symbols, width) if around else None
        self.place = Places(width) if place else None
        self.dwell = nn.Embedding(dwell, width) if dwell else None

    def forward(self, text: torch.Tensor, pointer: torch.Tensor, spent: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, d) of a pointer (B, T) into text (B, L); spent: (B, T) as ``dwelt`` tells, where it is used."""
        row = self.here(text.gather(1, pointer))
        if self.near is not None:
            steps = torch.arange(2 * self.around, device=text.device) * self.symbols
            row = row + self.near(around_ids(text, pointer, self.around) + steps).sum(2)
        if self.place is not None:
            row = row + self.place(pointer)
        if self.dwell is not None:
            spent = dwelt(pointer) if spent is None else spent
            row = row + self.dwell(spent.clamp_max(self.longest - 1))
        return row


class AR(nn.Module):
    """See the module.

    symbols: V. entries: K, the codes; K is the end, K + 1 the begin where ``begins``. pointer: "none" is VALL-E.
    lead: 1, a row carries the phoneme of its own frame, 0, of the frame before (the paper).
    Raises UserError for a pointer that does not exist and for a lead other than 0 and 1.
    """

    def __init__(
        self,
        size: Size,
        *,
        symbols: int = 178,
        entries: int = 1024,
        dropout: float = 0.1,
        pointer: str = "stay_go",
        lead: int = 1,
        begins: bool = True,
        around: int = 0,
        place: bool = False,
        dwell: int = 0,
    ) -> None:
        super().__init__()
        if pointer not in POINTERS:
            raise UserError(f"unknown pointer {pointer!r}; allowed are {', '.join(POINTERS)}")
        if lead not in (0, 1) or (pointer == "none" and (lead or around or place)) or (dwell and not lead):
            raise UserError(
                f"lead must be 0 or 1, dwell needs lead 1, around and place a pointer; got {lead} and {dwell}"
            )
        self.size, self.symbols, self.entries = size, symbols, entries
        self.end, self.begin = entries, entries + 1
        self.pointer, self.lead, self.begins = pointer, lead, begins
        self.config: dict[str, Any] = {
            "width": size.width,
            "heads": size.heads,
            "layers": size.layers,
            "feedforward": size.feedforward,
            "symbols": symbols,
            "entries": entries,
            "dropout": dropout,
            "pointer": pointer,
            "lead": lead,
            "begins": begins,
            "around": around,
            "place": place,
            "dwell": dwell,
        }
        width = size.width
        self.text_emb = nn.Embedding(symbols, width)
        self.code_emb = nn.Embedding(entries + 1 + begins, width)
        self.text_place, self.code_place = Places(width), Places(width)
        self.spoken = Spoken(symbols, width, around, place, dwell) if pointer != "none" else None
        self.transformer = Transformer(size, dropout)
        self.predict = nn.Linear(width, entries + 1, bias=False)
        self.move = nn.Linear(width, symbols if pointer == "identity" else 2) if pointer != "none" else None

    @classmethod
    def of(cls, config: dict[str, Any]) -> AR:
        """From ``config``."""
        told = dict(config)
        return cls(Size(*(told.pop(key) for key in ("width", "heads", "layers", "feedforward"))), **told)

    # ------------------------------------------------------------------------------------------------------ rows

    def text_rows(self, text: torch.Tensor) -> torch.Tensor:
        """(B, L, d) of phonemes (B, L)."""
        return self.text_emb(text) + self.text_place.first(text.shape[1])

    def code_rows(
        self,
        text: torch.Tensor,
        codes: torch.Tensor,
        pointer: torch.Tensor | None,
        places: torch.Tensor | None = None,
        spent: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, n, d) of the codes (B, n) that rows carry, the begin among them, and of the phoneme ``pointer`` (B, n)
        into ``text`` stands on. places, spent: (B, n), where the rows are not the first n of a sequence."""
        row = self.code_emb(codes)
        row = row + (self.code_place.first(codes.shape[1]) if places is None else self.code_place.at(places))
        if self.spoken is not None:
            assert pointer is not None
            row = row + self.spoken(text, pointer, spent)
        return row

    def heads(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (..., K + 1) of the code and (..., V or 2) of the pointer of rows (..., d)."""
        return self.predict(hidden), None if self.move is None else self.move(hidden)

    # -------------------------------------------------------------------------------------------------- sequences

    def forward(
        self,
        text: torch.Tensor,
        codes: torch.Tensor,
        pointer: torch.Tensor | None = None,
        text_lengths: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``heads`` of the rows of sound: text rows see all text, rows of sound all text and the rows up to their own.

        text: (B, L). codes: (B, T) that the rows carry. pointer: (B, T). text_lengths, lengths: (B,) what is real,
        where rows are padded. cache: keeps the sequence for ``step``.
        """
        many, rows = text.shape[1], codes.shape[1]
        x = torch.cat([self.text_rows(text), self.code_rows(text, codes, pointer)], 1)
        if text_lengths is None:
            full = (0, many + rows, 0, many, SliceKind.FULL)
            after = (many, many + rows, many, many + rows, SliceKind.CAUSAL)
            attend = by_rule(Ranges((full, after) if rows else (full,)))
        else:
            attend = by_mask(visible(many, rows, text_lengths))
        if cache is not None:
            attend = cache.fill(attend, many + rows, many, text_lengths, lengths)
        return self.heads(self.transformer(x, attend)[:, many:])

    def step(
        self,
        cache: Cache,
        text: torch.Tensor,
        code: torch.Tensor,
        pointer: torch.Tensor | None,
        places: torch.Tensor,
        spent: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``heads`` (B, ...) of one more row of each sequence: the code (B,) before it, the pointer (B,), the row's
        place (B,) in the sound, and how long the pointer has stood there (B,)."""
        rows = self.code_rows(
            text,
            code[:, None],
            None if pointer is None else pointer[:, None],
            places[:, None],
            None if spent is None else spent[:, None],
        )
        return self.heads(self.transformer(rows, cache.step())[:, 0])

    def cache(self, capacity: int, rows: int = 1) -> Cache:
        """A cache of this model's shape, device and number format for ``capacity`` rows of text and sound."""
        weight = self.predict.weight
        size = self.size
        return Cache(
            layers=size.layers,
            heads=size.heads,
            depth=size.width // size.heads,
            capacity=capacity,
            rows=rows,
            device=weight.device,
            dtype=weight.dtype,
        )


def visible(many: int, rows: int, text_lengths: torch.Tensor) -> torch.Tensor:
    """Which row sees which (B, L + T, L + T) bool, of text padded to ``many`` and ``rows`` of sound. A row of padding
    sees what its neighbours see."""
    place = torch.arange(many + rows, device=text_lengths.device)
    text = place[None, None, :] < text_lengths[:, None, None]
    sound = (place[None, :] >= many) & (place[:, None] >= place[None, :])
    return text | sound


# -------------------------------------------------------------------------------------------------------- training


def lesson(
    model: AR,
    text: torch.Tensor,
    text_lengths: torch.Tensor,
    codes: torch.Tensor,
    labels: torch.Tensor,
    lengths: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """What rows carry and what they are to say: "codes", "pointer", "code_target", "move_target", (B, T + 1) each.

    text: (B, L), 0 beyond text_lengths (B,). codes: (B, T) of the first layer, labels: (B, T) the phoneme of each
    frame, both of any number beyond lengths (B,). ``IGNORED`` where nothing is asked.
    """
    place = torch.arange(codes.shape[1] + 1, device=codes.device)
    real = place < lengths[:, None]
    padded = F.pad(codes, (0, 1))
    begin = torch.full_like(codes[:, :1], model.begin)
    target = torch.where(real, padded, torch.where(place == lengths[:, None], model.end, IGNORED))
    stood = torch.where(real, F.pad(labels, (0, 1)), text_lengths[:, None] - 1)
    before = F.pad(stood[:, :-1], (1, 0))
    after = torch.cat([stood[:, 1:], stood[:, -1:]], 1)
    carried, chosen = (stood, after) if model.lead else (before, stood)
    asked = (place + model.lead < lengths[:, None]) & real
    said = text.gather(1, chosen) if model.pointer == "identity" else chosen - carried
    return {
        "codes": torch.cat([begin, torch.where(real[:, :-1], codes, 0)], 1),
        "pointer": carried,
        "code_target": target,
        "move_target": torch.where(asked, said, IGNORED),
    }


def objective(
    network: Any,
    model: AR,
    soft: torch.Tensor | None,
    text: torch.Tensor,
    text_lengths: torch.Tensor,
    codes: torch.Tensor,
    labels: torch.Tensor,
    lengths: torch.Tensor,
    heard: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy of code and pointer, a scalar; tensors as in ``lesson``. network: the model, as wrapped to train.

    soft: (K + 1, K + 1) what is asked for instead of each code, rows sum to 1; None: the code alone. heard: (B, T) the
    codes that rows carry where they are not ``codes`` themselves. The model must have a begin and a pointer.
    """
    told = lesson(model, text, text_lengths, codes, labels, lengths)
    carried = told["codes"]
    if heard is not None:
        carried = torch.cat([carried[:, :1], heard], 1)
    said, moved = network(text, carried, told["pointer"], text_lengths, lengths)
    move = F.cross_entropy(moved.float().flatten(0, 1), told["move_target"].flatten(), ignore_index=IGNORED)
    return softened(said.flatten(0, 1), told["code_target"].flatten(), soft) + move


def softened(logits: torch.Tensor, target: torch.Tensor, soft: torch.Tensor | None) -> torch.Tensor:
    """Cross entropy, a scalar, of logits (n, K) and targets (n,), each spread as its row of ``soft`` (K, K) says."""
    logits = logits.float()
    if soft is None:
        return F.cross_entropy(logits, target, ignore_index=IGNORED)
    asked = target != IGNORED
    wanted = soft.index_select(0, target.clamp_min(0))
    each = -(wanted * logits.log_softmax(-1)).sum(-1)
    return (each * asked).sum() / asked.sum().clamp_min(1)


def accuracy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share, a scalar, of targets (...,) that the largest of logits (..., n) names, ``IGNORED`` ones left out."""
    asked = target != IGNORED
    return ((logits.argmax(-1) == target) & asked).sum() / asked.sum().clamp_min(1)
