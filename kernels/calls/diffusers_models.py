"""Stock diffusers transformers on this package's attention: tokens over ranks, any number of them, any mask.

    with shard_transformer(model, mesh=group) as transport:               # e.g. diffusers' WanTransformer3DModel
        out = model(latents, t, encoder_hidden_states=text).sample        # whole inputs, whole output, on every rank

`cut_plans.py` says of each class where its tokens may be cut (after the patch embedding) and where they come together
again (the output projection). `shard_transformer` cuts there by a `Partition`, so lengths need not divide, and lets
every processor run as it is, under `AttentionProcessor`: self-attention goes through `attention` over the ranks,
cross-attention stays local because every rank holds the whole text (Wan, LTX). Where text and video attend to each
other in one call (Flux, Qwen-Image, Mochi, CogVideoX, HunyuanVideo) the text is cut too and each rank has both;
so is the sound of LTX-2, whose attention to the video, and back, goes over the ranks as well.
Under autocast queries, keys and values are brought to its dtype, as for torch's own attention.

Gradients: parameters get the share of this rank's tokens; the sum over ranks is the gradient of one process.
Shapes: tokens (B, S, C); inside attention (B, H, S, D).
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from longtake.kernels.calls.api import attention
from longtake.kernels.calls.cut_plans import SDPA, Changed, Served, served
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

_STREAMS = {"hidden_states": "video", "encoder_hidden_states": "text"}  # of the arguments in diffusers' own plans


class AttentionProcessor:
    """A diffusers attention processor that computes self-attention over the ranks.

    inner: the stock processor; it projects, norms and turns queries and keys as it always does. transport: the ranks.
    plan: gives the Plan of the call at hand. joint: what the text argument holds is cut as well, because text and video
    are one sequence here, or queries and keys are of two cut streams (the sound and the picture of LTX-2).
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
        if function is not SDPA:
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
                    f"{self.tokens} of video: joint attention, but the model does not cut its text"
                )
            return SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
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
        whole = keys.shape[1] == total and not self.owner.joint  # a joint model's mask is cut as its text is
        if not whole and keys.shape[1] != sizes[transport.rank]:
            raise CapabilityError(
                f"the model brings a mask over {keys.shape[1]} keys; this rank has {sizes[transport.rank]}, all {total}"
            )
        if transport.world > 1 and not whole:
            keys = gather_rows(keys.to(torch.uint8), transport, Partition.from_sizes(sizes), 1).bool()
        key_mask = KeyMask(keys)
        return replace(plan, mask=key_mask if isinstance(plan.mask, Full) else And(plan.mask, key_mask))


def _over_keys(mask: Tensor) -> bool:
    return mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1:3] == (1, 1)


class _Streams:
    """How the rows of each stream are cut in the call at hand, and the plans that follow from it."""

    def __init__(
        self, name: str, record: Served, transport: Transport, sizes: list[int] | None, **planned: Any
    ) -> None:
        self.name, self.record, self.transport, self.sizes, self.planned = name, record, transport, sizes, planned
        self.cuts: dict[str, Partition] = {}
        self.plans: dict[tuple[str, str, int], Plan] = {}

    def partition(self, total: int, stream: str | None) -> Partition:
        """The cut of so many rows; a stream's is remembered."""
        sizes, world = self.sizes, self.transport.world
        fits = sizes is not None and sum(sizes) == total and len(sizes) == world
        if stream == "video" and sizes is not None and not fits:
            raise ValueError(f"sizes {sizes} are no {world} pieces of {total} tokens")
        cut = Partition.from_sizes(sizes) if sizes is not None and fits else Partition.even(total, world)
        if stream in self.record.needs and min(cut.sizes) == 0:
            raise CapabilityError(f"{self.name} needs a row of {stream} on every rank, given {list(cut.sizes)}")
        if stream is not None and self.cuts.get(stream) != cut:
            self.cuts[stream] = cut
            self.plans.clear()
        return cut

    def rows(self, stream: str) -> list[int]:
        if stream != "tokens":
            return list(self.cuts[stream].sizes)
        return [video + text for video, text in zip(self.cuts["video"].sizes, self.cuts["text"].sizes, strict=True)]

    def plan(self, queries: str, keys: str, heads: int) -> Plan:
        name = (queries, keys, heads)
        if name not in self.plans:
            of_keys = None if queries == keys else self.rows(keys)
            self.plans[name] = make_plan(self.rows(queries), key_lengths=of_keys, heads=heads, **self.planned)
        return self.plans[name]

    def mine(self, x: Any, entry: Any, key: object) -> Any:
        """This rank's part of an argument or output."""
        if isinstance(entry, Changed):
            return entry.change(x, self.places())
        if isinstance(x, (tuple, list)):
            return type(x)(self.mine(part, entry, key) for part in x)
        if not isinstance(x, Tensor) or (entry.expected_dims is not None and x.ndim != entry.expected_dims):
            return x
        stream: Any = getattr(entry, "stream", _STREAMS.get(str(key)))
        if getattr(entry, "by_token", False) and (x.ndim < 2 or x.shape[entry.split_dim] != self.cuts[stream].total):
            return x
        cut = self.partition(x.shape[entry.split_dim], stream)
        if getattr(entry, "by_token", False) and min(cut.sizes) == 0:
            raise CapabilityError(
                f"{self.name} with a {key} for every token needs a token on every rank, given {list(cut.sizes)}"
            )  # it reshapes by [-1], which nothing has
        start, stop = cut.pieces[self.transport.rank]
        return x.narrow(entry.split_dim, start, stop - start)

    def places(self) -> dict[str, tuple[int, int, int]]:
        return {stream: (*cut.pieces[self.transport.rank], cut.total) for stream, cut in self.cuts.items()}

    def gather(self, x: Tensor, entry: Any) -> Tensor:
        cut = self.cuts[getattr(entry, "stream", "video")]
        return gather_rows(x, self.transport, cut, entry.gather_dim)


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

    model: a diffusers ModelMixin of a class in `cut_plans.SERVED`. mesh: as for `attention`. mask: over positions of
    tokens, Full by default, and only Full where text or sound attend with the video. strategy: as for `attention`.
    sizes: tokens of each rank, in order (default: even). Yields the Transport, whose counter holds the traffic. The
    model is as before when the block ends.
    Raises CapabilityError, by name and before anything is changed, for a class, a processor, an attention backend or a
    mask that is not served; masks that a call brings are looked at when it is made.
    """
    name, record = served(model)
    transport, _ = as_transport(mesh)
    layers = _layers(model, name, record)
    if mask is not None and not isinstance(mask, Full):
        if record.joint:
            raise CapabilityError(
                f"{name} attends to text and video in one call: positions of {mask!r} are not defined"
            )
        if record.meets:
            raise CapabilityError(f"{name} attends to sound and video: positions of {mask!r} are not defined")
    streams = _Streams(name, record, transport, sizes, mask=Full() if mask is None else mask, strategy=strategy)
    usual = ("tokens", "tokens") if record.joint else ("video", "video")
    with ExitStack() as undo:
        for place, entries in (record.cuts or model._cp_plan).items():
            for module in _named(model, place):
                for hook in _hooks(module, entries, streams):
                    undo.callback(hook.remove)
        for path, layer in layers.items():
            stock, heads = layer.processor, int(getattr(layer, "heads", 1))
            meeting = record.meets.get(path.rpartition(".")[2], None if record.meets else usual)
            if meeting is None:
                continue
            inner = stock if record.processor is None else record.processor()
            both = record.joint or meeting[0] != meeting[1]
            plan = partial(streams.plan, *meeting, heads)
            _set_processor(layer, _called_like(stock)(inner, transport, plan, backend, both))
            undo.callback(_set_processor, layer, stock)
        yield transport


def _layers(model: Any, name: str, record: Served) -> dict[str, Any]:
    """The layers to wrap, by path. Raises CapabilityError for processors that do not call torch's attention."""
    layers = {
        path: layer
        for path, layer in model.named_modules()
        if path.startswith(record.layers) and hasattr(layer, "processor")
    }
    if not layers:
        raise CapabilityError(f"{name} has no attention layers with processors")
    dispatch: Any = sys.modules.get("diffusers.models.attention_dispatch")
    usual = dispatch._AttentionBackendRegistry.get_active_backend()[0] if dispatch is not None else None
    for path, layer in layers.items():
        processor = layer.processor
        kind = type(processor).__name__
        if isinstance(processor, AttentionProcessor):
            raise CapabilityError(f"{name} is in a block of shard_transformer already")
        if record.replaces and kind != record.replaces:
            raise CapabilityError(f"{path} of {name} must have a {record.replaces}, which is replaced; given {kind}")
        if getattr(processor, "_parallel_config", None) is not None:
            raise CapabilityError(f"{name} runs diffusers' own context parallelism: disable it first")
        if hasattr(processor, "_attention_backend"):
            chosen = processor._attention_backend or usual
            if getattr(chosen, "value", chosen) not in (None, "native"):
                raise CapabilityError(f"{name} has the attention backend {chosen!r}: required is 'native'")
    return layers


def _set_processor(layer: Any, processor: Any) -> None:
    if hasattr(layer, "set_processor"):
        layer.set_processor(processor)
    else:  # MochiAttention
        layer.processor = processor


def _named(model: Any, name: str) -> list[Any]:
    """The modules of a plan's name: "" the model, "blocks.*" every block."""
    if name.endswith(".*"):
        return list(model.get_submodule(name[:-2]))
    return [model.get_submodule(name)]


def _hooks(module: Any, entries: Any, streams: _Streams) -> list[Any]:
    """Hooks on one module: inputs by name, outputs by number, or (an entry without `split_dim`) the gathering one."""
    mine = streams.mine
    if not isinstance(entries, dict):
        return [module.register_forward_hook(lambda _, __, out: streams.gather(out, entries))]
    inputs = {key: entry for key, entry in entries.items() if not entry.split_output}
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
