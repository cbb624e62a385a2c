"""How many bytes of tensors live at once while a function runs, counted at the level of torch operations."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Tracks storages made by operations inside it; `peak` is the most bytes that were alive together."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **kwargs)
        for x in tree_leaves(result):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            key = storage._cdata
            if key in given or key in self._known:
                continue
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, storage.nbytes())
        return result


def allowed_bytes(strategy: str, local: list[torch.Tensor], whole: list[torch.Tensor]) -> int:
    """What D9 allows a forward call of q, k, v: two shards of K and V for the ring, all of K and V for all-gather-KV,
    and the accumulators: O and L in float32, those of the part that is being merged, and two rows of shares."""
    row = local[0].nbytes // local[0].shape[-1]
    keys = 2 * sum(x.nbytes for x in local[1:]) if strategy == "ring" else sum(x.nbytes for x in whole[1:])
    return keys + 2 * local[0].nbytes + 4 * row


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that tensors made by `function` occupied together."""
    with torch.no_grad(), LiveBytes() as counter:
        function()
    return counter.peak
