"""Checkpoints of the public VALL-E (github.com/lifeiteng/vall-e; VALL-E X has the same layout), read and written.

There are no public weights of VALL-E R. A vanilla VALL-E loads as an ``AR`` without a pointer and a ``NAR`` without
phonemes; ``decode_plain`` and ``NAR.complete`` speak with them.

    ar, nar = load(path)                       # a .safetensors, or what torch saved, without pickled objects
    state = public_state(ar, nar)              # the other way
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from longtake.errors import UserError, one_line, shorten
from longtake.speech.valle_r.ar import AR
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.network import Size

HEADS = 16  # of the public models, whatever their width: nothing in a checkpoint tells
OUTER = {  # ours -> theirs
    "ar.text_emb.weight": "ar_text_embedding.word_embeddings.weight",
    "ar.code_emb.weight": "ar_audio_embedding.word_embeddings.weight",
    "ar.text_place.alpha": "ar_text_position.alpha",
    "ar.code_place.alpha": "ar_audio_position.alpha",
    "ar.predict.weight": "ar_predict_layer.weight",
    "nar.text_emb.weight": "nar_text_embedding.word_embeddings.weight",
    "nar.text_place.alpha": "nar_text_position.alpha",
    "nar.code_place.alpha": "nar_audio_position.alpha",
}
OPTIONAL = ("nar_text_position.alpha", "nar_audio_position.alpha")  # 1 where a checkpoint does not say
INNER = {
    "in_proj.weight": "self_attn.in_proj_weight",
    "in_proj.bias": "self_attn.in_proj_bias",
    "out_proj.weight": "self_attn.out_proj.weight",
    "out_proj.bias": "self_attn.out_proj.bias",
}


def their_name(name: str, stages: int) -> str:
    """The public key of one of our parameters, "ar." or "nar." before it; stages: how many layers the NAR says."""
    if name in OUTER:
        return OUTER[name]
    part, _, rest = name.partition(".")
    found = re.fullmatch(r"code_embs\.(\d+)\.weight", rest)
    if found:
        return f"nar_audio_embeddings.{found[1]}.word_embeddings.weight"
    if rest == "last":
        return f"nar_predict_layers.{stages - 1}.weight"
    rest = rest.removeprefix("transformer.")
    for ours, theirs in INNER.items():
        if rest.endswith(ours):
            rest = rest.removesuffix(ours) + theirs
            break
    return f"{part}_decoder.{rest}"


def public_state(ar: AR, nar: NAR) -> dict[str, torch.Tensor]:
    """The state dict of the public layout. UserError for a model with a pointer or phonemes: the layout has none."""
    if ar.pointer != "none" or nar.spoken is not None or nar.tie != "next" or nar.scale != 1:
        raise UserError("the public layout is of VALL-E: it has no pointer, no phonemes in the sound, and tied heads")
    stages = nar.count - 1
    state = {}
    for part, model in (("ar", ar), ("nar", nar)):
        for name, value in model.state_dict().items():
            if name == "stages.weight":
                for stage in range(stages):
                    state[f"nar_stage_embeddings.{stage}.word_embeddings.weight"] = value[stage : stage + 1].clone()
                continue
            state[their_name(f"{part}.{name}", stages)] = value.clone()
    for stage in range(stages - 1):
        state[f"nar_predict_layers.{stage}.weight"] = nar.tables()[stage + 2].detach().clone()
    return state


def from_public(state: Mapping[str, torch.Tensor], heads: int = HEADS) -> tuple[AR, NAR]:
    """Both networks, in eval mode, of a public state dict.

    heads: of the attention; nothing in the layout tells. Raises UserError for keys that are missing, left over or of
    a shape that does not fit, naming the first of them.
    """
    given = {key.removeprefix("module."): value for key, value in state.items()}
    ar, nar = _shaped(given, heads)
    stages = nar.count - 1
    used = set()
    for part, model in (("ar", ar), ("nar", nar)):
        own = {}
        for name, value in model.state_dict().items():
            if name == "stages.weight":
                keys = [f"nar_stage_embeddings.{stage}.word_embeddings.weight" for stage in range(stages)]
                own[name] = torch.cat([_taken(given, key, (1, value.shape[1])) for key in keys])
                used.update(keys)
                continue
            key = their_name(f"{part}.{name}", stages)
            own[name] = value if key in OPTIONAL and key not in given else _taken(given, key, tuple(value.shape))
            used.add(key)
        model.load_state_dict(own)
    for stage in range(stages - 1):
        key = f"nar_predict_layers.{stage}.weight"
        table = nar.tables()[stage + 2]
        if not torch.equal(_taken(given, key, tuple(table.shape)).to(table.dtype), table):
            raise UserError(f"{key} differs from nar_audio_embeddings.{stage + 2}: the public layout shares them")
        used.add(key)
    left = sorted(set(given) - used)
    if left:
        raise UserError(f"this is no VALL-E of the public layout: unknown key {shorten(left[0])}")
    return ar.eval(), nar.eval()


def load(path: Path | str, heads: int = HEADS) -> tuple[AR, NAR]:
    """Both networks of a checkpoint file. Raises UserError as ``from_public`` does, and for a file that is none."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a damaged file makes the reader do, it is the file's fault
        raise UserError(
            f"{path} cannot be read as weights ({one_line(error)[:150]}): save its state dict as safetensors"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    return from_public(state, heads)


def _shaped(given: Mapping[str, torch.Tensor], heads: int) -> tuple[AR, NAR]:
    """Networks of the sizes that a state dict has."""
    symbols, width = _matrix(given, "ar_text_embedding.word_embeddings.weight")
    entries = _matrix(given, "ar_predict_layer.weight")[0] - 1
    rows = _matrix(given, "ar_audio_embedding.word_embeddings.weight")[0]
    if rows not in (entries + 1, entries + 2):
        raise UserError(
            f"ar_audio_embedding.word_embeddings.weight must have {entries + 1} rows, or one more; got {rows}"
        )
    count = len(list(_numbers(given, r"nar_audio_embeddings\.(\d+)\.word_embeddings\.weight")))

    def size(part: str, wide: int) -> Size:
        layers = len(list(_numbers(given, rf"{part}_decoder\.layers\.(\d+)\.linear1\.weight")))
        if not layers:
            raise UserError(f"this is no VALL-E of the public layout: it lacks {part}_decoder.layers.0.linear1.weight")
        return Size(wide, heads, layers, _matrix(given, f"{part}_decoder.layers.0.linear1.weight")[0])

    ar = AR(size("ar", width), symbols=symbols, entries=entries, pointer="none", lead=0, begins=rows == entries + 2)
    texts, wide = _matrix(given, "nar_text_embedding.word_embeddings.weight")
    first = _matrix(given, "nar_audio_embeddings.0.word_embeddings.weight")[0]
    nar = NAR(size("nar", wide), symbols=texts, entries=entries, first=first, layers_of_codes=count, phonemes=False)
    return ar, nar


def _numbers(given: Mapping[str, torch.Tensor], pattern: str) -> Iterator[int]:
    for key in given:
        found = re.fullmatch(pattern, key)
        if found:
            yield int(found[1])


def _matrix(given: Mapping[str, torch.Tensor], key: str) -> tuple[int, int]:
    if key not in given:
        raise UserError(f"this is no VALL-E of the public layout: it lacks {key}")
    shape = tuple(given[key].shape)
    if len(shape) != 2:
        raise UserError(f"{key} must be a matrix, got shape {shape}")
    return shape[0], shape[1]


def _taken(given: Mapping[str, torch.Tensor], key: str, shape: tuple[int, ...]) -> torch.Tensor:
    if key not in given:
        raise UserError(f"this is no VALL-E of the public layout: it lacks {key}")
    if tuple(given[key].shape) != shape:
        raise UserError(f"{key} must have shape {shape}, got {tuple(given[key].shape)}")
    return given[key]
