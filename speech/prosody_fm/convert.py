"""Checkpoints: public ProsodyFM and Matcha-TTS into ours and back, and the folders of our own priors.

Our modules bear the public names, so the map is the identity; sizes are read off the tensors. A public file is a
Lightning checkpoint: only its tensors are read, nothing is unpickled.

    model = from_public(load_state("matcha_vctk.ckpt"))
    save(model, folder); model = load(folder)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from longtake.errors import UserError
from longtake.journal import atomic_path
from longtake.reading import read_json_object
from longtake.speech.mel import NORMS
from longtake.speech.prosody_fm.model import Config, ProsodyFM
from longtake.speech.text.symbols import COMPAT_BREAK
from longtake.weights import eight_bits, load_state, whole

KIND = "ProsodyFM"
OURS = ("aligner.", "spk_net.", "spk_tone.")  # parts that the public layout does not know
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def config_of(state: Mapping[str, torch.Tensor]) -> Config:
    """The sizes of a public checkpoint. Raises UserError that names the first key that is missing or misshapen."""

    def shape(key: str, dims: int) -> tuple[int, ...]:
        if key not in state:
            raise UserError(f"this is no checkpoint of ProsodyFM or Matcha-TTS: it has no {key}")
        found = tuple(state[key].shape)
        if len(found) != dims:
            raise UserError(f"{key} must have {dims} dimensions; it has the shape {list(found)}")
        return found

    symbols, channels = shape("encoder.emb.weight", 2)
    mels, width, _ = shape("encoder.proj_m.weight", 3)
    inner = shape("encoder.encoder.ffn_layers.0.conv_1.weight", 3)[0]
    numbered = [key.split(".")[3] for key in state if key.startswith("encoder.encoder.attn_layers.")]
    first, inside, _ = shape("decoder.estimator.down_blocks.0.0.block1.block.0.weight", 3)
    second = shape("decoder.estimator.down_blocks.1.0.block1.block.0.weight", 3)[0]
    across = shape("decoder.estimator.down_blocks.0.1.0.attn1.to_q.weight", 2)[0]
    middles = {key.split(".")[3] for key in state if key.startswith("decoder.estimator.mid_blocks.")}
    speaking = "spk_emb.weight" in state
    speakers, speaker_width = shape("spk_emb.weight", 2) if speaking else (1, 64)
    wanted = channels + (speaker_width if speaking else 0)
    if width != wanted:
        raise UserError(f"encoder.proj_m.weight must read {wanted} channels; it reads {width}")
    wanted = 2 * mels + (speaker_width if speaking else 0)
    if inside != wanted:
        raise UserError(
            f"decoder.estimator.down_blocks.0.0.block1.block.0.weight must read {wanted} channels; it reads {inside}"
        )
    bank = "encoder.gst.stl.embed" in state
    tokens, token_width = shape("encoder.gst.stl.embed", 2) if bank else (0, 48)
    hidden = shape("encoder.gst.ref_encoder.lstm.weight_hh_l0", 2)[1] if bank else 128
    norm = NORMS["vctk" if speaking and not bank else "libritts" if speaking else "ljspeech"]
    return Config(
        symbols=symbols,
        mels=mels,
        speakers=speakers,
        speaker_width=speaker_width,
        channels=channels,
        inner=inner,
        layers=len(set(numbered)),
        inner_duration=shape("encoder.proj_w.conv_1.weight", 3)[0],
        tokens=tokens,
        token_width=token_width,
        pitch_hidden=hidden,
        field=(first, second),
        field_heads=2,
        field_width=across // 2,
        field_middle=len(middles),
        mark=COMPAT_BREAK,
        mean=float(state["mel_mean"]) if "mel_mean" in state else norm[0],
        deviation=float(state["mel_std"]) if "mel_std" in state else norm[1],
    )


def from_public(state: Mapping[str, torch.Tensor], *, strict: bool = True) -> ProsodyFM:
    """A model with a public checkpoint's weights, in eval mode. strict: see ``decoder``.

    Raises UserError that names the key when one is missing, unexpected or of a wrong shape.
    """
    model = ProsodyFM(config_of(state))
    fill(model, state, "checkpoint")
    model.strict = strict
    return model.eval()


def fill(model: ProsodyFM, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Put a state into a model, the mels' mean and deviation kept where the state has none.

    Raises UserError that names a key.
    """
    own = model.state_dict()
    buffers = {"mel_mean", "mel_std"}
    missing = sorted(set(own) - set(state) - buffers)
    unexpected = sorted(set(state) - set(own))
    if missing or unexpected:
        kind, keys = ("lacks", missing) if missing else ("has the unknown", unexpected)
        raise UserError(f"the {what} {kind} {keys[0]}{f' and {len(keys) - 1} keys more' if len(keys) > 1 else ''}")
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise UserError(f"{key} must have the shape {list(own[key].shape)}; the {what} has {list(tensor.shape)}")
    model.load_state_dict({**{key: own[key] for key in buffers}, **state})


def to_public(model: ProsodyFM) -> dict[str, torch.Tensor]:
    """The model's weights in the public layout; the parts that it does not know are left out."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith(OURS)}


def save(model: ProsodyFM, folder: Path, bits: int = 8) -> Path:
    """Write a prior, its weights in float16 or with 8 bits a number, and the configuration. Files appear whole or not.

    Raises UserError for other ``bits`` than 8 and 16."""
    if bits not in (8, 16):
        raise UserError(f"a prior has 8 or 16 bits a weight, got {bits}")
    from safetensors.torch import save as packed

    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    if bits == 8:
        small = eight_bits(state)
    else:
        small = {key: (value.half() if value.ndim else value.float()).cpu() for key, value in state.items()}
    with atomic_path(folder / WEIGHTS) as partial:
        partial.write_bytes(packed({key: value.contiguous() for key, value in small.items()}))
    with atomic_path(folder / CONFIG) as partial:
        told = {"kind": KIND, **model.config.to_dict()}
        partial.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def load(folder: Path) -> ProsodyFM:
    """A prior that ``save`` wrote, float32, in eval mode. Raises UserError for any other folder."""
    told = read_json_object(folder / CONFIG)
    if told.pop("kind", None) != KIND:
        raise UserError(f"{folder / CONFIG} is not of a {KIND}")
    model = ProsodyFM(replace(Config.from_dict(told)))
    fill(model, whole(load_state(folder / WEIGHTS)), f"prior {folder}")
    return model.eval()
