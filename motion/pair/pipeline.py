"""Two people from one prompt or Timeline: the frozen prior, the two-person block, and a DoubleTake canvas a person.

    out = LongMotionPipeline.from_prior("bandai-small").pair("two people walk side by side", 120, seed=1)
    out.save("walk.glb")                                          # both people in one file

Legend: N frames, B rows, J features.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from longtake.errors import UserError
from longtake.motion.outputs import MotionOutput
from longtake.motion.pair.model import ComMDM, PairDenoiser, decode_canon, first_token, place_pair, sample_long_pair
from longtake.noise import noise

if TYPE_CHECKING:
    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.timeline import Timeline

DEFAULT_BLOCK = "bandai-pair"
WEIGHTS, CONFIG = "comm.safetensors", "pair.json"
# A frame's noise is named by its number: the second person and the canon tokens have ranges of their own.
_SECOND, _CANON = 3 << 48, 4 << 48


def load_block(pipe: LongMotionPipeline, name: str | Path = DEFAULT_BLOCK) -> ComMDM:
    """The two-person block of a shipped prior's name, or of a folder with pair.json and comm.safetensors, around the
    pipeline's prior. Raises UserError when it is missing, damaged, or made for a prior of another shape."""
    from longtake.weights import load_state, resolve

    folder = resolve(str(name), kind="two-person block", priors_package="longtake.motion")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = ComMDM.around(pipe.model, comm_layers=int(config["comm_layers"]), split=int(config["split"]))
        model.comm.load_state_dict({key: value.float() for key, value in load_state(folder / WEIGHTS).items()})
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{folder} holds no two-person block for this prior: {reason}") from error
    return model.to(pipe.model.device, pipe.model.dtype).eval()


def _kept_block(pipe: LongMotionPipeline, name: str | Path) -> ComMDM:
    """`load_block`, read from disk once for each pipeline, name and date of the file."""
    from longtake.weights import resolve

    folder = resolve(str(name), kind="two-person block", priors_package="longtake.motion")
    weights = folder / WEIGHTS
    key = (str(folder), weights.stat().st_mtime_ns if weights.exists() else 0)
    blocks = pipe.__dict__.setdefault("_pair_blocks", {})
    if key not in blocks:
        blocks[key] = load_block(pipe, name)
    kept: ComMDM = blocks[key].to(pipe.model.device, pipe.model.dtype)
    return kept


@torch.no_grad()
def generate_pair(
    pipe: LongMotionPipeline,
    prompt: str | Timeline,
    frames: int | None = None,
    *,
    block: ComMDM | str | Path = DEFAULT_BLOCK,
    seed: int = 0,
    item: int = 0,
    callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
    **settings: Any,
) -> MotionOutput:
    """Two people for ``frames`` frames; both hear the same prompts. settings: as ``LongMotionPipeline.prepare`` takes
    them. callback_on_step_end gets the first person's {"latents", "clean"}, (N, J).

    The result's ``second`` is the other person in the same world. Raises UserError.
    """
    started = time.monotonic()
    if settings.get("control") is not None or settings.get("hooks"):
        raise UserError("two people know no control and no hooks")
    model = block if isinstance(block, ComMDM) else _kept_block(pipe, block)
    run, prompts = pipe.prepare(prompt, frames, seed=seed, item=item, **settings)
    plan, net = run.plan, run.denoise
    denoise = PairDenoiser(model, net.text, net.scale, plan.lengths)  # type: ignore[attr-defined]
    schedule = pipe.schedule(run.steps)
    width = run.width

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        people = [noise(seed, item, range(first, first + plan.total), count, (width,)) for first in (0, _SECOND)]
        tokens = noise(seed, item, range(_CANON, _CANON + 2 * plan.rows), count, (width,)).unflatten(0, (plan.rows, 2))
        return torch.stack(people, 1).to(run.device), tokens.to(run.device)

    pipe.begin()
    done = 0
    bar = pipe.progress_bar(total=run.steps)

    def on_step(step: int, clean: torch.Tensor) -> bool:
        nonlocal done
        done = step
        bar.update(1)
        if callback_on_step_end is not None:
            tensors = {"latents": clean[:, 0], "clean": clean[:, 0]}
            callback_on_step_end(pipe, step, schedule.timesteps[step - 1], tensors)
        return pipe.interrupt

    first = first_token(width).to(run.device)
    whole, canon = sample_long_pair(plan, denoise, schedule, draw, first_canon=first, on_step=on_step)
    bar.close()
    if not torch.isfinite(whole).all():
        raise FloatingPointError("the run ended with NaN or infinity")
    info = {
        "frames": len(whole),
        "rows": list(plan.lengths),
        "handshakes": list(plan.handshakes),
        "seed": seed,
        "steps": done,
        "mode": "pair",
        "people": 2,
        "completed": done == run.steps,
        "seconds": round(time.monotonic() - started, 2),
    }
    output = pipe.output(plan, prompts, whole[:, 0].float(), info)
    a, b = (pipe.space.joints(whole[:, person].float()).cpu() for person in (0, 1))
    output.second = place_pair(a, b, first.cpu().float(), canon[0, 1].cpu().float())[1].numpy()
    _, place = decode_canon(canon[0, 1].cpu().float())
    output.info["second_stands_at"] = [round(float(place[axis]), 3) for axis in (0, 2)]
    return output
