"""One adapter for all video transformers of `records.py`: a stock model computes its frames of a longer video.

Three things are changed, in place and reversibly. The model's call is cut to the frames of this rank (or takes whole
inputs, cuts them and brings the outputs together). Its clock tells the time of those frames (`clocks.py`). And in the
layers that tie frames together torch's scaled_dot_product_attention is redirected to `attend`, so that the stock
processors project, normalise and rotate as they always do, with whatever LoRA, offload or quantised layers they have.

    install(model, record, piece, patches, positions=Positions(), whole=False)

Legend: B batch, F latent frames of the video, T frames here, n tokens a frame, L text rows, P prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as nnf
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.kernels.precision import as_autocast
from longtake.kernels.ranks.rows import gather_rows
from longtake.video.dit import packed
from longtake.video.dit.attend import Joint, Prompts, Rows, View, attend
from longtake.video.dit.clocks import Given, Time, install_clock
from longtake.video.dit.positions import Policy, Positions
from longtake.video.dit.records import Clock, Record, Text
from longtake.video.dit.scopes import BlockCausal, Both, Moment, Sight, see
from longtake.video.dit.sound import STREAMS, Sound
from longtake.video.dit.texts import heard, install_texts, load_text, picked, put_back, sorted_rows
from longtake.video.piece import Exchange, Mode, Patches, Piece, UnsupportedModule, forward_of
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SDPA = torch.nn.functional.scaled_dot_product_attention


@dataclass
class Call:
    """What one rank knows while the patched model runs.

    scope: as the piece's, with what the model's own settings add. step: steps done, for scopes that rotate; None counts
    changes of the timestep. view: of the call at hand. prompts: P texts side by side in the text arguments, or None;
    texts: rows of each. blind: text rows do not see the video (used to test locality). through: `attend` computes what
    the stock call would compute alike (used to compare them).
    """

    record: Record
    piece: Piece
    time: Time
    whole: bool
    scope: Any = None
    step: int | None = None
    prompts: Prompts | None = None
    texts: tuple[int, ...] = ()
    blind: bool = False
    through: bool = False
    view: View | None = None
    sound: Sound | None = None
    text_mask: Tensor | None = None  # (B, P * L) of the call at hand, where prompts stand side by side
    laid: Tensor | None = None  # (B, P * L): the row where the model lays each text row, where it sorts them
    asked: dict[str, int] = field(default_factory=dict)  # calls of torch's attention by layer
    _sights: dict[Moment, Sight] = field(default_factory=dict)
    _counted: int = -1
    _last: float | None = None

    def begin(self, batch: int, tokens: int, timestep: Any) -> None:
        """Fix what this call may see."""
        self.piece.batch, self.piece.tokens = batch, tokens
        needed = self.scope is not None and self.scope.needs_timestep
        value = self.piece.read_timestep(timestep) if needed else None
        moment = Moment(self.piece.total, value, self._step(timestep))
        if moment not in self._sights:
            self._sights.clear()
            self._sights[moment] = see(self.scope, moment)
            self.view = None
        if self.view is None:
            clip = self.time.positions.clip(self.record.length)
            self.view = View.of(self.piece, self._sights[moment], clip)

    def _step(self, timestep: Any) -> int:
        if self.step is not None or not hasattr(self.scope, "anchors"):
            return self.step or 0
        now = float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)
        if self._last is None or now > self._last:
            self._counted = 0  # a new run
        elif now < self._last:
            self._counted += 1
        self._last = now
        return self._counted


def install(model: Any, record: Record, piece: Piece, patches: Patches, *, positions: Positions, whole: bool) -> Call:
    """Patch a model of a record; raises UnsupportedModule or UserError for what it cannot honour."""
    if piece.mode != Mode.EXACT:
        raise UserError(f"{record.name} is computed in mode=exact, without chunk_frames")
    if piece.strategy == Exchange.TRANSPOSE:
        raise UserError("strategy=transpose does not apply: tokens of a frame attend to each other; use halo or gather")
    layers = layers_of(model, record)
    if record.name == "LTX2VideoTransformer3DModel":
        for name in STREAMS:
            layers |= layers_of(model, record, name)
    if record.name.startswith(("Wan", "SkyReels")) and record.patch(model)[0] != 1:
        raise UnsupportedModule("patch_embedding spans several frames (patch_size[0] > 1)")
    call = Call(record, piece, Time(piece, record, positions), whole, piece.scope)
    if record.name == "LTX2VideoTransformer3DModel":
        call.sound = Sound(call)
    causal = int(getattr(model.config, "num_frame_per_block", 1) or 1)
    if causal > 1:
        call.scope = BlockCausal(causal) if piece.scope is None else Both(BlockCausal(causal), call.scope)
    to_clock: Callable[[Given], Given] = lambda given: given  # noqa: E731
    stock = piece.alone and piece.scope is None and positions.policy is Policy.ABSOLUTE and causal == 1
    if not stock or record.text is not Text.CROSS:  # joint layers are needed for prompts too
        if call.sound is None and record.clock is not Clock.ROWS:
            to_clock = install_clock(model, call.time, patches)
        for name, layer in layers.items():
            patches.forward(layer, _redirected(layer, name, call))
            if record.name == "HunyuanVideo15Transformer3DModel":
                patches.processor(layer, _HunyuanVideo15Processor(layer.processor))
        _install_extras(model, call, patches)
    if record.text is Text.CROSS:
        for layer in layers_of(model, record, record.cross).values():
            patches.forward(layer, heard(layer, call))
        if call.sound is not None:
            for layer in layers_of(model, record, "audio_attn2").values():
                patches.forward(layer, heard(layer, call, "audio"))
    install_texts(model, call, patches)
    patches.forward(model, _called(model, call, to_clock))
    return call


def layers_of(model: Any, record: Record, name: str | None = None) -> dict[str, Any]:
    """The layers that tie frames together (or another layer of each block) by name."""
    wanted = name or record.attention
    found = {}
    for list_name in record.blocks:
        for index, block in enumerate(getattr(model, list_name)):
            layer = getattr(block, wanted, None)
            if layer is None:
                raise UnsupportedModule(
                    f"{list_name}.{index} ({type(block).__name__}) has no {wanted}, which ties frames together in "
                    f"{record.name}"
                )
            found[f"{list_name}.{index}.{wanted}"] = layer
    return found


# ---- the model's call -----------------------------------------------------------------------------------------------


def _called(model: Any, call: Call, to_clock: Callable[[Given], Given]) -> Callable[..., Any]:
    stock = forward_of(model)
    signature = inspect.signature(type(model).forward)
    names = [name for name in signature.parameters if name != "self"]

    def forward(*args: Any, **kwargs: Any) -> Any:
        given: Given = {**dict(zip(names, args, strict=False)), **kwargs}
        given = _prepared(model, call, given)
        given = to_clock(given)
        out = stock(**given)
        call.piece.text = None
        return _finished(call, out)

    forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[signature.parameters[name] for name in names]
    )
    return forward


def _prepared(model: Any, call: Call, given: Given) -> Given:
    """Check a call, set the scope up, and cut whole inputs."""
    record, piece = call.record, call.piece
    if record.clock is Clock.ROWS:
        return packed.prepared(call, given)
    name, axis = record.sample
    sample = given.get(name)
    dims = 3 if record.packed else 5
    if not isinstance(sample, Tensor) or sample.ndim != dims:
        shape = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise UserError(f"{record.name} takes {name} with {dims} dimensions; given {shape}")
    patch = record.patch(model)
    if record.packed:
        given = dict(given)
        tokens = int(given["height"]) * int(given["width"]) if given.get("height") else 0
        held = piece.total if call.whole else len(piece.mine)
        if not tokens:
            tokens = sample.shape[1] // max(held, 1)
        frames = sample.shape[axis] // tokens if tokens else 0
        if frames * tokens != sample.shape[axis]:
            raise UserError(f"{sample.shape[axis]} tokens are no whole frames of {tokens}")
        given["num_frames"] = len(call.time.span)
    else:
        height, width = (side for place, side in enumerate(sample.shape) if place not in (0, axis, record.channels))
        tokens = (height // patch[1]) * (width // patch[2])
        frames, rest = divmod(sample.shape[axis], patch[0])
        if rest:
            raise UserError(f"{record.name} takes latent frames {patch[0]} by {patch[0]}; given {sample.shape[axis]}")
    if call.whole and frames != piece.total:
        raise UserError(f"whole inputs have {frames} frames, the video has {piece.total}")
    if not call.whole:
        piece.check_frames(frames)
    call.begin(sample.shape[0], tokens, given.get("timestep"))
    if piece.text_provider is not None:
        load_text(model, call)
    if call.sound is not None:
        given = call.sound.prepared(model, given)
    if call.whole or piece.empty:
        given = _cut(call, given, patch[0], tokens)
    call.text_mask = call.laid = None
    if call.prompts is not None and record.text is not Text.CROSS:
        given = _masked_aside(call, given)
    return given


def _masked_aside(call: Call, given: Given) -> Given:
    """Joint models: the mask of texts that stand side by side is kept here, because models take it for one text's."""
    mask = given.get("encoder_attention_mask")
    if not isinstance(mask, Tensor):
        return given
    if call.record.name == "HunyuanVideo15Transformer3DModel":
        call.laid, call.text_mask, given = sorted_rows(call, given)
        return given
    call.text_mask = mask.bool()
    if call.record.name == "MochiTransformer3DModel":  # it drops padded rows, and texts would no longer be alike
        return {**given, "encoder_attention_mask": torch.ones_like(mask)}
    return given


def _cut(call: Call, given: Given, patch: int, tokens: int) -> Given:
    """Every argument with an axis of frames, cut to those here; a rank without frames computes one of zeros."""
    made, piece = dict(given), call.piece
    span = call.time.span if call.whole else range(0, 1)
    total = piece.total if call.whole else 0

    def part(x: Tensor, axis: int, unit: int) -> Tensor:
        if x.shape[axis] == total * unit and call.whole:
            return x.narrow(axis, span.start * unit, len(span) * unit)
        if x.shape[axis] == 0:
            shape = list(x.shape)
            shape[axis] = unit
            return x.new_zeros(shape)
        return x

    units = [(name, axis, patch) for name, axis in call.record.frames.items()]
    units += [(name, axis, tokens) for name, axis in call.record.tokens.items()]
    for name, axis, unit in units:
        if isinstance(made.get(name), Tensor):
            made[name] = part(made[name], axis, unit)
    time = made.get("timestep")
    if isinstance(time, Tensor) and time.ndim > 1:
        axis = 2 if time.ndim == 5 else 1
        unit = patch if call.record.time_by_frame else tokens
        made["timestep"] = part(time, axis, unit)
    return made


def _finished(call: Call, out: Any) -> Any:
    """Drop the dummy frame of a rank without frames; bring the frames together where inputs were whole."""
    piece = call.piece
    if call.record.clock is Clock.ROWS:
        return packed.finished(call, out)
    if call.sound is not None:
        return call.sound.finished(out)
    if not piece.empty and not (call.whole and not piece.alone):
        return out
    plain = isinstance(out, tuple)
    sample = out[0] if plain else (out if isinstance(out, Tensor) else out.sample)
    axis = call.record.sample[1]
    unit = piece.tokens if call.record.packed else sample.shape[axis] // len(call.time.span)
    if piece.empty:
        sample = sample.narrow(axis, 0, 0)
    if call.whole and not piece.alone:
        sizes = [size * unit for size in piece.partition.sizes]
        sample = gather_rows(sample.contiguous(), piece.transport, Partition.from_sizes(sizes), axis)
    if plain:
        return (sample, *out[1:])
    if isinstance(out, Tensor):
        return sample
    out.sample = sample
    return out


# ---- attention ------------------------------------------------------------------------------------------------------


class _Redirect(TorchFunctionMode):
    """Inside, torch's fused attention over the frames here becomes attention within the scope."""

    def __init__(self, call: Call, layer: str) -> None:
        super().__init__()
        self.call, self.layer = call, layer

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not _SDPA:
            return function(*args, **(kwargs or {}))
        self.call.asked[self.layer] = self.call.asked.get(self.layer, 0) + 1
        with torch._C.DisableTorchFunction():
            return _attention(self.call, self.layer, *args, **(kwargs or {}))


def _redirected(layer: Any, name: str, call: Call) -> Callable[..., Any]:
    stock = forward_of(layer)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Redirect(call, name):
            return stock(*args, **kwargs)

    return forward


def _attention(
    call: Call, layer: str, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch's call, over the frames of the video. Tensors (B, H, rows, D): video rows, and text rows where joint."""
    view, piece = call.view, call.piece
    assert view is not None
    if dropout_p or is_causal:
        raise UnsupportedModule(f"{call.record.name} asks for dropout or a causal mask in attention over frames")
    query, key, value = as_autocast(query, key, value)
    if enable_gqa and key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if view.stock and call.prompts is None and not (call.blind or call.through):
        return nnf.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale)
    if call.sound is not None:
        return _streams(call, call.sound, layer, query, key, value, attn_mask, scale)
    video = len(call.time.span) * piece.tokens
    length = query.shape[2] - video
    joint = call.record.text is not Text.CROSS
    if length < 0 or (length and not joint) or key.shape[2] != query.shape[2]:
        raise UnsupportedModule(
            f"{call.record.name} attends over {query.shape[2]} queries and {key.shape[2]} keys; "
            f"{len(call.time.span)} frames of {piece.tokens} tokens were expected"
        )
    bias = _text_bias(call, attn_mask, video, length)
    if bias is not None and bias.shape[0] > query.shape[0] == 1:  # one entry of the batch after the other (Mochi)
        entry = (call.asked[layer] - 1) % bias.shape[0]
        bias = bias[entry : entry + 1]
    first = call.record.text is Text.BEFORE
    q_text, q = _split(query, length, first)
    k_text, k = _split(key, length, first)
    v_text, v = _split(value, length, first)
    if piece.empty:
        q, k, v = q[:, :, :0], k[:, :, :0], v[:, :, :0]
    laid = call.laid
    if laid is not None:
        q_text, k_text, v_text = (picked(x, laid) for x in (q_text, k_text, v_text))
    text = Joint(q_text, k_text, v_text, bias, call.prompts) if length else None
    rows = Rows.even(piece.total, piece.tokens)
    out, text_out = attend(view, q, k, v, rows=rows, scale=scale, turn=call.time.turn, text=text)
    if piece.empty:
        out = torch.zeros_like(query[:, :, :video])
    if text_out is None:
        return out
    if call.blind:
        text_out = v_text
    if laid is not None:
        text_out = put_back(text_out, laid, length)
    return torch.cat([text_out, out] if first else [out, text_out], 2)


def _streams(
    call: Call, sound: Sound, layer: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """Attention of one stream over another; a rank without tokens of one has a dummy, which takes no part."""
    if mask is not None:
        raise UnsupportedModule(f"{call.record.name} brings a mask into attention over frames")
    view, mine = call.view, call.piece.mine
    assert view is not None
    kind = layer.rsplit(".", 1)[1]
    rows, keys = sound.rows[STREAMS[kind][0]], sound.rows[STREAMS[kind][1]]
    own, held = rows.of(mine), keys.of(mine)
    out, _ = attend(
        view, query[:, :, :own], key[:, :, :held], value[:, :, :held], rows=rows, keys=keys, scale=scale,
        turn=sound.turns.get(kind),
    )  # fmt: skip
    return out if own == query.shape[2] else torch.cat([out, torch.zeros_like(query[:, :, own:])], 2)


def _split(x: Tensor, length: int, first: bool) -> tuple[Tensor, Tensor]:
    """(text rows, video rows)."""
    if first:
        return x[:, :, :length], x[:, :, length:]
    return x[:, :, x.shape[2] - length :], x[:, :, : x.shape[2] - length]


def _text_bias(call: Call, mask: Tensor | None, video: int, length: int) -> Tensor | None:
    """What a model's mask says of the text keys: (B, 1, 1, L) or None. Video keys must all be seen."""
    if call.text_mask is not None:
        hidden = ~call.text_mask[:, None, None]
        return torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device).masked_fill_(hidden, -torch.inf)
    if mask is None:
        return None
    if mask.shape[-2] != 1 or mask.shape[1] != 1 or mask.shape[-1] != video + length:
        raise UnsupportedModule(
            f"{call.record.name} brings a mask {tuple(mask.shape)} into attention over frames; one over keys is served"
        )
    text = mask[..., :length] if call.record.text is Text.BEFORE else mask[..., video:]
    if text.dtype != torch.bool:
        return text
    return torch.zeros(text.shape, dtype=torch.float32, device=text.device).masked_fill_(~text, -torch.inf)


class _HunyuanVideo15Processor:
    """The stock processor with a mask over keys in place of one of tokens by tokens (2.4 GB a block at 480p).

    The stock mask also blinds padded text rows as queries; nothing reads those rows.
    """

    def __init__(self, stock: Any) -> None:
        self._attention_backend = getattr(stock, "_attention_backend", None)
        self._parallel_config = getattr(stock, "_parallel_config", None)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None, image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from diffusers.models.embeddings import apply_rotary_emb

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(2, (attn.heads, -1))

        query, key = attn.norm_q(heads(attn.to_q(hidden_states))), attn.norm_k(heads(attn.to_k(hidden_states)))
        value = heads(attn.to_v(hidden_states))
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        q_text, k_text = heads(attn.add_q_proj(encoder_hidden_states)), heads(attn.add_k_proj(encoder_hidden_states))
        v_text = heads(attn.add_v_proj(encoder_hidden_states))
        q_text = q_text if attn.norm_added_q is None else attn.norm_added_q(q_text)
        k_text = k_text if attn.norm_added_k is None else attn.norm_added_k(k_text)
        mask = None
        if attention_mask is not None:
            mask = nnf.pad(attention_mask.bool(), (hidden_states.shape[1], 0), value=True)[:, None, None]
        q, k, v = (torch.cat(pair, 1).transpose(1, 2) for pair in ((query, q_text), (key, k_text), (value, v_text)))
        out = nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.transpose(1, 2).flatten(2, 3).to(query.dtype)
        length = encoder_hidden_states.shape[1]
        video, text = out[:, :-length], out[:, -length:]
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


# ---- what single classes need ---------------------------------------------------------------------------------------


def _install_extras(model: Any, call: Call, patches: Patches) -> None:
    if getattr(model.config, "image_condition_type", None) == "token_replace":
        # the tokens of frame 0 have a modulation of their own; only the rank that holds frame 0 has them
        holds = not call.piece.empty and call.piece.mine.start == 0
        for list_name in call.record.blocks:
            for block in getattr(model, list_name):
                patches.pre_hook(block, _first_tokens(holds))
    if int(getattr(model.config, "num_frame_per_block", 1) or 1) > 1:
        before = model.config.num_frame_per_block
        model.register_to_config(num_frame_per_block=1)  # the mask of tokens by tokens; `BlockCausal` stands for it
        patches.restore(lambda: model.register_to_config(num_frame_per_block=before))


def _first_tokens(holds: bool) -> Callable[..., Any]:
    def before(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if holds:
            return None
        if len(args) > 6:
            return (*args[:6], 0, *args[7:]), kwargs
        return args, {**kwargs, "num_tokens": 0}

    return before
