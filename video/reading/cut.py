"""The prompt of a film that was pooled: which placeholders stay, which frames' texts go, which time stamps change.

A frame's text is what stands between the placeholders of the frame before and its own. A window of frames keeps the
text of its first frame and as many placeholders as it has tokens; the other frames go with their texts.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from longtake.errors import UserError
from longtake.kernels.pooling.windows import Triple, Windows
from longtake.video.reading.families import Stamp
from torch import Tensor

LONGEST_LABEL = 24  # tokens of a frame's label
LONGEST_BREAK = 2  # tokens between frames that have none: a line's end
_SECONDS = re.compile(r"<(\d+(?:\.\d+)?) seconds>")


@dataclass
class Film:
    """A film in a batch. row: of input_ids. size: (T, H, W) tokens. slots: (T, H * W) positions of its placeholders.
    extra: positions of the tokens behind it. first: number of its first feature."""

    row: int
    size: Triple
    slots: Tensor
    extra: Tensor
    first: int

    @property
    def tokens(self) -> int:
        return self.slots.numel() + self.extra.numel()

    def between(self, frame: int) -> range:
        """Positions of a frame's text; of the first frame's nothing is known but where it ends."""
        return range(int(self.slots[frame - 1, -1]) + 1, int(self.slots[frame, 0])) if frame else range(0)


def find_films(
    ids: Tensor, token: int, frame: tuple[int, int], sizes: list[Triple] | None, extra: int, features: int
) -> list[Film]:
    """The films of input_ids (B, L) by their placeholders `token`. sizes: of each in order, or None: then all the
    frames of a row are one film. Raises UserError when the number of placeholders is not that of the features."""
    films: list[Film] = []
    places = [(row == token).nonzero().flatten() for row in ids]
    found = sum(len(place) for place in places)
    if found != features:
        raise UserError(
            f"the prompts hold {found} placeholders (token {token}) and the films make {features} features; give the "
            "inputs as the processor made them"
        )
    first, left = 0, list(sizes) if sizes is not None else None
    area = frame[0] * frame[1]
    for row, place in enumerate(places):
        while len(place):
            if left is None:
                if len(place) % area:
                    raise UserError(f"{len(place)} placeholders in prompt {row} are no whole frames of {area} tokens")
                size = (len(place) // area, *frame)
            else:
                size = left.pop(0)
            want = size[0] * size[1] * size[2]
            if len(place) < want + extra:
                raise UserError(f"prompt {row} has {len(place)} placeholders left for a film of {want + extra} tokens")
            slots = place[:want].view(size[0], -1)
            if not bool((slots.diff(dim=1) == 1).all()):
                raise UserError(f"the placeholders of a frame in prompt {row} do not stand in one piece")
            films.append(Film(row, size, slots, place[want : want + extra], first))
            first += want + extra
            place = place[want + extra :]
    return films


def most_frames(film: Film, ids: Tensor, stamp: Stamp, tokenizer: Any) -> int | None:
    """Frames that a window may span: 1 where the texts of frames are not known to be labels, None for any number."""
    texts = [[int(i) for i in ids[film.row, list(film.between(frame))]] for frame in range(1, film.size[0])]
    if not any(texts):
        return None
    if stamp is Stamp.SECONDS:
        return None if tokenizer is not None else 1
    if stamp is Stamp.LABEL:
        return None if max(map(len, texts)) <= LONGEST_LABEL else 1
    return None if all(text == texts[0] for text in texts) and len(texts[0]) <= LONGEST_BREAK else 1


def shortened_row(
    ids: Tensor, films: list[tuple[Film, Windows]], stamp: Stamp, tokenizer: Any
) -> tuple[list[int], list[int]]:
    """One row of input_ids (L,) without what its pooled films no longer need.

    Returns the ids, and for each the position that it had; -1 for those that are new.
    """
    gone = torch.zeros(len(ids), dtype=torch.bool)
    new: dict[int, tuple[int, list[int]]] = {}  # position -> how many go from there, ids in their place
    for film, windows in films:
        step, kept = windows.stride[0], windows.output[1] * windows.output[2]
        for frame in range(film.size[0]):
            slots = film.slots[frame]
            if frame % step == 0:
                gone[slots[kept:]] = True
                last = min(frame + windows.kernel[0], film.size[0]) - 1
                if stamp is Stamp.SECONDS and last > frame:
                    start, count, put = _restamped(ids, film, frame, last, tokenizer)
                    new[start] = (count, put)
            else:
                gone[list(film.between(frame))] = True
                gone[slots] = True
    kept_ids: list[int] = []
    kept_from: list[int] = []
    position = 0
    while position < len(ids):
        if position in new:
            count, put = new[position]
            kept_ids += put
            kept_from += [-1] * len(put)
            position += count
            continue
        if not gone[position]:
            kept_ids.append(int(ids[position]))
            kept_from.append(position)
        position += 1
    return kept_ids, kept_from


def _restamped(ids: Tensor, film: Film, first: int, last: int, tokenizer: Any) -> tuple[int, int, list[int]]:
    """Where the stamp of the first frame stands, how many ids it takes, and the ids that name the window's middle."""
    start, count, seconds = _stamp(ids, film, first, tokenizer)
    until = _stamp(ids, film, last, tokenizer)[2]
    text = tokenizer.decode(ids[start : start + count].tolist())
    middle = (seconds + until) / 2
    put = _SECONDS.sub(f"<{middle:.1f} seconds>", text)
    return start, count, list(tokenizer.encode(put, add_special_tokens=False))


def _stamp(ids: Tensor, film: Film, frame: int, tokenizer: Any) -> tuple[int, int, float]:
    """Position, length and seconds of a frame's stamp: the fewest ids before its placeholders that hold it."""
    end = int(film.slots[frame, 0])
    for start in range(end - 1, max(-1, end - LONGEST_LABEL - 1), -1):
        text = tokenizer.decode(ids[start:end].tolist())
        if found := _SECONDS.search(text):
            if list(tokenizer.encode(text, add_special_tokens=False)) == ids[start:end].tolist():
                return start, end - start, float(found[1])
    raise UserError(f"no time stamp '<1.0 seconds>' stands before frame {frame} of the film in prompt {film.row}")
