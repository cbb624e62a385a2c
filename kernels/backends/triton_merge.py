"""Merge of two attention parts on a GPU in one pass: O and L are read once and written once.

The same numbers as `merge` in partial.py (FlashAttention, arXiv 2205.14135, section 3.1), also for rows that see no
key. triton is imported when a function here is called, not before; the kernel is in triton_merge_kernel.py.

    out, lse = merge_triton(o1, l1, o2, l2)
"""

import importlib

import torch
from torch import Tensor


def merge_triton(o1: Tensor, l1: Tensor, o2: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts over disjoint key sets as one: O (B, H, Lq, D), L (B, H, Lq), both in L's dtype.

    o1, o2: (B, H, Lq, D), any floating dtype, also two different ones. l1, l2: (B, H, Lq), natural log-sum-exp, both
    float32 or both float64; -inf for a row without a key, and (0, -inf) where neither part has one.
    Raises ValueError for shapes, dtypes and devices that do not fit, NotImplementedError when a gradient would be
    needed: none flows through a merge (see partial.py).
    """
    if o1.shape != o2.shape or l1.shape != l2.shape or o1.shape[:-1] != l1.shape:
        shapes = [tuple(x.shape) for x in (o1, l1, o2, l2)]
        raise ValueError(f"O must be (..., D) and L (...), alike in both parts; given {shapes}")
    if l1.dtype != l2.dtype or l1.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"l1 and l2 must both be float32 or both float64, given {l1.dtype} and {l2.dtype}")
    if len({x.device for x in (o1, l1, o2, l2)}) > 1:
        raise ValueError(f"both parts must be on one device, given {[str(x.device) for x in (o1, l1, o2, l2)]}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (o1, l1, o2, l2)):
        raise NotImplementedError("merge_triton has no backward: call it under torch.no_grad() or inference_mode()")
    kernel = importlib.import_module("longtake.kernels.backends.triton_merge_kernel")
    out, lse = kernel.merge(o1.contiguous(), l1.contiguous(), o2.contiguous(), l2.contiguous())
    return out, lse
