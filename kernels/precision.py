"""In which number format sums are kept, and what autocast may and may not change.

Operators of this package compute in the dtype of what they are given and sum in `accumulator_dtype`. Autocast lowers
the dtype of products inside a region; inside our forwards and backwards that would round what is promised in float32,
so `exact` takes them out of it. Where torch itself would cast (tensors of different dtypes that meet in one attention
call), `as_autocast` does the same.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over keys, ranks and windows are kept in: float32, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """The function with autocast off on the device of its first tensor: an operator, or a pass of an autograd
    Function (autograd runs a backward under whatever autocast is on where `backward()` is called)."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        kind = next((x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if kind is None or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return function(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return function(*args, **kwargs)

    return run


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors as autocast hands them to torch's scaled_dot_product_attention: floating ones in its dtype, but for
    float64. Outside of autocast as they are."""
    kind = tensors[0].device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one call: as they are when they have one dtype, otherwise `as_autocast`."""
    return tensors if len({x.dtype for x in tensors}) == 1 else as_autocast(*tensors)
