"""Goldens of speech: a case's json, its arrays and the inputs that its tags make."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("golden_fill_speech", ROOT / "fill.py")
assert _spec is not None and _spec.loader is not None
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


class Golden:
    """One case of tests/golden/speech."""

    def __init__(self, case: str) -> None:
        self.meta: dict[str, Any] = json.loads((ROOT / "speech" / f"{case}.json").read_text())
        self.arrays = dict(np.load(ROOT / "speech" / f"{case}.npz"))

    def given(self, name: str) -> torch.Tensor:
        """The input ``name``: noise of its tag, scaled and shifted as it says."""
        entry = self.meta["inputs"][name]
        made = fill.noise(entry["tag"], tuple(entry["shape"]))
        return torch.from_numpy(made * np.float32(entry.get("scale", 1.0)) + np.float32(entry.get("shift", 0.0)))
