"""Loading a prior: from its folder to a pipeline that can run, or one line that says what is wrong with it.

    pipe = load_prior(LongVideoPipeline, folder, "video prior", dtype=torch.float32, parts=("unet", "vae"))
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from longtake.errors import UserError, one_line

P = TypeVar("P")
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
