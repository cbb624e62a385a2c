"""Two people: the two-person block of a prior, and a first take in which both see each other (a canvas of two).

    take = pair_take(run, schedule, kept_block(pipe, "bandai-pair"), ranks)      # for ``denoise``, as first_take's own
    a, b = take.whole(final).unbind(1)                                           # (N, J) each
    second = in_one_world(pipe.space.joints(a), pipe.space.joints(b), take.token)

Both hear the same prompts. The state has three tensors: each person's frames, and the canon tokens of the rows, which
say how the second person stands to the first. Legend: N frames, n of this rank, B rows, b of this rank, J features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from longtake.denoising import Denoising, Strand, Tensors
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.motion.canvas import Canvas
from longtake.motion.control import root_features
from longtake.motion.first_take import CANON, SECOND, FirstTake
from longtake.motion.pair.model import ComMDM, PairDenoiser, decode_canon, first_token, place_pair
from longtake.motion.path import PathControl
from longtake.motion.rows import MotionRun
from longtake.motion.sampling import LinearSteps, Schedule
from longtake.noise import noise

DEFAULT_BLOCK = "bandai-pair"
WEIGHTS, CONFIG = "comm.safetensors", "pair.json"


class HasPrior(Protocol):
    """What a block is put around: a pipeline with its net."""

    model: Any


def load_block(pipe: HasPrior, name: str | Path = DEFAULT_BLOCK) -> ComMDM:
    """The two-person block of a shipped prior's name, or of a folder with pair.json and comm.safetensors, around the
    pipeline's prior. Raises UserError when it is missing, damaged, or made for another prior."""
    from longtake.weights import load_state, resolve

    folder = resolve(str(name), kind="two-person block", priors_package="longtake.motion")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        _same_prior(pipe, config.get("prior"), folder)
        model = ComMDM.around(pipe.model, comm_layers=int(config["comm_layers"]), split=int(config["split"]))
        model.comm.load_state_dict({key: value.float() for key, value in load_state(folder / WEIGHTS).items()})
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{folder} holds no two-person block for this prior: {reason}") from error
    return _moved(model, pipe).eval()


def prior_of(name: str | Path = DEFAULT_BLOCK) -> str | None:
    """The shipped prior that a block was trained around, None where it does not say or names another one."""
    from longtake.weights import resolve, shipped_priors

    folder = resolve(str(name), kind="two-person block", priors_package="longtake.motion")
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["prior"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # what is wrong with it is told where it is loaded
    return told if isinstance(told, str) and told in shipped_priors("longtake.motion") else None


def _same_prior(pipe: Any, wanted: object, folder: Path) -> None:
    """UserError where both are shipped priors and differ: nets of one shape would run, and make nonsense."""
    from longtake.weights import shipped_priors

    own = Path(str(getattr(pipe, "name_or_path", ""))).name
    shipped = shipped_priors("longtake.motion")
    if wanted in shipped and own in shipped and own != wanted:
        raise UserError(f"the block {folder.name} was trained around {wanted}, not {own}: give --prior {wanted}")


def kept_block(pipe: HasPrior, name: str | Path) -> ComMDM:
    """`load_block`, read from disk once for each pipeline, name and date of the file."""
    from longtake.weights import resolve

    folder = resolve(str(name), kind="two-person block", priors_package="longtake.motion")
    weights = folder / WEIGHTS
    key = (str(folder), weights.stat().st_mtime_ns if weights.exists() else 0)
    blocks = pipe.__dict__.setdefault("_pair_blocks", {})
    if key not in blocks:
        blocks[key] = load_block(pipe, name)
    return _moved(blocks[key], pipe)


def _moved(model: ComMDM, pipe: HasPrior) -> ComMDM:
    # torch's own ``to``: that of diffusers warns about parts to keep in float32, of which there are none
    torch.nn.Module.to(model, pipe.model.device, pipe.model.dtype)
    return model


@dataclass
class PairTake(FirstTake):
    """A first take of two; ``whole`` gives (N, 2, J) and leaves in ``token`` (J,) where the second person stands."""

    token: torch.Tensor = field(default_factory=lambda: torch.zeros(0), kw_only=True)


def pair_take(run: MotionRun, schedule: Schedule, model: ComMDM, ranks: Ranks) -> PairTake:
    """Two people on one canvas; ranks share rows as for one person.

    The first person's token is given to the net at every step without noise, as the block was trained. A control holds
    the first person's features; on a path the second one keeps his place beside, in front or behind, as their bodies
    turn. Raises UserError for hooks.
    """
    if run.hooks:
        raise UserError("two people know no hooks; a control holds the first person's features")
    plan, width = run.plan, run.width
    net = PairDenoiser(model, run.denoise.text, run.denoise.scale, plan.lengths)  # type: ignore[attr-defined]
    first = first_token(width).to(run.device)
    estimates = torch.zeros(plan.rows, 2, width, device=run.device)  # canon tokens that the net took them to have
    tokens: torch.Tensor = estimates[:0]

    def see(x: torch.Tensor, timestep: int, rows: Sequence[int]) -> torch.Tensor:
        """Clean estimates (R, T, 2, J) of both people's rows; the tokens' go into ``estimates``."""
        place = [row - canvas.rows.start for row in rows]
        state = torch.cat([tokens[place].unsqueeze(2), x.transpose(1, 2)], 2)
        clean = net(state.to(run.dtype), timestep, rows).to(x.dtype)
        estimates[list(rows)] = clean[:, :, 0]
        return clean[:, :, 1:].transpose(1, 2)

    canvas = Canvas(plan, see, ranks, chunk_rows=run.chunk_rows, mixed=False)
    mine, rows = canvas.frames, canvas.rows
    strands = {
        "latents": _strand(run, mine, 0),
        "second": _strand(run, mine, SECOND),
        "canon": _strand(run, range(2 * rows.start, 2 * rows.stop), CANON),
    }
    state = Denoising(strands, run.seed, run.item)

    def held(clean: torch.Tensor, token: torch.Tensor, frames: range) -> torch.Tensor:
        """Clean features (n, 2, J) of ``frames`` with what the control holds."""
        if run.control is None:
            return clean
        people = [run.control.part(frames).adjust(clean[:, 0]), clean[:, 1]]
        if isinstance(run.control, PathControl):
            beside = _beside(run.control, token.float().cpu(), run)
            people[1] = beside.part(frames).adjust(people[1])
        return torch.stack(people, 1)

    def second_token() -> torch.Tensor:
        return ranks.broadcast_object(estimates[0, 1].cpu()) if run.control is not None else estimates[0, 1]

    def predict(samples: Tensors, t: Any, step: int) -> Tensors:
        nonlocal tokens
        tokens = samples["canon"].unflatten(0, (len(rows), 2))
        tokens[:, 0] = first
        clean = canvas.estimate(torch.stack([samples["latents"], samples["second"]], 1), int(t))
        clean = held(clean, second_token(), mine)
        canon = estimates[rows.start : rows.stop].flatten(0, 1).clone()
        return {"latents": clean[:, 0], "second": clean[:, 1], "canon": canon}

    def whole(final: Tensors) -> torch.Tensor:
        canon = final["canon"].unflatten(0, (len(rows), 2))
        take.token = ranks.broadcast_object(canon[0, 1].float().cpu())
        both = canvas.gather(torch.stack([final["latents"], final["second"]], 1))
        return held(both, take.token, range(plan.total)).float()

    take = PairTake(LinearSteps(schedule), state, predict, whole)
    return take


def _strand(run: MotionRun, places: range, kind: int) -> Strand:
    names = range(kind + places.start, kind + places.stop)
    return Strand(noise(run.seed, run.item, names, 0, (run.width,)).to(run.device), names, places.start)


def _beside(control: PathControl, token: torch.Tensor, run: MotionRun) -> PathControl:
    """The path's control for a second person who stands as the token (J,) says and keeps that place."""
    place, angle = control.path.places(len(control.given), control.pace)
    turn, at = decode_canon(token)
    sideways, ahead = float(at[0]), float(at[2])
    facing = torch.atan2(turn[2, 0], turn[0, 0]).to(angle)  # a body turned by the transpose of R, as in place_pair
    cos, sin = angle.cos(), angle.sin()
    beside = place + torch.stack([cos * sideways + sin * ahead, cos * ahead - sin * sideways], 1)
    given = torch.zeros(len(control.given), run.width)
    given[:, :3] = root_features(run.space.form.metre * beside, angle + facing)
    return PathControl(control.mask, run.space.normalize(given), quiet=False, path=control.path, pace=control.pace)


def in_one_world(a: torch.Tensor, b: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Joints (N, 22, 3) of the second person b in the world of the first."""
    return place_pair(a, b, first_token(len(token)), token)[1]
