"""A web page that plays a motion: one file, no network, any browser.

    write_viewer("take.html", [joints], HUMANML, fps=20, captions=captions)

The page holds its script and its data: root positions as float32, the other joints less the root as int16 of a tenth of
a millimetre or so, both in base64 (12,000 frames are about 2.4 MB). Drag turns the camera, the wheel zooms, the bar
scrubs; space plays and pauses, arrows step a frame (with shift a second), Home and End jump, + and - zoom, F follows
the person or stands still, R puts the camera back, comma and full stop change the speed.
Legend: F frames, J joints.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from longtake.errors import UserError
from longtake.motion.export.page import PAGE
from longtake.motion.kinematics import Skeleton

_SMALLEST = 1e-4  # metres of one step of the int16 numbers


def write_viewer(
    path: str | os.PathLike[str],
    people: Sequence[np.ndarray],
    skeleton: Skeleton,
    fps: float,
    *,
    captions: Sequence[str] = (),
    title: str = "longtake motion",
    overwrite: bool = False,
) -> None:
    """Write .html. people: (F, J, 3) each, metres, y up. captions: one a frame. Raises UserError."""
    from longtake.journal import atomic_path
    from longtake.media import check_output

    path = check_output(path, (".html",), overwrite)
    data = json.dumps(pack(people, skeleton, fps, captions), ensure_ascii=False, separators=(",", ":"))
    safe = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    name = title.replace("&", "&amp;").replace("<", "&lt;")
    page = PAGE.replace("@TITLE@", name).replace("@DATA@", safe)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def pack(people: Sequence[np.ndarray], skeleton: Skeleton, fps: float, captions: Sequence[str]) -> dict[str, Any]:
    """What the page reads: see ``unpack``."""
    from longtake.motion.export.glb import caption_runs

    frames = len(people[0]) if people else 0
    for joints in people:
        if joints.shape != (frames, skeleton.joints, 3) or not frames:
            raise UserError(f"a viewer needs joints ({frames}, {skeleton.joints}, 3) of each; given {joints.shape}")
        if not np.isfinite(joints).all():
            raise UserError("the joints hold NaN or infinity: nothing to show")
    if captions and len(captions) != frames:
        raise ValueError(f"{len(captions)} captions for {frames} frames")
    floor = min(float(np.percentile(joints[..., 1].min(1), 5)) for joints in people) - 0.03
    packed = []
    for joints in people:
        root = joints[:, 0].astype("<f4")
        relative = joints[:, 1:].astype(np.float64) - root[:, None]
        step = max(_SMALLEST, float(np.abs(relative).max(initial=0.0)) / 32767)
        whole = np.rint(relative / step).astype("<i2")
        packed.append({"root": _base64(root), "step": step, "relative": _base64(whole)})
    return {
        "fps": fps,
        "frames": frames,
        "joints": skeleton.joints,
        "names": list(skeleton.names),
        "parents": list(skeleton.parents),
        "floor": floor,
        "captions": caption_runs(captions) if captions else [],
        "people": packed,
    }


def unpack(page: str) -> dict[str, Any]:
    """The data of a written page; ``people`` are joints (F, J, 3) float64 again. Raises UserError."""
    start = page.find('<script type="application/json" id="data">')
    if start < 0:
        raise UserError("this page holds no motion")
    start = page.index(">", start) + 1
    data = json.loads(page[start : page.index("</script>", start)])
    people = []
    for person in data["people"]:
        root = np.frombuffer(base64.b64decode(person["root"]), "<f4").reshape(-1, 1, 3).astype(np.float64)
        relative = np.frombuffer(base64.b64decode(person["relative"]), "<i2").reshape(len(root), -1, 3)
        people.append(np.concatenate([root, root + person["step"] * relative], 1))
    return {**data, "people": people}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def check_viewer(path: str | os.PathLike[str]) -> None:
    """Raise UserError when a page is missing, cut off, or its data cannot be read."""
    try:
        page = Path(path).read_text(encoding="utf-8")
        unpack(page)
        if not page.rstrip().endswith("</html>"):
            raise ValueError("its end is missing")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no whole page: {error}") from error
