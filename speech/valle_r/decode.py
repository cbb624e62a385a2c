"""Decoding VALL-E R frame by frame: the pointer goes through the text, each phoneme once, none left out.

At each frame the pointer stays or advances by one, drawn from the two choices' probability alone (section 3.3 of arXiv
2406.07855); the end is allowed only on the last phoneme. So the text is spoken whole and in order by construction. How
long a phoneme may last is bounded; a budget of frames forces advances instead of cutting the text.
Shape legend: L phonemes of the target text, T frames at the merged rate, D layers.

    spoken = decode(model, text, prompt, generator=frame_generator(seed, 0, 0, 0))
    spoken.codes, spoken.pointer                    # (T,), (T,): the code and the phoneme of each frame
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from longtake.errors import UserError
from longtake.speech.text.symbols import ID, MARKS, PUNCTUATION, VOWELS

SILENT = frozenset(ID[symbol] for symbol in PUNCTUATION)
LONG = SILENT | {ID[symbol] for symbol in (*VOWELS, *MARKS)}  # what may last as long as a vowel


@dataclass(frozen=True)
class Sampling:
    """How a code and the pointer are drawn.

    top_p: share of the probability that is kept, the likeliest first; top_k: how many codes, 0: all. temperature: 0
    takes the likeliest. repeats, window: a code that made up at least this share of the last frames is drawn anew from
    all codes (VALL-E 2, arXiv 2406.05370); 0: never. greedy_pointer: the likelier of staying and advancing.
    median_pointer: advancing once it is likelier than not that a drawn pointer would have left, which stays nowhere
    for long because each single frame says so. Raises UserError for numbers that cannot be, and for both pointers.
    """

    top_p: float = 0.9
    top_k: int = 0
    temperature: float = 1.0
    repeats: float = 0.0
    window: int = 10
    greedy_pointer: bool = False
    median_pointer: bool = False

    def __post_init__(self) -> None:
        if self.greedy_pointer and self.median_pointer:
            raise UserError("the pointer is greedy or goes by the median: ask for one of them")
        if not 0 < self.top_p <= 1 or self.top_k < 0 or not 0 <= self.temperature < 100:
            raise UserError(
                "sampling needs 0 < top_p <= 1, top_k >= 0 and a temperature of 0 or more, got "
                f"{self.top_p}, {self.top_k} and {self.temperature}"
            )
        if not 0 <= self.repeats <= 1 or self.window < 1:
            raise UserError(f"repeats must be a share and window at least 1, got {self.repeats} and {self.window}")


@dataclass(frozen=True)
class Limits:
    """Frames that one phoneme may last, and all of them.

    shortest: at least. vowel, consonant: at most, vowels, silence and marks as the first. budget: of the target, for
    each of its phonemes; when it runs out the pointer advances with every frame. Raises UserError for less than 1.
    """

    shortest: int = 1
    vowel: int = 56
    consonant: int = 22
    budget: int = 16

    def __post_init__(self) -> None:
        if self.shortest < 1 or min(self.vowel, self.consonant) < self.shortest or self.budget < 1:
            raise UserError(f"a phoneme lasts at least 1 frame and at most as long as its limit, got {self}")

    @classmethod
    def at(cls, frame_rate: float, vowel: float = 1.5, consonant: float = 0.6) -> Limits:
        """Of a merged frame rate, from seconds."""
        return cls(vowel=max(1, round(vowel * frame_rate)), consonant=max(1, round(consonant * frame_rate)))

    def longest(self, phoneme: int) -> int:
        """Most frames of a phoneme."""
        return self.vowel if phoneme in LONG else self.consonant


@dataclass(frozen=True)
class Prompt:
    """Speech to go on from: its voice is kept.

    text: (P,) phonemes. codes: (D, F) at the full rate. pointer: (ceil(F / m),) the phoneme of each merged frame.
    Raises UserError for lengths that do not fit or a pointer that is not into the text.
    """

    text: torch.Tensor
    codes: torch.Tensor
    pointer: torch.Tensor

    def __post_init__(self) -> None:
        frames, merged = self.codes.shape[-1], len(self.pointer)
        if self.codes.ndim != 2 or merged < 1 or frames % merged:
            raise UserError(
                f"a prompt's pointer needs one phoneme for each merged frame, got {merged} for codes {frames} long"
            )
        if int(self.pointer.min()) < 0 or int(self.pointer.max()) >= len(self.text):
            raise UserError(f"a prompt's pointer must be into its {len(self.text)} phonemes")

    @property
    def merge(self) -> int:
        """Frames at the full rate of one merged frame."""
        return self.codes.shape[-1] // len(self.pointer)

    @property
    def first(self) -> torch.Tensor:
        """The first layer's codes (T,) at the merged rate."""
        return self.codes[0, :: self.merge]


@dataclass(frozen=True)
class Spoken:
    """codes: (T,) of the first layer, int64. pointer: (T,) the index of each frame's phoneme in the target text.
    expected: (T, c) the mean of the first codebook under each frame's shares, where ``decode`` was given that book."""

    codes: torch.Tensor
    pointer: torch.Tensor
    expected: torch.Tensor | None = None


class Voiced(Protocol):
    """What ``decode`` asks of a model: ``AR`` has it."""

    entries: int
    end: int
    begin: int
    pointer: str
    lead: int
    begins: bool

    def __call__(self, text: Any, codes: Any, pointer: Any, *, cache: Any) -> tuple[Any, Any]: ...

    def step(self, cache: Any, text: Any, code: Any, pointer: Any, places: Any, spent: Any) -> tuple[Any, Any]: ...

    def cache(self, capacity: int) -> Any: ...


# --------------------------------------------------------------------------------------------------------- sampling


def advance(logits: torch.Tensor, pointer: str, here: int, following: int) -> float:
    """Probability of advancing: the two choices' softmax. logits: (V,) of phonemes for "identity", of which ``here``
    and ``following`` are looked at, (2,), stay and go, for "stay_go"."""
    stay, go = (logits[here], logits[following]) if pointer == "identity" else (logits[0], logits[1])
    return float(torch.sigmoid((go - stay).double()))


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None, full: bool = False) -> int:
    """A code by logits (K,); full: from all of them, whatever top_p and top_k say."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits.float() / sampling.temperature
    if not full and 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    shares = logits.softmax(-1)
    if not full and sampling.top_p < 1:
        ordered, order = shares.sort(descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(0) - ordered >= sampling.top_p, 0.0)
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(shares, 1, generator=generator))


def expected(logits: torch.Tensor, code: int, sampling: Sampling, book: torch.Tensor) -> torch.Tensor:
    """The mean (c,) of a codebook (K, c) under what logits (K or more,) say at the temperature of ``sampling``; the
    vector of ``code`` where that is 0."""
    if sampling.temperature == 0:
        return book[code]
    return (logits[: len(book)].float() / sampling.temperature).softmax(-1) @ book.float()


def chosen(
    logits: torch.Tensor,
    sampling: Sampling,
    generator: torch.Generator | None,
    before: Sequence[int],
    silent: bool,
) -> int:
    """A code by logits (K,), drawn again from all codes when the last frames repeat it too much. Silence may repeat: so
    do its merged codes."""
    code = draw(logits, sampling, generator)
    if sampling.repeats > 0 and not silent:
        recent = before[-sampling.window :]
        if recent and sum(other == code for other in recent) / sampling.window >= sampling.repeats:
            code = draw(logits, sampling, generator, full=True)
    return code


# ----------------------------------------------------------------------------------------------------------- pointer


class Pointer:
    """Where in the target text the sound is: at ``here``, for ``spent`` frames so far."""

    def __init__(self, text: Sequence[int], limits: Limits, frames: int | None = None) -> None:
        self.text, self.limits = text, limits
        self.last = len(text) - 1
        self.left = limits.budget * len(text) if frames is None else frames
        self.here, self.spent = 0, 0
        self.stayed = 1.0  # how likely a drawn pointer would still be here

    def speak(self) -> None:
        """One frame of the phoneme is spoken."""
        self.spent += 1
        self.left -= 1

    def must_advance(self) -> bool:
        """Whether no choice is left but the next phoneme."""
        if self.here == self.last:
            return False
        short = self.left <= self.last - self.here
        return short or self.spent >= self.limits.longest(self.text[self.here])

    def may_advance(self) -> bool:
        """Whether the next phoneme may come."""
        return self.here < self.last and (self.spent >= self.limits.shortest or self.must_advance())

    def may_end(self) -> bool:
        """Whether the sound may end: only after frames of the last phoneme."""
        return self.here == self.last and self.spent >= self.limits.shortest

    def must_end(self) -> bool:
        """Whether it has to."""
        return self.may_end() and (self.left <= 0 or self.spent >= self.limits.longest(self.text[self.here]))

    def go(self) -> None:
        """To the next phoneme."""
        self.here, self.spent, self.stayed = self.here + 1, 0, 1.0

    def move(self, logits: torch.Tensor, kind: str, sampling: Sampling, generator: torch.Generator | None) -> None:
        """Stay or advance, by the model's logits where there is a choice."""
        if self.must_advance():
            self.go()
        elif self.may_advance():
            share = advance(logits, kind, self.text[self.here], self.text[self.here + 1])
            self.stayed *= 1 - share
            if sampling.median_pointer:
                goes = self.stayed < 0.5
            elif sampling.greedy_pointer:
                goes = share > 0.5
            else:
                goes = share > float(torch.rand((), generator=generator, dtype=torch.float64))
            if goes:
                self.go()


# ------------------------------------------------------------------------------------------------------------ decode


@torch.no_grad()
def decode(
    model: Voiced,
    text: torch.Tensor,
    prompt: Prompt | None = None,
    *,
    generator: torch.Generator | None = None,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    alignment: torch.Tensor | None = None,
    cache: Any = None,
    book: torch.Tensor | None = None,
) -> Spoken:
    """Codes of the first layer for a target text (L,), L >= 1, after ``prompt``.

    generator: on the CPU. alignment: (T,), the phoneme of each frame, then nothing of the pointer is drawn and the
    sound is T frames long. cache: one that is large enough, used from its start; None: a new one. book: the first
    codebook (K, c), for ``Spoken.expected``.
    Raises UserError for an empty text, an alignment that leaves out a phoneme, and a model without a pointer.
    """
    if model.pointer == "none":
        raise UserError("this model has no pointer: use decode_plain, as for VALL-E")
    sampling, limits = sampling or Sampling(), limits or Limits()
    if text.ndim != 1 or not len(text):
        raise UserError(f"a text of at least one phoneme is needed, got shape {tuple(text.shape)}")
    plan = None if alignment is None else _checked(alignment, len(text))
    target = text.tolist()
    place = Pointer(target, limits, None if plan is None else len(plan))
    before = 0 if prompt is None else len(prompt.text)
    whole = text if prompt is None else torch.cat([prompt.text, text])
    whole = whole[None]
    device = text.device

    given = torch.empty(0, dtype=torch.int64, device=device) if prompt is None else prompt.first
    stood = torch.empty(0, dtype=torch.int64, device=device) if prompt is None else prompt.pointer
    carried = torch.cat([torch.tensor([model.begin], device=device), given])
    if model.lead:
        rows = torch.cat([stood, torch.tensor([before], device=device)])
    else:
        rows = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), stood])
    frames = len(plan) if plan is not None else limits.budget * len(text)
    cache = cache if cache is not None else model.cache(whole.shape[1] + len(carried) + frames)
    said, moved = model(whole, carried[None], rows[None], cache=cache)
    said, moved = said[:, -1], moved[:, -1]

    codes: list[int] = []
    pointer: list[int] = []
    vectors: list[torch.Tensor] = []
    dwelt = 0  # frames before the next row in which the pointer it carries has stood where it stands
    begun = len(given)
    while True:
        if plan is not None:
            if len(codes) == len(plan):
                break
            if codes and plan[len(codes)] != place.here:
                place.go()
        elif codes and not model.lead:
            place.move(moved[0], model.pointer, sampling, generator)
        if plan is None and place.must_end():
            break
        logits = said[0]
        if plan is not None or not place.may_end():
            logits = logits.clone()
            logits[model.end] = -torch.inf
        code = chosen(logits, sampling, generator, codes, target[place.here] in SILENT)
        if code == model.end:
            break
        codes.append(code)
        pointer.append(place.here)
        if book is not None:
            vectors.append(expected(logits, code, sampling, book))
        place.speak()
        if model.lead:
            if plan is None:
                place.move(moved[0], model.pointer, sampling, generator)
            elif len(codes) < len(plan) and plan[len(codes)] != place.here:
                place.go()
            if plan is None and place.must_end():
                break
            dwelt = place.spent
        else:
            dwelt = place.spent - 1
        if plan is not None and len(codes) == len(plan):
            break
        said, moved = model.step(
            cache,
            whole,
            torch.tensor([code], device=device),
            torch.tensor([before + place.here], device=device),
            torch.tensor([begun + len(codes)], device=device),
            torch.tensor([dwelt], device=device),
        )
    return Spoken(
        torch.tensor(codes, dtype=torch.int64),
        torch.tensor(pointer, dtype=torch.int64),
        torch.stack(vectors) if vectors else None,
    )


@torch.no_grad()
def decode_plain(
    model: Voiced,
    text: torch.Tensor,
    given: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
    sampling: Sampling | None = None,
    budget: int = 16,
    cache: Any = None,
) -> torch.Tensor:
    """VALL-E's own decoding, without a pointer: codes (T,) after the codes ``given`` (F,) of a prompt.

    text: (P + L,) phonemes of prompt and target. The end comes when it is drawn, when it is the likeliest, or after
    ``budget`` frames for each phoneme. A model without a begin needs at least one code. Raises UserError without one.
    """
    sampling = sampling or Sampling()
    if not model.begins and not len(given):
        raise UserError("this model has no begin: give a prompt of at least one frame")
    device = text.device
    start = [torch.tensor([model.begin], device=device)] if model.begins else []
    carried = torch.cat([*start, given])
    most = budget * len(text)
    cache = cache if cache is not None else model.cache(len(text) + len(carried) + most)
    said, _ = model(text[None], carried[None], None, cache=cache)
    said = said[:, -1]
    codes: list[int] = []
    while len(codes) < most:
        code = chosen(said[0], sampling, generator, codes, False)
        if code == model.end or int(said[0].argmax()) == model.end:
            break
        codes.append(code)
        place = torch.tensor([len(carried) + len(codes) - 1], device=device)
        said, _ = model.step(cache, text[None], torch.tensor([code], device=device), None, place, None)
    return torch.tensor(codes, dtype=torch.int64)


def _checked(alignment: torch.Tensor, symbols: int) -> list[int]:
    found = alignment.tolist()
    steps = {b - a for a, b in zip(found, found[1:], strict=False)}
    if not found or found[0] != 0 or found[-1] != symbols - 1 or not steps <= {0, 1}:
        raise UserError(
            f"an alignment must go from phoneme 0 to {symbols - 1} and give each at least one frame, in order"
        )
    return found
