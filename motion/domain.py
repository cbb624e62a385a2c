"""Motion as a modality: its settings, files, cost, and how a request becomes a call of the pipeline.

longtake motion "0s: a person walks | 4s: waves with the right hand | 7s: runs" --out take.bvh --preview take.png
longtake motion "0s: a person walks | 6s: a person runs" --path "0,0 0,4 4,6 8,4" --lock-feet --out way.glb
longtake motion "a person walks" --rig mixamo --fps 30 --out walk.glb
longtake motion --from take.npz --rig ue5 --lock-feet --out take.glb
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.domain import Domain, Example, Forecast, InputFile, OnStep, PythonCall, SideFile, step_callback
from longtake.errors import UserError
from longtake.knob import Knob

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.journal import Journal
    from longtake.motion.outputs import MotionOutput
    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.outputs import FileKind
    from longtake.request import Request

PRIOR, PAIR = "bandai-medium", "bandai-pair"
FPS = 20.0
STEPS, GUIDANCE = 30, 1.25  # where the prior that ships is nearest to real speeds, jerk and variety
LAST_SECONDS = 4.0  # of the last prompt, where nothing else says how long
SECONDS = 0.00042  # a frame and step with guidance, bandai-small on one core: 12,000 frames, 20 steps in 100 s
MEMORY_GB = 1.1  # peak of 12,000 frames with bandai-small
MOST_FRAMES = 10_000_000
MOST_POINTS = 10_000
RIG_NAMES = ("mixamo", "ue5", "unity", "vrm", "smpl", "rigify")  # of rigs.tables, which is not imported for --help
_OF_MAKING = (
    "frames",
    "seconds",
    "take2",
    "prior",
    "pair_block",
    "path",
    "upper",
)  # settings that a finished motion has not

KNOBS = (
    Knob(
        name="frames", default=None, kind=int, least=2, most=MOST_FRAMES, argument="frames",
        help="length in frames of the prior, 20 a second with the one that ships",
    ),
    Knob(
        name="seconds", default=None, above=0, most=1_000_000, decides=False,
        help="length in seconds (default: the last prompt gets 4 s)",
    ),
    Knob(
        name="steps", default=STEPS, kind=int, least=1, most=1000, argument="num_inference_steps",
        help="denoising steps", page="Denoising steps", page_most=60,
    ),
    Knob(
        name="guidance", default=GUIDANCE, least=0, most=100, argument="guidance_scale",
        help="classifier-free guidance, 1: none; public MDM: 2.5", page="Guidance by the prompt", page_most=8,
    ),
    Knob(
        name="handshake", default=20, kind=int, least=0, most=10_000, argument="handshake",
        help="frames that neighbouring prompts share", page="Handshake: frames that neighbours share", page_most=38,
    ),
    Knob(
        name="take2", default=None, kind=("release", "paper"), argument="take2",
        help="second take at the transitions",
    ),
    Knob(
        name="chunk_rows", default=16, kind=int, least=1, most=100_000, argument="chunk_rows", decides=False,
        help="rows of one call of the net; memory grows with it",
    ),
    Knob(
        name="prior", default=None, kind=str, decides=False,
        help=f"a shipped prior, a local folder or a Hub id (default {PRIOR}; with --people 2 the block's own)",
    ),
    Knob(
        name="people", default=1, kind=(1, 2), argument="people", help="2: two people who see each other",
        page="People (two hear the same prompts)",
    ),
    Knob(
        name="pair_block", default=None, kind=str, argument="block", decides=False, metavar="NAME",
        help=f"their block: a shipped one or a folder (default {PAIR})",
    ),
    Knob(
        name="path", default=None, kind=str, metavar="POINTS",
        help='floor points to walk along: "0,0 2,1 4,0" (m)', page='Path to walk, points in metres: "0,0 0,4 4,6"',
    ),
    Knob(
        name="lock_feet", default=False, kind=bool, help="standing feet do not slide; tells what it cost",
        page="Lock feet: standing feet do not slide",
    ),
    Knob(
        name="upper", default=None, kind=str, argument="upper", metavar="TIMELINE",
        help='what arms and trunk do while the legs do the prompt: "0s: waves with the right hand"',
        page="Arms and trunk meanwhile: a timeline of their own",
    ),
    Knob(
        name="keys", default=None, kind=str, argument="keys", metavar="KEYS",
        help='hands, feet, head, pelvis at places (m), looks, poses: "2s left_hand 0.3,1.4,0.5 | 3s pose 1.5"',
        page='Places to reach, in metres, or poses: "2s left_hand 0.3,1.4,0.5 | 4s pelvis 0,0.9,3"',
    ),
    Knob(
        name="loop", default=False, kind=bool, argument="loop",
        help="the last pose is the first one, so that the motion repeats", page="Loop: the last pose is the first one",
    ),
    Knob(name="unit", default="m", kind=("m", "cm"), help=".bvh in m (Blender, Unity) or cm (Maya)"),
    Knob(
        name="rig", default="none", kind=("none", *RIG_NAMES),
        help="skeleton of .glb and .bvh, with its rest pose; .vrma is vrm", page="Skeleton of .glb and .bvh files",
    ),
    Knob(
        name="fps", default=None, kind=int, least=1, most=240,
        help="frames a second of the files of a rig: 24, 30, 60 (default: the motion's)",
    ),
    Knob(name="up", default="y", kind=("y", "z"), help="axis that is up in the files of a rig"),
    Knob(
        name="source_fps", default=None, above=0, most=1000,
        help="frames a second of the file of --from, where it does not say",
    ),
)  # fmt: skip


def _prior_of(settings: Mapping[str, Any]) -> Any:
    """The prior that is named; where none is, the default, and of two people the one of their block."""
    if settings["prior"] is not None:
        return settings["prior"]
    if settings.get("people") != 2:
        return PRIOR
    from longtake.motion.pair.pipeline import prior_of

    name = settings.get("pair_block")
    return prior_of(PAIR if name is None else name) or PRIOR


class MotionDomain(Domain):
    """See the module's docstring."""

    NAME = "motion"
    ABOUT = "make long human motion from prompts"
    FPS = FPS
    KNOBS = KNOBS
    SIDES = (
        SideFile(
            "preview", ".png", "contact sheet, a png file",
            lambda output, path: output.preview(path, overwrite=True), lambda path: _check_picture(path),
        ),
        SideFile(
            "report", ".json", "jerk and foot skate at each change",
            lambda output, path: output.seams().save(path, overwrite=True),
            lambda path: _check_report(path),
        ),
    )  # fmt: skip
    PROMPT_INPUT = "from"
    INPUTS = (
        InputFile(
            "from",
            "a finished motion to export: .npz with joints, SMPL's poses and trans, or HumanML3D's features",
            page="A finished motion to put on a skeleton instead (.npz)",
            kinds=(".npz",),
        ),
        InputFile(
            "pose",
            'a finished motion with poses for keys: --keys "3s pose 1.5" has the body at 3 s as it is there at 1.5',
            page="Poses for keys like 3s pose 1.5: a finished motion (.npz)",
            kinds=(".npz",),
        ),
    )
    OUT = "motion.bvh"
    USUAL = (".npz",)
    PIPELINE = "LongMotionPipeline"
    EXAMPLES = (
        Example("Walk, wave, run", "0s: a person walks | 4s: waves with the right hand | 7s: runs", 11),
        Example("A short bow", "0s: someone bows", 4, 2),
        Example("Two wave", "0s: two people wave to each other", 4, 3, {"people": 2}),
    )
    SUMMARY = (
        "Long human motion from prompts: walking, turning, running, waving, bowing… in any order, as long as you "
        "like. The model that ships was trained on three hours of labelled clips; its weights are non-commercial "
        "(CC BY-NC 4.0)."
    )
    MOST_SECONDS = 600.0

    # ----------------------------------------------------------------------------------------- before a model is there

    def file_kinds(self) -> Mapping[str, FileKind]:
        from longtake.motion.outputs import FILES

        return FILES

    def fps_of(self, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> float:
        """Of the prior: it says so beside its weights."""
        from longtake.weights import resolve

        folder = resolve(_prior_of(settings), kind="motion prior", priors_package=self.package)
        try:
            fps = float(json.loads((folder / "space" / "config.json").read_text(encoding="utf-8"))["fps"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return FPS  # what is wrong with it is told where it is loaded
        return fps if math.isfinite(fps) and fps > 0 else FPS

    def settle(self, request: Request) -> dict[str, Any]:
        settings = dict(request.settings)
        _check_files(request)
        if "pose" in request.inputs and not settings["keys"]:
            raise UserError('--pose is the file of poses that keys name: give --keys "3s pose 1.5"')
        if "from" in request.inputs:
            for name in _OF_MAKING:
                if settings[name] is not None:
                    raise UserError(f"--from exports a finished motion: {name.replace('_', ' ')} is of one to be made")
            if settings["people"] != 1:
                raise UserError("--from exports a finished motion: how many people it has stands in the file")
            settings["seconds"] = None
            return settings
        if settings["source_fps"] is not None:
            raise UserError("--source-fps says how fast the file of --from is: it needs --from")
        if settings["frames"] is not None and settings["seconds"] is not None:
            raise UserError("frames and seconds both say how long: give one of them")
        settings["prior"] = _prior_of(settings)
        fps = self.fps_of(settings, request.inputs)
        if settings["seconds"] is not None:
            settings["frames"] = max(2, round(settings["seconds"] * fps))
        elif settings["frames"] is None and settings["path"] is None:  # a path says itself how long it takes
            settings["frames"] = request.times.starts[-1][0] + round(LAST_SECONDS * fps)
        settings["seconds"] = None
        if settings["frames"] is not None and settings["frames"] > MOST_FRAMES:
            raise UserError(f"frames must be at most {MOST_FRAMES}, got {settings['frames']}")
        if settings["people"] == 1 and settings["pair_block"] is not None:
            raise UserError("--pair-block needs --people 2")
        if settings["people"] == 2 and settings["take2"] is not None:
            raise UserError("--people 2 knows no --take2")
        if settings["path"] is not None:
            path_points(settings["path"])
        if settings["keys"] or settings["loop"] or settings["upper"]:
            from longtake.motion.held import refuse

            refuse(settings, fps, request.inputs.get("pose"))
        return settings

    def forecast(self, request: Request) -> Forecast:
        given, frames = request.settings, request.settings["frames"]
        if "from" in request.inputs:
            return Forecast(2.0, 0.6, "a finished motion")
        amount = f"{frames} frames"
        if frames is None:
            frames = request.times.starts[-1][0] + round(LAST_SECONDS * self.fps_of(given, request.inputs))
            amount = "as long as the path takes"
        request.times.validate(frames)
        seconds = SECONDS * frames * given["steps"] * given["people"]
        return Forecast(seconds, MEMORY_GB, amount, given["steps"])

    def weights(self, request: Request) -> list[Path]:
        from longtake.weights import resolve

        if "from" in request.inputs:
            return []
        folders = super().weights(request)
        if request.settings["people"] == 2:
            name = PAIR if request.settings["pair_block"] is None else request.settings["pair_block"]
            folders.append(resolve(name, kind="two-person block", priors_package=self.package))
        return folders

    # ----------------------------------------------------------------------------------------------------- with a model

    def load(self, request: Request, ranks: Ranks) -> LongMotionPipeline | None:
        if "from" in request.inputs:
            return None  # nothing is computed but an export
        from longtake.motion.pipeline import LongMotionPipeline

        pipe = LongMotionPipeline.from_prior(request.settings["prior"], dtype=ranks.choice.dtype)
        pipe.to(ranks.device)
        return pipe

    def most_ranks(self, pipe: LongMotionPipeline | None, request: Request) -> int:
        """Ranks share whole chunks of rows, so that a result does not depend on their number."""
        from longtake.motion.model import Padding
        from longtake.motion.rows import plan_of

        given = request.settings
        if pipe is None or given["frames"] is None:
            return 1
        longest = int(pipe.space.config.longest_row)
        plan, _ = plan_of(request.times, given["frames"], handshake=given["handshake"], longest=longest)
        if given["keys"] or given["loop"] or given["upper"]:
            return 1  # they see the whole motion
        return len(plan.chunks(given["chunk_rows"], mixed=pipe.model.padding is Padding.MASK))

    def generate(
        self,
        pipe: LongMotionPipeline | None,
        request: Request,
        ranks: Ranks,
        journal: Journal | None,
        on_step: OnStep | None,
    ) -> MotionOutput:
        output = _made(pipe, request, ranks, journal, on_step) if pipe is not None else _finished(request)
        given = request.settings
        output.unit, output.up, output.rig_fps = given["unit"], given["up"], given["fps"]
        output.rig = None if given["rig"] == "none" else given["rig"]
        told = output.info.setdefault("told", [])
        if "path_deviation_m" in output.info:
            told.append(_told_path(output.info))
        if given["lock_feet"]:
            told.append(output.lock_feet().text())
            if given["keys"]:
                from longtake.motion.held import meet_again

                meet_again(output, given["keys"], request.inputs.get("pose"))
        if pipe is None and output.boundaries:
            told.append(output.seams().text())
        return output

    def python(self, request: Request) -> PythonCall:
        said = super().python(request)
        given = request.settings
        if "from" in request.inputs:
            said_of = {"fps": given["source_fps"], "prompt": request.prompt or None}
            before = ["from longtake.motion.rigs.takes import read_take"]
            said = PythonCall("read_take", {"path": str(request.inputs["from"]), **said_of}, before, pipe=False)
        else:
            said.arguments = {"frames": given["frames"], **said.arguments}
        if given["path"] is not None:
            said.arguments["path"] = path_points(given["path"])
        pose = str(request.inputs["pose"]) if "pose" in request.inputs else None
        if any(given[name] for name in ("keys", "loop", "upper")):
            if said.pipe:
                said.arguments |= {} if pose is None else {"pose": pose}
                said.before += ["from functools import partial", "from longtake.motion.held import make"]
                said.call = "partial(make, pipe)"
            else:
                said.before.append("from longtake.motion.held import finish")
                more = "" if pose is None else f", pose={pose!r}"
                said.after.append(f"finish(out, keys={given['keys']!r}, loop={given['loop']!r}{more})")
        if given["lock_feet"]:
            said.after.append("out.lock_feet()")
            if given["keys"]:
                said.before.append("from longtake.motion.held import meet_again")
                said.after.append(f"meet_again(out, {given['keys']!r}{'' if pose is None else f', {pose!r}'})")
        for name, field, usual in (
            ("unit", "unit", "m"), ("rig", "rig", "none"), ("fps", "rig_fps", None), ("up", "up", "y"),
        ):  # fmt: skip
            if given[name] != usual:
                said.after.append(f"out.{field} = {given[name]!r}")
        return said


def _made(
    pipe: LongMotionPipeline, request: Request, ranks: Ranks, journal: Journal | None, on_step: OnStep | None
) -> MotionOutput:
    """The motion of a request, made by a pipeline."""
    from longtake.motion.held import make

    given = request.settings
    return make(
        pipe,
        request.times,
        given["frames"],
        keys=given["keys"],
        pose=request.inputs.get("pose"),
        loop=given["loop"],
        upper=given["upper"],
        seed=request.seed,
        num_inference_steps=given["steps"],
        guidance_scale=given["guidance"],
        handshake=given["handshake"],
        take2=given["take2"],
        people=given["people"],
        block=given["pair_block"],
        path=None if given["path"] is None else path_points(given["path"]),
        chunk_rows=given["chunk_rows"],
        ranks=ranks,
        journal=journal,
        checkpoint_every=1 if journal is None else journal.every_steps,
        callback_on_step_end=step_callback(on_step, given["steps"]),
    )


def _finished(request: Request) -> MotionOutput:
    """The motion of the file of --from; a prompt names what happens when. Raises UserError."""
    from longtake.motion.rigs.takes import read_take

    output = read_take(request.inputs["from"], fps=request.settings["source_fps"], prompt=request.prompt or None)
    if request.settings["keys"] or request.settings["loop"]:
        from longtake.motion.held import finish

        given = request.settings
        finish(output, keys=given["keys"], pose=request.inputs.get("pose"), loop=given["loop"])
    return output


def _check_files(request: Request) -> None:
    """Raise UserError for files and settings of a rig that do not go together."""
    given = request.settings
    on_rig = given["rig"] != "none" or ".vrma" in request.outputs
    for name, usual in (("fps", None), ("up", "y")):
        if given[name] != usual and not on_rig:
            raise UserError(f"--{name} is of the files of a rig: it needs --rig, one of {', '.join(RIG_NAMES)}")
    if ".fbx" in request.outputs:
        from longtake.motion.rigs.fbx import check_bpy

        if given["rig"] == "none":
            raise UserError(f"a .fbx file needs --rig, one of {', '.join(RIG_NAMES)}")
        if given["unit"] != "m" or given["up"] != "y":
            raise UserError(f"a .fbx file says metres and y up itself; given {given['unit']} and {given['up']} up")
        check_bpy()
    if ".vrma" in request.outputs:
        if given["rig"] not in ("none", "vrm"):
            raise UserError(f"a .vrma file holds the rig vrm; given {given['rig']}")
        if given["unit"] != "m" or given["up"] != "y":
            raise UserError(f"a .vrma file is in metres with y up; given {given['unit']} and {given['up']} up")
        if given["people"] == 2:
            raise UserError("a .vrma file holds one person; given 2 people: write .glb or .bvh")


def path_points(text: str) -> list[tuple[float, float]]:
    """Floor points (x, z) in metres of "x,z x,z ...". Raises UserError."""
    try:
        points = [(float(x), float(z)) for x, z in (part.split(",") for part in text.split())]
    except ValueError:
        points = []
    if not 2 <= len(points) <= MOST_POINTS or not all(abs(number) <= 1e6 for point in points for number in point):
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise UserError(
            f'--path needs at least two points "x,z x,z ..." in metres, each within 1,000 km, got {shown!r}'
        )
    return points


def _told_path(info: Mapping[str, Any]) -> str:
    """How far off the path the walk was, in words."""
    off = info["path_deviation_m"]
    stretch = info.get("path_stretch")
    speed = "" if stretch is None else f", at {stretch:.2f} times the speed of the prompts"
    return f"path: points passed within {off['largest']:.3f} m{speed}"


def _check_picture(path: Path) -> None:
    from longtake.media import check_picture

    check_picture(path)


def _check_report(path: Path) -> None:
    if "seams" not in json.loads(path.read_text(encoding="utf-8")):
        raise UserError(f"{path} is no seam report")


DOMAIN = MotionDomain()
