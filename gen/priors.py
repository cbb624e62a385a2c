"""Loading a prior: from its folder to a pipeline that can run, or one line that says what is wrong with it; and what
it knows.

    pipe = load_prior(LongVideoPipeline, folder, "video prior", dtype=torch.float32, parts=("unet", "vae"))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from longtake.errors import UserError, one_line
from longtake.reading import read_json

P = TypeVar("P")
KNOWS = "knows.json"  # beside a prior's weights: texts that it was trained to know
# what diffusers, transformers and torch raise at files whose values are of another type than theirs
WRONG_VALUES = (TypeError, ValueError, AttributeError, LookupError, RuntimeError, RecursionError, NotImplementedError)


def load_prior(cls: type[P], folder: Path, kind: str, *, dtype: Any, parts: Iterable[str]) -> P:
    """The pipeline of class ``cls`` in a folder as ``save_pretrained`` writes it, its ``parts`` set to evaluate.

    Raises UserError when something is missing, damaged, or of another kind.
    """
    from safetensors import SafetensorError

    if not (folder / "model_index.json").exists():
        raise UserError(f"{folder} is no {kind}: it has no model_index.json")
    try:
        pipe: Any = cls.from_pretrained(folder, dtype=dtype, local_files_only=True)  # type: ignore[attr-defined]
        for part in parts:
            getattr(pipe, part).eval()
    except (SafetensorError, OSError, EOFError, *WRONG_VALUES) as error:
        if isinstance(error, UserError):
            raise
        named = "" if type(error) in (OSError, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"the {kind} in {folder} cannot be loaded: {named}{one_line(error)[:500]}") from error
    result: P = pipe
    return result


def known_texts(folder: Path) -> tuple[str, ...]:
    """The texts that a prior says it knows; none when it does not say. Raises UserError when that file is damaged."""
    path = folder / KNOWS
    if not path.is_file():
        return ()
    texts = read_json(path)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path} is no list of texts")
    return tuple(texts)


def strange_prompts(prompts: Sequence[str], folders: Sequence[Path], encoder: Any) -> list[str]:
    """A line for each prompt that lies far from all that the priors in ``folders`` know; none for priors that do not
    say, or whose text encoder gives no sentence vectors."""
    if not hasattr(encoder, "encode"):
        return []
    known = tuple(text for folder in folders for text in known_texts(folder))
    if not known:
        return []
    from longtake.text import kept_vectors, outside

    if known not in _VECTORS:
        _VECTORS[known] = kept_vectors(encoder, known)
    told = (outside(prompt, known, encoder, _VECTORS[known]) for prompt in dict.fromkeys(prompts))
    return [line for line in told if line is not None]


_VECTORS: dict[tuple[str, ...], Any] = {}  # sentence vectors of what a prior knows, encoded once
