"""The packages FlashAttention 2, 3 and 4, where they are installed, as backends for tiles without a bias.

    flash_attn_4   `flash-attn-4`: module flash_attn.cute.interface   (a pure Python wheel; Hopper and Blackwell)
    flash_attn_3   built from the repository's hopper folder: module flash_attn_interface   (Hopper)
    flash_attn_2   `flash-attn`: module flash_attn.flash_attn_interface   (Ampere and later)

All three have a forward that returns O and L first and a backward that takes the global O and L, under the names
`_flash_attn_*`; the rest of their arguments changes from one release to the next, and other libraries broke on that
(yunchang issues 149, 156; xDiT 598). So every argument is passed by name, those that a release lacks are left out, and
a release that wants something unknown is refused with the name of it. Tensors go as (B, L, H, D).
"""

import importlib
import inspect
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from longtake.kernels.backends.contract import Backend, Capabilities, Request, lacks
from longtake.kernels.backends.torch_cuda import HALF, cuda_devices, finite_lse, padded
from longtake.kernels.plan.tiles import Tile, TileKind
from torch import Tensor

# What each argument besides the tensors means "off" by. None where a release takes it as absent.
_OFF: dict[str, Any] = {
    "dropout_p": 0.0, "softcap": 0.0, "deterministic": False, "return_softmax": False, "num_splits": 1,
    "window_size": (-1, -1), "alibi_slopes": None, "rng_state": None, "k_new": None, "v_new": None, "qv": None,
    "cu_seqlens_q": None, "cu_seqlens_k": None, "cu_seqlens_k_new": None, "seqused_q": None, "seqused_k": None,
    "sequed_q": None, "sequed_k": None, "max_seqlen_q": None, "max_seqlen_k": None, "page_table": None,
    "kv_batch_idx": None, "leftpad_k": None, "rotary_cos": None, "rotary_sin": None, "seqlens_rotary": None,
    "q_descale": None, "k_descale": None, "v_descale": None, "out": None, "out_": None,
}  # fmt: skip


class FlashPackage:
    """One of the packages. module: where its functions are; open_window: how its window says "no limit"."""

    def __init__(self, name: str, module: str, open_window: int | None, capability: int, softcap: float = 0.0):
        self.name = name
        self._module, self._window, self._capability, self._softcap = module, open_window, capability, softcap

    def capped(self, softcap: float) -> "FlashPackage":
        """The same with a soft cap of the logits."""
        return FlashPackage(self.name, self._module, self._window, self._capability, softcap)

    @cached_property
    def _functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        module = importlib.import_module(self._module)
        return module._flash_attn_forward if hasattr(module, "_flash_attn_forward") else module._flash_attn_fwd, (
            module._flash_attn_backward if hasattr(module, "_flash_attn_backward") else module._flash_attn_bwd
        )

    def capabilities(self) -> Capabilities:
        return Capabilities(
            dtypes=HALF, devices=cuda_devices(), head_dims=range(1, 257),
            kinds=frozenset({TileKind.FULL, TileKind.CAUSAL}), value_dim_differs=True, softcap=True,
        )  # fmt: skip

    def refuses(self, request: Request) -> str | None:
        reason = lacks(self.capabilities(), request)
        if reason is not None:
            return reason
        found = torch.cuda.get_device_capability()
        if found[0] < self._capability:
            return f"compute capability {found[0]}.{found[1]}; needs {self._capability}.0"
        forward, backward = self._functions
        names = {"q", "k", "v", "softmax_scale", "causal"}
        unknown = _unknown(forward, names) + _unknown(backward, names | {"dout", "out", "softmax_lse", "lse", *_GRADS})
        return f"this release wants {', '.join(unknown)}, which is not known here" if unknown else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
        given = {**self._common(tile, scale), **_laid(q, k, v), "return_lse": True}
        found = _call(self._functions[0], given)
        out, lse = found[0], found[1]
        return out.transpose(1, 2)[..., : v.shape[3]], lse[..., : q.shape[2]].float()

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tile: Tile, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = _laid(q, k, v)
        width = tensors["q"].shape[3]
        grads = {f"d{name}": torch.empty_like(x) for name, x in tensors.items()}
        rows = finite_lse(lse).contiguous()
        given = {
            **self._common(tile, scale), **tensors, **grads, "softmax_lse": rows, "lse": rows,
            "dout": padded(d_out.to(q.dtype).transpose(1, 2), least=width),
            "out": padded(out.to(q.dtype).transpose(1, 2), least=width),
        }  # fmt: skip
        _call(self._functions[1], given)
        d_q, d_k, d_v = (
            grads[name].transpose(1, 2)[..., : x.shape[3]] for name, x in zip(_GRADS, (q, k, v), strict=True)
        )
        return d_q, d_k, d_v

    def _common(self, tile: Tile, scale: float) -> dict[str, Any]:
        off = {**_OFF, "window_size_left": self._window, "window_size_right": self._window}
        return {**off, "softmax_scale": scale, "causal": tile.kind is TileKind.CAUSAL, "softcap": self._softcap}


_GRADS = ("dq", "dk", "dv")


def _laid(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """q, k, v as (B, L, H, D), D in eights and the same for all, rows contiguous."""
    width = -(-max(q.shape[3], v.shape[3]) // 8) * 8
    tensors = (padded(x, least=width).transpose(1, 2) for x in (q, k, v))
    laid = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    return dict(zip(("q", "k", "v"), laid, strict=True))


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Of the Python function behind a custom operator too."""
    plain = getattr(function, "_init_fn", function)
    return dict(inspect.signature(plain).parameters)


def _unknown(function: Callable[..., Any], given: set[str]) -> list[str]:
    """Parameters without a default that we have no value for."""
    known = given | set(_OFF) | {"window_size_left", "window_size_right", "return_lse"}
    return [
        name for name, parameter in _parameters(function).items()
        if parameter.default is inspect.Parameter.empty and name not in known
    ]  # fmt: skip


def _call(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call it with what it takes. What means "off" is left to its own default where it has one."""
    taken = {}
    for name, parameter in _parameters(function).items():
        if name not in given:
            continue
        off = name in _OFF and given[name] == _OFF[name] if not isinstance(given[name], Tensor) else False
        if not off or parameter.default is inspect.Parameter.empty:
            taken[name] = given[name]
    return function(**taken)


_PACKAGES = (
    ("flash_attn_4", "flash_attn.cute.interface", None, 9),
    ("flash_attn_3", "flash_attn_interface", -1, 9),
    ("flash_attn_2", "flash_attn.flash_attn_interface", -1, 8),
)


def installed(module: str) -> bool:
    """Whether a module's file is there, without importing it or what it needs."""
    first, *rest = module.split(".")
    root = find_spec(first)
    if root is None:
        return False
    folders = [Path(place).joinpath(*rest) for place in root.submodule_search_locations or ()]
    return not rest or any(place.with_suffix(".py").exists() or place.is_dir() for place in folders)


def make_backends() -> list[Backend]:
    """Those that are installed, newest first."""
    return [FlashPackage(*package) for package in _PACKAGES if installed(package[1])]
