"""The voice of a folder, of the kind that it says: a prior of ours, or a stock class of transformers."""

from __future__ import annotations

from pathlib import Path

from longtake.errors import UserError, one_line, shorten
from longtake.reading import read_json_object
from longtake.speech.backends.own import OwnVoice, kind_of
from longtake.speech.backends.prosody import ProsodyVoice
from longtake.speech.backends.stock import STOCK, StockVoice
from longtake.speech.backends.valle import ValleVoice

KINDS: dict[str, type[OwnVoice]] = {kind.kind: kind for kind in (ProsodyVoice, ValleVoice)}


def needs_vocoder(folder: Path) -> bool:
    """Whether the voice in a folder makes mels."""
    return kind_of(folder) in KINDS


def load_voice(folder: Path, vocoder: Path | None = None) -> OwnVoice | StockVoice:
    """The voice in a folder. vocoder: another generator. Raises UserError for a folder of another kind."""
    stock = _architecture(folder)
    if stock in STOCK:
        if vocoder is not None:
            raise UserError(f"a {stock} makes sound itself: leave the vocoder out")
        return _stock_voice(folder, stock)
    kind = kind_of(folder)
    if kind not in KINDS:
        shown = "no config.json" if kind is None else shorten(repr(kind))
        raise UserError(f"{folder} is no speech prior: its kind must be {' or '.join(KINDS)}; it has {shown}")
    return KINDS[kind].of_folder(folder).with_vocoder(vocoder)


def _architecture(folder: Path) -> str:
    """The class of transformers that a folder's config.json names; "" for none."""
    if not (folder / "config.json").is_file():
        return ""
    named = read_json_object(folder / "config.json").get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _stock_voice(folder: Path, name: str) -> StockVoice:
    import transformers
    from safetensors import SafetensorError

    if not hasattr(transformers, name):
        raise UserError(f"{folder} is a {name}, which transformers {transformers.__version__} has not: upgrade it")
    try:
        model = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
        processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        raise UserError(f"the {name} in {folder} cannot be loaded: {one_line(error)[:300]}") from error
    return StockVoice(model, processor)
