"""The kernel of triton_merge.py, for where triton is installed: one program a block of rows.

Shapes: O (R, D) contiguous, R = B H Lq; L (R,).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 64


@triton.jit
def _merge(
    o1_ptr, l1_ptr, o2_ptr, l2_ptr, out_ptr, lse_ptr, n_rows, D, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    real = rows < n_rows
    l1 = tl.load(l1_ptr + rows, mask=real, other=0.0)
    l2 = tl.load(l2_ptr + rows, mask=real, other=0.0)
    top = tl.maximum(l1, l2)
    top = tl.where(top == float("-inf"), 0.0, top)
    w1, w2 = tl.exp(l1 - top), tl.exp(l2 - top)
    weight = w1 + w2
    safe = tl.where(weight == 0.0, 1.0, weight)
    tl.store(lse_ptr + rows, tl.where(weight == 0.0, float("-inf"), top + tl.log(safe)), mask=real)
    w1, w2 = w1 / safe, w2 / safe
    for at in range(0, D, BD):
        columns = at + tl.arange(0, BD)
        inside = real[:, None] & (columns < D)[None, :]
        place = rows[:, None] * D + columns[None, :]
        o1 = tl.load(o1_ptr + place, mask=inside, other=0.0).to(l1.dtype)
        o2 = tl.load(o2_ptr + place, mask=inside, other=0.0).to(l1.dtype)
        tl.store(out_ptr + place, w1[:, None] * o1 + w2[:, None] * o2, mask=inside)


def merge(o1: Tensor, l1: Tensor, o2: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
    """(O, L) of two parts, in L's dtype."""
    out, lse = torch.empty(o1.shape, dtype=l1.dtype, device=l1.device), torch.empty_like(l1)
    if lse.numel():
        _merge[(triton.cdiv(lse.numel(), ROWS),)](
            o1, l1, o2, l2, out, lse, lse.numel(), o1.shape[-1], BR=ROWS, BD=COLUMNS
        )
    return out, lse
