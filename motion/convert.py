"""Public checkpoint layouts of MDM, PriorMDM and ComMDM: read a .pt file, find out what net it is, rename its keys.

A public file is a flat dictionary of tensors, or {"model", "model_avg"} around two of them; what the net looks like is
read off the tensors: features from ``poseFinal``, layers and communication layers by counting, the transition embedding
by ``emb_trans_or_not``, the decoder form by ``seqTransDecoder``. CLIP's weights and position tables are left out.

    model = load_motion_model("model000200000.pt")           # MDM or ComMDM, its configuration from the file
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from longtake.errors import UserError, one_line
from longtake.motion.model import FLAG_WIDTH, MDM

DEFAULT_HEADS = 4  # the public nets' constant; no tensor shows it

_PLAIN = {
    "input_process.poseEmbedding.": "embed_frames.",
    "embed_timestep.time_embed.": "time_mlp.",
    "embed_text.": "embed_text.",
    "output_process.poseFinal.": "head.",
    "emb_trans_or_not.": "flag.",
    "seqTransEncoder.layers.": "blocks.",
    "seqTransDecoder.layers.": "blocks.",
}
_LEFT_OUT = re.compile(r"(clip_model\.|.*\.pe$|t_pos_encoder\.|rot2xyz\.|transition_token)")
_LAYER = re.compile(r"(seqTrans(?:Encoder|Decoder)(?:_start|_end)?|multi_person\.model)\.layers\.(\d+)\.")
_LAYOUTS = {
    "MDM encoder": ("seqTransEncoder.layers.0.",),
    "MDM decoder": ("seqTransDecoder.layers.0.",),
    "ComMDM": ("seqTransEncoder_start.layers.0.", "multi_person."),
}
_COMMON = ("input_process.poseEmbedding.weight", "output_process.poseFinal.weight", "embed_text.weight")


def read_public(path: str | Path, *, average: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a public .pt file (or a safetensors file with the same keys), wrapper taken off.

    average: of a file with both, take the averaged weights (``model_avg``). Raises UserError that names the file.
    """
    from longtake.weights import load_state

    path = Path(path)
    if path.suffix == ".safetensors" or path.is_dir() or not path.exists():
        return load_state(path)
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged or holds Python objects beside tensors, which are not loaded") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"the weights file {path} is damaged or unreadable: {one_line(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model_avg"] if average and isinstance(state.get("model_avg"), dict) else state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no plain dictionary of tensors")
    return state


def strip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without CLIP's weights, position tables and what else the nets do without."""
    return {key: value for key, value in state.items() if not _LEFT_OUT.match(key)}


def layout_of(state: Mapping[str, torch.Tensor]) -> str:
    """ "MDM encoder", "MDM decoder" or "ComMDM". Raises UserError that names the closest of them."""
    scores = {}
    for name, prefixes in _LAYOUTS.items():
        wanted = [*prefixes, *_COMMON]
        missing = [prefix for prefix in wanted if not any(key.startswith(prefix) for key in state)]
        if not missing:
            return name
        scores[name] = missing
    closest = min(scores, key=lambda name: len(scores[name]))
    raise UserError(
        f"the weights fit no known motion layout ({', '.join(_LAYOUTS)}); closest is {closest!r}, "
        f"which also has {', '.join(scores[closest])}"
    )


def configuration_of(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of ``MDM`` for a public state; for ComMDM also "split" and "comm_layers"."""
    layout = layout_of(state)
    head, text = state["output_process.poseFinal.weight"], state["embed_text.weight"]
    columns = state["input_process.poseEmbedding.weight"].shape[1]
    features = head.shape[0]
    flagged = "emb_trans_or_not.weight" in state
    if columns != features + FLAG_WIDTH * flagged:
        raise UserError(
            f"the net reads {columns} numbers a frame and writes {features}: expected {features + FLAG_WIDTH * flagged}"
        )
    counts: dict[str, int] = {}
    for key in state:
        match = _LAYER.match(key)
        if match:
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    stem = "seqTransDecoder" if layout == "MDM decoder" else "seqTransEncoder"
    start = counts.get("seqTransEncoder_start", 0)
    first = f"{stem}{'_start' if layout == 'ComMDM' else ''}.layers.0.linear1.weight"
    found: dict[str, Any] = {
        "features": features,
        "width": head.shape[1],
        "layers": counts.get(stem, 0) or start + counts.get("seqTransEncoder_end", 0),
        "feedforward": state[first].shape[0] if first in state else 0,
        "heads": DEFAULT_HEADS,
        "text_width": text.shape[1],
        "form": "decoder" if layout == "MDM decoder" else "encoder",
        "transition_embedding": flagged,
    }
    if layout == "ComMDM":
        found.update(split=start, comm_layers=counts.get("multi_person.model", 0))
    return found


def from_public(key: str, split: int = 0) -> str | None:
    """Key of a public MDM or ComMDM file -> key of ours; None for one that is left out.

    split: of ComMDM: layers before the communication block.
    """
    if _LEFT_OUT.match(key):
        return None
    if key.startswith("multi_person."):
        return "comm." + key.removeprefix("multi_person.").replace("model.layers.", "blocks.", 1)
    lead = "prior." if split else ""
    for public, ours in _PLAIN.items():
        if key.startswith(public):
            return lead + ours + key.removeprefix(public)
    for part, shift in (("start", 0), ("end", split)):
        match = re.fullmatch(rf"seqTransEncoder_{part}\.layers\.(\d+)\.(.*)", key)
        if match:
            return f"{lead}blocks.{int(match[1]) + shift}.{match[2]}"
    return "unknown." + key


def to_public(state: Mapping[str, torch.Tensor], *, form: str = "encoder", split: int = 0) -> dict[str, torch.Tensor]:
    """Our state under the keys of the public layout (without position tables and CLIP), tensors untouched."""
    stem = "seqTransDecoder" if form == "decoder" else "seqTransEncoder"
    backwards = {ours: public for public, ours in _PLAIN.items() if not public.startswith("seqTrans")}
    public = {}
    for key, value in state.items():
        name = key.removeprefix("prior.")
        match = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        if key.startswith("comm."):
            name = "multi_person." + key.removeprefix("comm.").replace("blocks.", "model.layers.", 1)
        elif match and split:
            layer = int(match[1])
            part, number = ("start", layer) if layer < split else ("end", layer - split)
            name = f"{stem}_{part}.layers.{number}.{match[2]}"
        elif match:
            name = f"{stem}.layers.{match[1]}.{match[2]}"
        else:
            stem_of = next(ours for ours in backwards if name.startswith(ours))
            name = backwards[stem_of] + name.removeprefix(stem_of)
        public[name] = value
    return public


def build(state: Mapping[str, torch.Tensor], **changes: Any) -> torch.nn.Module:
    """MDM or ComMDM, in eval mode, from a public state. changes: configuration to set (padding, heads, ...).

    Raises UserError for missing, unknown or misshapen tensors.
    """
    from longtake.weights import match_keys

    state = strip(state)
    config = configuration_of(state)
    split, comm_layers = config.pop("split", 0), config.pop("comm_layers", 0)
    config.update(changes)
    model: torch.nn.Module = MDM(**config)
    if split:
        from longtake.motion.pair.model import ComMDM

        model = ComMDM(**config, split=split, comm_layers=comm_layers)
    match = match_keys(model.state_dict(), state, {layout_of(state): lambda key: from_public(key, split)})
    try:
        model.load_state_dict(match.apply(state))
    except RuntimeError as error:
        raise UserError(f"the weights do not fit their own configuration: {one_line(error)}") from error
    return model.eval()


def load_motion_model(path: str | Path, *, average: bool = True, **changes: Any) -> torch.nn.Module:
    """MDM or ComMDM from a public checkpoint file; see ``read_public`` and ``build``."""
    return build(read_public(path, average=average), **changes)


def public_parts(
    checkpoint: str | Path,
    mean: str | Path,
    std: str | Path,
    clip: str | Path | None,
    train_steps: int,
    fps: float,
    clip_context: int,
    average: bool,
) -> dict[str, Any]:
    """The components of a pipeline around a public MDM checkpoint; see ``LongMotionPipeline.from_public``."""
    from diffusers import DDPMScheduler
    from longtake.motion.space import MotionSpace
    from longtake.weights import resolve

    scheduler = DDPMScheduler(
        num_train_timesteps=train_steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    parts: dict[str, Any] = {
        "model": load_motion_model(checkpoint, average=average),
        "scheduler": scheduler,
        "space": MotionSpace.from_numpy(mean, std, fps=fps, clip_context=clip_context),
    }
    if clip is not None:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        folder = resolve(clip, kind="CLIP text encoder")
        parts["text_encoder"] = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True).eval()
        parts["tokenizer"] = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return parts
