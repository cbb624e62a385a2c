"""How many tokens a film may take: a budget in tokens or seconds, the windows that keep it, its split over clips, and
the memory that it means.

    parse_budget("2000 tokens")                        # Budget(tokens=2000)
    kernel_for((32, 24, 24), 1024)                     # (2, 3, 3)
    split_budget([0.9, 0.2, 0.2], 2000, least=64)      # [1276, 362, 362]
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longtake.errors import UserError, in_brief
from longtake.kernels.pooling.windows import Triple

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(tokens?|s|sec|seconds?)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """Either `tokens` that the films of one prompt may take, or `seconds` in which the language model reads them."""

    tokens: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.tokens} tokens" if self.tokens is not None else f"{self.seconds:g} seconds"


def parse_budget(value: int | float | str) -> Budget:
    """2000, "2000", "2000 tokens" or "1.5 seconds". Raises UserError for anything else and for less than 1 token."""
    found = _FORM.fullmatch(str(value)) if not isinstance(value, bool) else None
    if found is not None:
        number, unit = float(found[1]), (found[2] or "tokens").lower()
        if unit.startswith("s") and number > 0:
            return Budget(seconds=number)
        if unit.startswith("t") and number >= 1 and number == int(number):
            return Budget(tokens=int(number))
    raise UserError(
        f'a budget is a whole number of tokens, or e.g. "2000 tokens" or "5 seconds"; {in_brief(value)} given'
    )


def tokens_of(size: Triple, kernel: Triple) -> int:
    """Tokens left of a film of `size` (T, H, W) tokens in windows of `kernel`, short last windows kept."""
    return math.prod(-(-length // k) for length, k in zip(size, kernel, strict=True))


def kernel_for(size: Triple, tokens: int, most_frames: int | None = None) -> Triple:
    """The windows for a film of `size` (T, H, W) tokens so that at most `tokens` are left.

    Among all that use at least 0.9 of the best use: the one nearest the shape 2 x 3 x 3 that PPLLaVA was trained with,
    and whose last windows are nearest to full.
    most_frames: frames that a window may span at most. Raises UserError when nothing fits.
    """
    frames, rows, columns = size
    best: list[tuple[int, float, Triple]] = []
    for kt in range(1, min(frames, most_frames or frames) + 1):
        for kh in range(1, rows + 1):
            # the widest window per height that is about square keeps the picture's shape
            for kw in {min(columns, max(1, kh + d)) for d in (-1, 0, 1)} | ({columns} if kh == rows else set()):
                count = tokens_of(size, (kt, kh, kw))
                if count <= tokens:
                    apart = abs(math.log(kt / 2) - math.log(math.sqrt(kh * kw) / 3)) + abs(math.log(kh / kw))
                    apart += math.log(count * kt * kh * kw / math.prod(size))  # last windows that are not full
                    best.append((count, apart, (kt, kh, kw)))
    if not best:
        least = tokens_of(size, (min(frames, most_frames or frames), rows, columns))
        raise UserError(
            f"a film of {frames} x {rows} x {columns} tokens needs a budget of at least {least} tokens, {tokens} given"
        )
    most = max(count for count, _, _ in best)
    return min((apart, -count, kernel) for count, apart, kernel in best if count >= 0.9 * most)[2]


def split_budget(scores: Sequence[float], budget: int, least: int = 1, most: Sequence[int] | None = None) -> list[int]:
    """`budget` tokens over clips by their scores: the sum is at most `budget`, each gets at least `least` (one window),
    and a higher score never gets fewer. most: what each clip can use at all.

    Shares follow scores less the smallest, on top of an equal half. Equal scores get the same. Raises UserError when
    the budget has not `least` for each.
    """
    count = len(scores)
    if count == 0:
        return []
    if not all(math.isfinite(score) for score in scores):
        raise UserError("the scores of clips must be finite numbers")
    if budget < least * count:
        raise UserError(f"{count} clips need at least {least * count} tokens ({least} each), the budget is {budget}")
    free = budget - least * count
    low = min(scores)
    above = [score - low for score in scores]
    total = sum(above)
    shares = [0.5 / count + 0.5 * (a / total if total > 0 else 1 / count) for a in above]
    given = [least + math.floor(free * share + 1e-9) for share in shares]
    if most is not None:  # what a clip cannot use stays unspent: to hand it on would break the order of scores
        given = [min(tokens, limit) for tokens, limit in zip(given, most, strict=True)]
    return given


def cache_bytes(config: Any, tokens: int, dtype_bytes: int) -> int:
    """Bytes of keys and values that so many tokens take in a language model of this transformers configuration."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * width * dtype_bytes * tokens)


def told_bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
