"""The float64 truth of every operator: plain, dense, slow, and the only thing that fast paths are judged against.

O, L = attention_reference(q, k, v, DualScope(8, (0, 63)), range(64), range(64))
"""

import math

import torch
from longtake.kernels.masks.basic import DualScope, Edge, Full, Mask, Positions, as_positions
from torch import Tensor


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | None = None,
    q_pos: Positions | None = None,
    k_pos: Positions | None = None,
    scale: float | None = None,
    total: int | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Dense attention under a mask, in float64 whatever comes in.

    q: (B, H, Lq, D); k: (B, H, Lk, D); v: (B, H, Lk, Dv). mask: Full by default.
    q_pos, k_pos: global positions of the rows; 0, 1, 2, ... by default.
    total: length of the whole sequence; the number of keys by default. It matters for `Edge.ZERO` and `row_scale`.
    softcap: c > 0 makes a logit s into c tanh(s / c), before the mask's biases.
    Returns O (B, H, Lq, Dv) and L (B, H, Lq), float64. A row that sees no key gets O = 0, L = -inf.
    """
    mask = Full() if mask is None else mask
    q_pos = range(q.shape[2]) if q_pos is None else q_pos
    k_pos = range(k.shape[2]) if k_pos is None else k_pos
    total = k.shape[2] if total is None else total
    q, k, v = q.double(), k.double(), v.double()
    logits = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if isinstance(mask, DualScope):
        factors = mask.row_factors(q_pos, total)
        if factors is not None:
            logits = logits * factors.to(q.device)[:, None]
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits + mask.score(q_pos, k_pos).to(q.device)
    if isinstance(mask, DualScope) and mask.edge is Edge.ZERO and mask.local_open:
        # Zero keys have logit 0 and zero values, so a row's missing neighbours are one column log(how many) +
        # bias_local.
        queries = as_positions(q_pos)
        missing = (mask.window - queries).clamp(min=0) + (queries + mask.window - (total - 1)).clamp(min=0)
        column = (missing.double().log() + mask.bias_local).to(q.device)
        logits = torch.cat([logits, column[:, None].expand(*logits.shape[:-1], 1)], dim=-1)
        v = torch.cat([v, v.new_zeros(*v.shape[:2], 1, v.shape[3])], dim=2)
    if logits.shape[-1] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], -math.inf)
    blind = (logits == -math.inf).all(-1)
    lse = logits.masked_fill(blind[..., None], 0).logsumexp(-1)  # finite, so that autograd gives blind rows 0, not NaN
    return (logits - lse[..., None]).exp() @ v, lse.masked_fill(blind, -math.inf)
