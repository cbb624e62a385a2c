"""This package's attention under a name in diffusers and transformers, on one process.

    from longtake.dispatchers import register_attention

    register_attention()                                        # once
    transformer.set_attention_backend("longtake")               # a diffusers model
    AutoModelForCausalLM.from_pretrained(folder, attn_implementation="longtake")

diffusers keeps its backends in an enumeration (`AttentionBackendName`), which gets one member more; transformers has a
registry for the purpose, and one for masks beside it: without an entry there a mask over padded text would not reach
the attention at all. Tried with diffusers 0.42 and transformers 5.24.
"""

import importlib.util
from typing import Any

import torch
from longtake.kernels.calls.api import attention
from longtake.kernels.errors import CapabilityError
from longtake.kernels.masks.basic import Causal, Full, Mask
from longtake.kernels.masks.tables import Dense, KeyMask
from torch import Tensor


def register_attention(name: str = "longtake", backend: str = "auto") -> tuple[str, ...]:
    """Add local `attention` to diffusers' dispatcher and to transformers' attention functions, where installed.

    name: lower case, as it is asked for later. backend: as for `attention`. Returns the packages that took it; a second
    call with the same name replaces the entry. Raises CapabilityError for a name that one of them uses for its own, for
    a version that cannot take an entry, and where neither is installed.
    """
    if not name.isidentifier() or name != name.lower():
        raise CapabilityError(f"name must be a lower case identifier, given {name!r}")
    found = [package for package in ("diffusers", "transformers") if importlib.util.find_spec(package) is not None]
    if not found:
        raise CapabilityError("neither diffusers nor transformers is installed: there is no dispatcher to add to")
    adders = {"diffusers": _diffusers_entry, "transformers": _transformers_entry}
    entries = [adders[package](name, backend) for package in found]  # all are looked at before any is changed
    for add in entries:
        add()
    return tuple(found)


def _diffusers_entry(name: str, backend: str) -> Any:
    from diffusers.models import attention_dispatch as dispatch

    names, registry = dispatch.AttentionBackendName, dispatch._AttentionBackendRegistry
    known = names._value2member_map_.get(name)
    if known is not None and not getattr(registry._backends.get(known), "of_longtake", False):
        raise CapabilityError(f"diffusers has an attention backend {name!r} of its own")
    tables = all(hasattr(names, part) for part in ("_member_map_", "_member_names_", "_value2member_map_"))
    if not tables or not hasattr(registry, "register"):
        raise CapabilityError("this version of diffusers takes no attention backends from outside")

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, return_lse: bool = False,
        _parallel_config: Any = None,
    ) -> Any:  # fmt: skip
        if _parallel_config is not None:
            raise CapabilityError(f"{name}: diffusers' context parallelism is not served; use shard_transformer")
        if attn_mask is not None and attn_mask.dim() == 2 and attn_mask.shape == (query.shape[0], key.shape[1]):
            attn_mask = attn_mask[:, None, None]
        mask = _mask(name, attn_mask, is_causal, query.shape[1], key.shape[1])
        return attention(
            query, key, value, mask=mask, backend=backend, scale=scale, return_lse=return_lse, dropout_p=dropout_p,
            enable_gqa=enable_gqa or None, layout="bshd",
        )  # fmt: skip

    attend.of_longtake = True  # type: ignore[attr-defined]

    def add() -> None:
        member = known
        if member is None:
            member = str.__new__(names, name)
            member._name_, member._value_ = name.upper(), name
            names._member_map_[member._name_] = member
            names._member_names_.append(member._name_)
            names._value2member_map_[name] = member
        registry.register(member)(attend)

    return add


def _transformers_entry(name: str, backend: str) -> Any:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ALL_ATTENTION_FUNCTIONS._global_mapping.get(name)
    if (known is not None and not getattr(known, "of_longtake", False)) or name == "eager":
        raise CapabilityError(f"transformers has an attention function {name!r} of its own")

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
        scaling: float | None = None, is_causal: bool | None = None, softcap: float | None = None, **rest: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        for asked in ("position_bias", "s_aux", "head_mask"):
            if rest.get(asked) is not None:
                raise CapabilityError(f"{name}: {type(module).__name__} gives {asked}, which is not served")
        if rest.get("output_attentions"):
            raise CapabilityError(f"{name}: output_attentions is not served: no matrix of weights is made")
        rows, columns = query.shape[2], key.shape[2]
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = bool(causal) and attention_mask is None and rows > 1
        if causal and columns > rows:  # a cache of fixed length that is being filled: nothing sees its end
            key, value, columns = key[:, :, :rows], value[:, :, :rows], rows
        mask = _mask(name, attention_mask, causal, rows, columns)
        out = attention(
            query, key, value, mask=mask, backend=backend, scale=scaling, dropout_p=dropout, softcap=softcap or 0.0
        )
        return out.transpose(1, 2).contiguous(), None

    attend.of_longtake = True  # type: ignore[attr-defined]

    def add() -> None:
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, sdpa_mask)

    return add


def _mask(name: str, tensor: Tensor | None, causal: bool, rows: int, columns: int) -> Mask:
    """The Mask of what torch's attention is given: causal from the first row on, or (B, 1 or H, 1 or rows, columns)."""
    if tensor is None:
        return Causal() if causal else Full()
    if causal:
        raise CapabilityError(f"{name}: a mask tensor and is_causal together are not served")
    if tensor.requires_grad:
        raise CapabilityError(f"{name}: a mask that needs a gradient is not served")
    if tensor.dim() != 4 or tensor.shape[2] not in (1, rows) or tensor.shape[3] != columns:
        raise CapabilityError(
            f"{name}: a mask must be (B, 1 or heads, 1 or {rows}, {columns}), given {tuple(tensor.shape)}"
        )
    if tensor.dtype == torch.bool and tensor.shape[1:3] == (1, 1):
        return KeyMask(tensor[:, 0, 0])
    return Dense(tensor.expand(-1, -1, rows, -1))
