"""What a call asks of a GPU, counted where there is none: kernels started, and bytes read and written.

    with pretended_gpu() as count:                       # fake CUDA tensors: shapes and formats, no numbers
        x = torch.empty(2, 8, 128, 64, device="cuda", dtype=torch.bfloat16)
        F.scaled_dot_product_attention(x, x, x)
    assert count.kernels == 1 and count.bytes == 4 * x.numel() * 2

A view starts no kernel, nor does memory that is asked for. torch's attention is one kernel, as on a GPU (without a
driver torch would take it apart), with what the public function does to a mask first: a mask of bools becomes numbers,
and rows that are no multiple of 16 numbers are laid anew. A strided or broadcast operand counts each number once.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "device", "detach", "lift_fresh"}
SDPA = "scaled_dot_product_attention"


def size(x: Tensor) -> int:
    """Bytes of the different numbers of a tensor."""
    distinct = math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return min(distinct, x.untyped_storage().nbytes() // x.element_size()) * x.element_size() if x.numel() else 0


class Counts(TorchDispatchMode):
    """kernels, bytes, and how often each operator ran."""

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.fakes = fakes
        self.bytes = 0
        self.names: Counter[str] = Counter()
        self.paused = False

    def restart(self) -> None:
        self.names.clear()
        self.bytes = 0

    @property
    def kernels(self) -> int:
        return sum(self.names.values())

    def add(self, name: str, *tensors: Tensor) -> None:
        if not self.paused:
            self.names[name] += 1
            self.bytes += sum(size(x) for x in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = torch.device(kwargs.get("device") or "cpu")
        if device.type == "cpu" and not any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))):
            with unset_fake_temporarily():  # plans and masks are made of real numbers
                return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        seen = {id(x): x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        on_gpu = any(x.device.type == "cuda" for x in seen.values())
        if on_gpu and name not in FREE and not func.is_view:
            self.add(name, *seen.values())
        return out

    def _faked(self, x: Tensor) -> Tensor:
        return x if isinstance(x, FakeTensor) else self.fakes.from_tensor(x, static_shapes=True)


class _OneKernel(TorchFunctionMode):
    """torch's attention as the one kernel that it is on a GPU."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or args[0].device.type != "cuda":
            return func(*args, **kwargs)
        q, k, v = args[:3]
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -math.inf).to(q.dtype)
        if mask is not None and any(stride % 16 for stride in mask.stride()[:-1]):
            mask = F.pad(mask, (0, -mask.shape[-1] % 16))
        self.counts.paused = True
        batch, rows, heads = q.shape[:-3], q.shape[-2], q.shape[-3]
        out = q.new_empty(*batch, rows, heads, v.shape[-1]).transpose(-2, -3)
        self.counts.paused = False
        self.counts.add(SDPA, q, k, v, out, *(() if mask is None else (mask,)))
        return out


@contextmanager
def pretended_gpu() -> Iterator[Counts]:
    """Inside the block tensors made on "cuda" are fake ones, and what is done with them is counted."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    counts = Counts(fakes)
    with fakes, counts, _OneKernel(counts):
        yield counts
