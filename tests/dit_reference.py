"""The definition, once for all classes: the stock model in one process, with dense masked attention.

Nothing of the adapter is used: torch's attention is replaced, and a call with as many queries as keys that has rows for
all video tokens is the one over frames; what is beyond the video's rows is text.
"""

import math

import torch
from torch.overrides import TorchFunctionMode

SDPA = torch.nn.functional.scaled_dot_product_attention


class Dense(TorchFunctionMode):
    """score: (F, F) added to logits by frame. factors: (F,) or None. decay: (distance, factor) or None.

    turn: (x (B, H, rows, D), frames moved (rows,)) -> x, with clip: keys seem at most so far away. weights: (F, P) of
    P texts side by side, or None.
    """

    def __init__(
        self, score, tokens, first=False, factors=None, decay=None, clip=None, turn=None, weights=None,
    ):  # fmt: skip
        super().__init__()
        self.score, self.tokens, self.first, self.factors, self.decay = score, tokens, first, factors, decay
        self.clip, self.turn, self.weights = clip, turn, weights
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not SDPA:
            return function(*args, **(kwargs or {}))
        return self.attention(*args, **(kwargs or {}))

    def attention(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):  # fmt: skip
        q, k, v = query, key, value
        frames = len(self.score)
        video = frames * self.tokens
        if q.shape[2] != k.shape[2] or q.shape[2] < video:
            return SDPA(q, k, v, attn_mask=attn_mask, scale=scale)
        self.calls += 1
        text = q.shape[2] - video
        shift = text if self.first else 0
        rows = torch.arange(q.shape[2])
        is_video = (rows >= shift) & (rows < shift + video)
        frame = ((rows - shift) // self.tokens).clamp(0, frames - 1)
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        q, k, v = q.double(), k.double(), v.double()
        logits = q @ k.mT * scale
        pair = is_video[:, None] & is_video[None, :]
        if self.clip is not None:
            for query in range(frames):
                mine = (is_video & (frame == query)).nonzero().flatten()
                away = (frame - query).double()
                moved = torch.where(is_video, away.clamp(-self.clip, self.clip) - away, torch.zeros(()).double())
                logits[:, :, mine] = (q[:, :, mine] @ self.turn(k, moved).mT) * scale
        if self.factors is not None:
            logits = torch.where(is_video[:, None], logits * self.factors[frame][:, None], logits)
        if self.decay is not None:
            far = pair & ((frame[:, None] - frame[None, :]).abs() > self.decay[0])
            logits = torch.where(far & (logits > 0), logits * self.decay[1], logits)
        logits = logits + torch.where(pair, self.score[frame][:, frame], torch.zeros(()).double())
        if self.weights is not None and text:
            each = text // self.weights.shape[1]
            number = torch.where(is_video, torch.zeros_like(rows), (rows - (0 if self.first else video)) // each)
            number = number.clamp(0, self.weights.shape[1] - 1)
            heard = self.weights[frame][:, number].log()
            logits = logits + torch.where(is_video[:, None] & ~is_video[None, :], heard, torch.zeros(()).double())
            seen = self.weights[frame][:, number].log().T
            logits = logits + torch.where(~is_video[:, None] & is_video[None, :], seen, torch.zeros(()).double())
            other = (~is_video[:, None] & ~is_video[None, :]) & (number[:, None] != number[None, :])
            logits = logits.masked_fill(other, -math.inf)
        if attn_mask is not None:
            keys = (
                attn_mask
                if attn_mask.dtype != torch.bool
                else torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -math.inf)
            )
            logits = logits + keys
        return (logits.softmax(-1).nan_to_num(0.0) @ v).to(torch.float32)
