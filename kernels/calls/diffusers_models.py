"""Stock diffusers transformers on this package's attention: tokens over ranks, any number of them, any mask.

    with shard_transformer(model, mesh=group) as transport:               # e.g. diffusers' WanTransformer3DModel
        out = model(latents, t, encoder_hidden_states=text).sample        # whole inputs, whole output, on every rank

diffusers says of its transformers where tokens may be cut (`_cp_plan`: after the patch embedding) and where they must
come together again (the output projection). `shard_transformer` cuts there by a `Partition`, so lengths need not
divide, and lets every processor run as it is, under `AttentionProcessor`: self-attention goes through `attention` over
the ranks, cross-attention stays local because every rank holds the whole text (Wan, LTX). Models whose text and video
attend to each other in one call (Flux, Qwen-Image) say where to cut the text too: each rank then holds a share of both.
Under autocast queries, keys and values are brought to its dtype, as for torch's own attention.

Gradients: parameters get the share of this rank's tokens; the sum over ranks is the gradient of one process. Only torch
is imported: a model is known by its shape (modules with a `processor`), not by its class.
Shapes: tokens (B, S, C); inside attention (B, H, S, D).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from longtake.kernels.calls.api import attention
from longtake.kernels.errors import CapabilityError
from longtake.kernels.masks.basic import Causal, Full, Mask
from longtake.kernels.masks.combined import And
from longtake.kernels.masks.tables import KeyMask
from longtake.kernels.partition import Partition
from longtake.kernels.plan.plan import Plan, make_plan
from longtake.kernels.precision import as_autocast
from longtake.kernels.ranks.mesh import as_transport
from longtake.kernels.ranks.rows import gather_rows
from longtake.kernels.ranks.transport import Transport
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SDPA = torch.nn.functional.scaled_dot_product_attention
_TEXT = "encoder_hidden_states"


class AttentionProcessor:
    """A diffusers attention processor that computes self-attention over the ranks.

    inner: the stock processor; it projects, norms and turns queries and keys as it always does. transport: the ranks.
    plan: a function from the whole number of tokens to the Plan. joint: text and video are one sequence here, both cut.
    Called like any processor. A mask over keys that the model brings along (text padding) is served; CapabilityError
    for other masks and dropout.
    """

    def __init__(
        self, inner: Any, transport: Transport, plan: Callable[[], Plan], backend: str = "auto", joint: bool = False
    ) -> None:
        self.inner, self.transport, self.plan, self.backend = inner, transport, plan, backend
        self.joint = joint

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As the stock processor; encoder_hidden_states: text that every rank holds (B, T, C), or None."""
        text = None if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        with _Redirected(self, hidden_states.shape[1], text):
            return self.inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


def _called_like(stock: Any) -> type[AttentionProcessor]:
    """AttentionProcessor with the call signature of a stock processor: diffusers reads it, and drops (with a warning
    only) arguments that it does not find there, rotary embeddings among them."""

    def call(self: AttentionProcessor, *args: Any, **kwargs: Any) -> Any:
        return AttentionProcessor.__call__(self, *args, **kwargs)

    call.__signature__ = inspect.signature(type(stock).__call__)  # type: ignore[attr-defined]
    return type("AttentionProcessor", (AttentionProcessor,), {"__call__": call})


class _Redirected(TorchFunctionMode):
    """Inside, torch's fused attention over this rank's tokens becomes attention over everybody's."""

    def __init__(self, owner: AttentionProcessor, tokens: int, text: int | None) -> None:
        super().__init__()
        self.owner, self.tokens, self.text = owner, tokens, text

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not _SDPA:
            return function(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if self.text is not None and not self.owner.joint:
            if key.shape[-2] > self.text or query.shape[-2] != self.tokens:
                raise CapabilityError(
                    f"{key.shape[-2]} keys for {self.text} tokens of text and {query.shape[-2]} queries for "
                    f"{self.tokens} of video: joint attention, but the model does not cut its text (_cp_plan)"
                )
            return _SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if attn_mask is not None and not _over_keys(attn_mask):
            raise CapabilityError(
                f"the model brings a mask tensor {attn_mask.dtype} {tuple(attn_mask.shape)}; one over keys is served, "
                "bool (B, 1, 1, keys); give shard_transformer a Mask instead of others"
            )
        query, key, value = as_autocast(query, key, value)  # as the dispatcher would for torch's own
        plan = self.owner.plan()
        if attn_mask is not None:
            plan = self._with_key_mask(plan, attn_mask)
        if is_causal and not isinstance(plan.mask, Causal):
            raise CapabilityError(f"the model asks for causal attention, the mask is {plan.mask}")
        return attention(
            query, key, value, mesh=self.owner.transport, plan=plan, backend=self.owner.backend, scale=scale,
            dropout_p=dropout_p, enable_gqa=enable_gqa or None,
        )  # fmt: skip

    def _with_key_mask(self, plan: Plan, mask: Tensor) -> Plan:
        """The plan under a mask over this rank's keys, or over all. Everybody's part is fetched, B bytes a key."""
        transport = self.owner.transport
        sizes, total = plan.keys.sizes, plan.keys.total
        keys = mask[:, 0, 0]
        if keys.shape[1] not in (sizes[transport.rank], total):
            raise CapabilityError(
                f"the model brings a mask over {keys.shape[1]} keys; this rank has {sizes[transport.rank]}, all {total}"
            )
        if transport.world > 1 and keys.shape[1] != total:
            keys = gather_rows(keys.to(torch.uint8), transport, Partition.from_sizes(sizes), 1).bool()
        key_mask = KeyMask(keys)
        return replace(plan, mask=key_mask if isinstance(plan.mask, Full) else And(plan.mask, key_mask))


def _over_keys(mask: Tensor) -> bool:
    return mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1:3] == (1, 1)


@contextmanager
def shard_transformer(
    model: Any,
    mesh: Any = None,
    *,
    mask: Mask | None = None,
    strategy: str = "auto",
    sizes: list[int] | None = None,
    backend: str = "auto",
) -> Iterator[Transport]:
    """Inside the block a stock diffusers transformer computes its tokens over the ranks.

    model: a diffusers ModelMixin with a `_cp_plan`. mesh: as for `attention`. mask: over token positions, Full by
    default, and only Full for joint models. strategy: as for `attention`. sizes: tokens of each rank, in order
    (default: even). Yields the Transport, whose counter holds the traffic. The model is as before when the block ends.
    Raises CapabilityError for a model that does not say where it may be cut, or has no processors.
    """
    cuts = getattr(model, "_cp_plan", None)
    if not cuts:
        raise CapabilityError(f"{type(model).__name__} has no _cp_plan: it does not say where tokens may be cut")
    transport, _ = as_transport(mesh)
    layers = [layer for layer in model.modules() if hasattr(layer, "set_processor") and hasattr(layer, "processor")]
    if not layers:
        raise CapabilityError(f"{type(model).__name__} has no attention layers with processors")
    if "audio_hidden_states" in _parameters(model):
        raise CapabilityError(
            f"{type(model).__name__} has a stream of audio beside its video, which its _cp_plan does not cut: "
            "transformers with one stream are served"
        )
    cuts_text = any(isinstance(entries, dict) and {"hidden_states", _TEXT} <= set(entries) for entries in cuts.values())
    # A plan may cut text that only cross-attention reads (LTX); joint layers have projections of their own for it.
    joint = cuts_text and any(getattr(layer, "add_k_proj", None) is not None for layer in layers)
    if joint and mask is not None and not isinstance(mask, Full):
        raise CapabilityError(
            f"{type(model).__name__} attends to text and video in one call: positions of {mask!r} are not defined there"
        )
    known: dict[str, Any] = {"plan": None}

    def partition(total: int, key: object) -> Partition:
        """The cut of so many rows; the video's and the text's are remembered for the plan."""
        fits = sizes is not None and sum(sizes) == total and len(sizes) == transport.world
        if key == "hidden_states" and sizes is not None and not fits:
            raise ValueError(f"sizes {sizes} are no {transport.world} pieces of {total} tokens")
        cut = Partition.from_sizes(sizes) if sizes is not None and fits else Partition.even(total, transport.world)
        name = "text" if key == _TEXT else "cut"
        if key in ("hidden_states", _TEXT) and known.get(name) != cut:
            known.update({name: cut, "plan": None})
        return cut

    def plan() -> Plan:
        if known["plan"] is None:
            rows = list(known["cut"].sizes)
            if joint:
                rows = [video + text for video, text in zip(rows, known["text"].sizes, strict=True)]
            heads = max((int(getattr(layer, "heads", 1)) for layer in layers), default=1)
            known["plan"] = make_plan(rows, Full() if mask is None else mask, strategy=strategy, heads=heads)
        made: Plan = known["plan"]
        return made

    def mine(x: Any, entry: Any, key: object) -> Any:
        if not isinstance(x, Tensor) or (entry.expected_dims is not None and x.ndim != entry.expected_dims):
            return x
        start, stop = partition(x.shape[entry.split_dim], key).pieces[transport.rank]
        return x.narrow(entry.split_dim, start, stop - start)

    def gather(x: Tensor, dim: int) -> Tensor:
        return gather_rows(x, transport, known["cut"], dim)

    with ExitStack() as undo:
        for name, entries in cuts.items():
            for module in _named(model, name):
                for hook in _hooks(module, entries, joint, mine, gather):
                    undo.callback(hook.remove)
        for layer in layers:
            stock = layer.processor
            layer.set_processor(_called_like(stock)(stock, transport, plan, backend, joint))
            undo.callback(layer.set_processor, stock)
        yield transport


def _named(model: Any, name: str) -> list[Any]:
    """The modules of a plan's name: "" the model, "blocks.*" every block."""
    if name.endswith(".*"):
        return list(model.get_submodule(name[:-2]))
    return [model.get_submodule(name)]


def _hooks(
    module: Any,
    entries: Any,
    joint: bool,
    mine: Callable[[Any, Any, object], Any],
    gather: Callable[[Tensor, int], Tensor],
) -> list:
    """Hooks on one module: inputs by name, outputs by number, or (an entry without `split_dim`) the gathering one."""
    if not isinstance(entries, dict):
        dim = entries.gather_dim
        return [module.register_forward_hook(lambda _, __, out: gather(out, dim))]
    text = () if joint else (_TEXT, "encoder_attention_mask")  # whole on every rank, for cross-attention
    inputs = {key: entry for key, entry in entries.items() if not entry.split_output and key not in text}
    outputs = {key: entry for key, entry in entries.items() if entry.split_output}
    made = []
    if inputs:
        names = _parameters(module)

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            given = list(args)
            for key, entry in inputs.items():
                if key in kwargs:
                    kwargs[key] = mine(kwargs[key], entry, key)
                elif key in names and names.index(key) < len(given):
                    given[names.index(key)] = mine(given[names.index(key)], entry, key)
            return tuple(given), kwargs

        made.append(module.register_forward_pre_hook(before, with_kwargs=True))
    if outputs:

        def after(_: Any, __: Any, out: Any) -> Any:
            if isinstance(out, Tensor):
                return mine(out, outputs[0], 0)
            parts = [mine(part, outputs[place], place) if place in outputs else part for place, part in enumerate(out)]
            return type(out)(parts)

        made.append(module.register_forward_hook(after))
    return made


def _parameters(module: Any) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
