"""Video as a modality: its settings, files, cost, and how a request becomes a call of the pipeline.

longtake video "a barbarian runs" --frames 240 --out running.mp4 --preview running.png
longtake video "person swimming" --extend running.mp4 --frames 120 --out longer.mp4

Frames added to a run begin with its last prompt, which the run's record holds, and fade into the new one: kept frames
stay as they are, so the fade lies behind the border and its middle half a blend (4 frames) after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.domain import Domain, Example, Forecast, InputFile, OnStep, PythonCall, SideFile, step_callback
from longtake.errors import UserError
from longtake.knob import Knob

if TYPE_CHECKING:
    from longtake.distributed import Ranks
    from longtake.journal import Journal
    from longtake.outputs import FileKind, Output, VideoOutput
    from longtake.request import Request
    from longtake.video.pipeline import Context, LongVideoPipeline
    from longtake.video.scope import Scope

PRIOR = "kaykit-small"
FRAMES = 240
FPS, STEPS, GUIDANCE = 12.0, 16, 3.0  # of the priors that ship, and of a UNet that says nothing else
SECONDS = 0.0156  # a frame and step with guidance, a prior of this size at 64 x 64: 240 frames, 16 steps in 60 s
PIXELS = 64 * 64  # of that measurement
FLOPS = 61e9  # a second in that measurement: 0.957e9 a frame and step
MEMORY_GB = 1.5  # peak of 2,300 frames with a prior of this size
MOST_FRAMES = 1_000_000
_PAIR = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")

KNOBS = (
    Knob(
        name="frames", default=None, kind=int, least=1, most=MOST_FRAMES, argument="frames",
        help=f"frames to make (default {FRAMES})",
    ),
    Knob(
        name="seconds", default=None, above=0, most=100_000, decides=False,
        help="length in seconds, in place of --frames",
    ),
    Knob(
        name="fps", default=None, least=0.1, most=240, argument="fps",
        help=f"frames per second of the file and the Timeline (default: as the model was trained, {FPS:g} if it ships)",
    ),
    Knob(
        name="steps", default=None, kind=int, least=1, most=1000, argument="num_inference_steps",
        help=f"denoising steps (default: as the model is usually run, {STEPS} if it ships)",
        page="Denoising steps", page_most=60,
    ),
    Knob(
        name="guidance", default=None, least=0, most=100, argument="guidance_scale",
        help=f"classifier-free guidance, 1 switches it off (default: as usual for the model, {GUIDANCE:g} if it ships)",
        page="Guidance by the prompt", page_most=8,
    ),
    Knob(
        name="negative", default="", kind=str, argument="negative_prompt",
        help="what the video should not show", page="What it should not show",
    ),
    Knob(
        name="prior", default=None, kind=str, decides=False,
        help=f"a shipped prior, a local folder or a Hub id (default {PRIOR})",
    ),
    Knob(
        name="base", default=None, kind=str, decides=False,
        help="pipeline that lends a bare UNet its text encoder and autoencoder",
    ),
    Knob(
        name="height", default=None, kind=int, least=8, most=8192, argument="height",
        help="pixels (default: as the prior was trained)",
    ),
    Knob(
        name="width", default=None, kind=int, least=8, most=8192, argument="width",
        help="pixels (default: as the prior was trained)",
    ),
    Knob(
        name="window", default=None, kind=int, least=0, most=MOST_FRAMES,
        help="frames seen on each side of a frame (default 8); of a video transformer latent frames, as below",
    ),
    Knob(
        name="global_frames", default=16, kind=int, least=0, most=MOST_FRAMES, help="frames seen by every frame"
    ),
    Knob(name="gate", default="off", kind=("soft", "hard", "off"), help="window and global frames by turns"),
    Knob(
        name="noise", default="independent", kind=("independent", "freenoise"), argument="initial_noise",
        help="initial noise",
    ),
    Knob(
        name="free_noise", default=None, kind=str, metavar="FRAMES:APART",
        help="AnimateDiff: FreeNoise in windows of so many frames, so far apart (16:4), for films of any length",
    ),
    Knob(
        name="positions", default="auto", kind=("auto", "absolute", "interpolate", "riflex", "clip"),
        help="video transformers: where frames stand in time beyond the training length (auto: clip)",
    ),
    Knob(
        name="length", default=None, kind=int, least=3, most=100_000,
        help="video transformers: training length in latent frames, where no preset knows it",
    ),
    Knob(
        name="guidance_ranks", default=False, kind=bool, decides=False,
        help="video transformers on an even number of ranks: the two passes of guidance on two halves of them",
    ),
    Knob(name="redo", default=None, kind=str, metavar="A:B", help="make frames A to B-1 of --extend RUN anew"),
)  # fmt: skip


class VideoDomain(Domain):
    """See the module's docstring."""

    NAME = "video"
    ABOUT = "make a long video from prompts"
    FPS = FPS
    KNOBS = KNOBS
    INPUTS = (
        InputFile("extend", "add frames to a run: its film, its record or its latents", "RUN"),
        InputFile("first", "video transformers: a picture that the film begins with", "PICTURE"),
        InputFile("last", "video transformers: a picture that the film ends with", "PICTURE"),
    )
    SIDES = (
        SideFile(
            "preview", ".png", "contact sheet, a png file",
            lambda output, path: output.preview(path, overwrite=True), lambda path: _media().check_picture(path),
        ),
        SideFile(
            "save_latents", ".safetensors", "clean latents, for --extend",
            lambda output, path: _save(path, output),
            lambda path: _latents().read_run(path), usual=True,
        ),
    )  # fmt: skip
    OUT = "video.mp4"
    USUAL = (".mp4",)
    PIPELINE = "LongVideoPipeline"
    EXAMPLES = (
        Example("A barbarian runs", "0s: a barbarian runs", 8),
        Example(
            "Run, jump, fall over", "0s: a barbarian runs | 3s: a barbarian jumps | 5s: a barbarian falls over", 7, 1
        ),
        Example("A knight walks", "0s: a knight walks", 4, 3),
    )
    SUMMARY = (
        "Minutes of video from a model that has seen 16 to 48 frames at a time (Video-Infinity). The model that ships "
        "is small: 64 × 64 pixels, five characters (knight, barbarian, mage, rogue, hooded rogue) in fifty actions."
    )
    MOST_SECONDS = 120.0

    # ----------------------------------------------------------------------------------------- before a model is there

    def file_kinds(self) -> Mapping[str, FileKind]:
        from longtake.outputs import FILMS

        return FILMS

    def usual(self, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> Mapping[str, Any]:
        preset = self._preset(settings, inputs)
        if preset is None:
            found = {"fps": FPS, "steps": STEPS, "guidance": GUIDANCE}
        else:
            found = {"fps": preset.fps, "steps": preset.steps, "guidance": float(preset.guidance)}
        noted = self._noted(inputs).get("fps")  # a film that goes on goes on at its own pace
        return found | ({"fps": noted} if isinstance(noted, (int, float)) and 0.1 <= noted <= 240 else {})

    def _model(self, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> Any:
        """What the files of a video transformer on this machine say; None for other priors."""
        from longtake.weights import resolve, shipped_priors

        name = settings["prior"] or self._recorded(inputs) or PRIOR
        if name in shipped_priors(self.package):
            return None
        try:
            folder = resolve(name, kind="video prior", priors_package=self.package, offline=True)
        except UserError:  # `weights` says so, or fetches it
            return None
        from longtake.video.dit.folder import model_at

        return model_at(folder, name, settings["length"])

    def _begins_from_a_picture(self, request: Request) -> bool:
        model = self._model(request.settings, request.inputs)
        return model is not None and model.begins_from_a_picture

    def _preset(self, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> Any:
        from longtake.video.dit.presets import PRESETS

        if settings["prior"] in PRESETS:
            return PRESETS[settings["prior"]]
        model = self._model(settings, inputs)
        return None if model is None else model.preset

    def settle(self, request: Request) -> dict[str, Any]:
        settings = dict(request.settings)
        for name, value in self.usual(settings, request.inputs).items():
            settings[name] = value if settings[name] is None else settings[name]
        if settings["frames"] is not None and settings["seconds"] is not None:
            raise UserError("frames and seconds both say how long: give one of them")
        if settings["redo"] is not None:
            if "extend" not in request.inputs:
                raise UserError("--redo needs --extend RUN: the run whose frames are to be made anew")
            start, stop = _redo(settings["redo"])
            if settings["seconds"] is not None or settings["frames"] not in (None, stop - start):
                raise UserError("--redo A:B says how many frames are made: leave --frames and --seconds out")
            settings["frames"] = stop - start
        elif settings["seconds"] is not None:
            settings["frames"] = max(1, round(settings["seconds"] * settings["fps"]))
        settings["seconds"] = None
        settings["frames"] = settings["frames"] or FRAMES
        if settings["frames"] > MOST_FRAMES:
            raise UserError(f"frames must be at most {MOST_FRAMES}, got {settings['frames']}")
        settings["prior"] = settings["prior"] or self._recorded(request.inputs) or PRIOR
        return settings

    def forecast(self, request: Request) -> Forecast:
        frames, steps = request.settings["frames"], request.settings["steps"]
        request.times.validate(frames)
        self.scope(request)
        if request.settings["free_noise"] is not None:
            _free_noise(request.settings["free_noise"])
        for suffix in request.outputs:
            _media().check_fps(request.settings["fps"], suffix)
        height, width = request.settings["height"], request.settings["width"]
        model = self._model(request.settings, request.inputs)
        if model is None:
            pixels = (height or 64) * (width or 64)
            seconds = SECONDS * frames * steps * max(1.0, pixels / PIXELS)
            return Forecast(seconds, MEMORY_GB, f"{frames} frames", steps)
        latents = model.preset.latents(frames)
        passes = 1 if request.settings["guidance"] == 1 else 2
        size = (height or model.preset.height or 512, width or model.preset.width or 512)
        flops = passes * steps * model.flops(latents, *size, seen=model.preset.length)
        return Forecast(flops / FLOPS, model.bytes / 1e9 + MEMORY_GB, f"{frames} frames", steps)

    def weights(self, request: Request) -> list[Path]:
        from longtake.video.convert import find_base, is_bare_unet

        folders = super().weights(request)
        if is_bare_unet(folders[0]):
            folders.append(find_base(request.settings["base"], request.settings["prior"]))
        return folders

    def input_path(self, name: str, path: Path) -> Path:
        if name != "extend":
            return path
        found: Path = _latents().latents_file(path)
        return found

    def input_mark(self, name: str, path: Path) -> str:
        if name != "extend":
            return str(super().input_mark(name, path))
        return str(_latents().latents_mark(path))

    @staticmethod
    def _noted(inputs: Mapping[str, Path]) -> dict[str, Any]:
        """What an earlier run notes; nothing without one."""
        if "extend" not in inputs:
            return {}
        note: dict[str, Any] = _latents().read_note(_latents().latents_file(inputs["extend"]))
        return note

    def _recorded(self, inputs: Mapping[str, Path]) -> str | None:
        """The prior that an earlier run notes, when it is on this machine. Raises UserError for any other."""
        from longtake.weights import shipped_priors

        prior = self._noted(inputs).get("prior")
        if prior is None:
            return None
        known = isinstance(prior, str) and len(prior) < 1000 and "\0" not in prior
        if known and (prior in shipped_priors(self.package) or _is_folder(prior)):
            return str(prior)
        raise UserError(
            f"{inputs['extend']} was made with the prior {str(prior)[:60]!r}, which is not on this machine: "
            "name one with --prior"
        )

    # ----------------------------------------------------------------------------------------------------- with a model

    def load(self, request: Request, ranks: Ranks) -> LongVideoPipeline:
        from longtake.video.pipeline import LongVideoPipeline

        pipe = LongVideoPipeline.from_prior(
            request.settings["prior"], dtype=ranks.choice.dtype, base=request.settings["base"],
            length=request.settings["length"],
        )  # fmt: skip
        pipe.to(ranks.device)
        return pipe

    def scope(self, request: Request, context: Context | None = None) -> Scope:
        """What a frame attends to."""
        from longtake.video.scope import Scope

        given = request.settings
        if context is None:
            model = self._model(given, request.inputs)
            total = given["frames"] if model is None else model.preset.latents(given["frames"])
        else:
            total = len(context.window())
        window = min(8, total) if given["window"] is None else given["window"]
        bias = 10.0 if given["gate"] == "soft" else 0.0
        return Scope(window=window, global_frames=given["global_frames"], gate=given["gate"], bias=bias)

    def _scope_for(self, pipe: Any, request: Request, context: Context | None) -> Any:
        """As asked; where nobody named one, a video transformer chooses by its training length, and AnimateDiff sees
        all frames or FreeNoise's windows."""
        if not self._scope_is_named(request) and (_is_transformer(pipe) or _is_animatediff(pipe)):
            return "auto" if _is_transformer(pipe) else None
        return self.scope(request, context)

    def _scope_is_named(self, request: Request) -> bool:
        named = ("window", "global_frames", "gate")
        return any(request.settings[knob.name] != knob.default for knob in KNOBS if knob.name in named)

    def context(self, request: Request, pipe: Any) -> Context | None:
        """The earlier run that the frames must join; None for a new film."""
        if "extend" not in request.inputs:
            return None
        latents, sound, note = _latents().read_take(request.inputs["extend"])
        given = request.settings
        redo = None if given["redo"] is None else _redo(given["redo"])
        before = _latents().last_prompt(note) if redo is None else None
        if sound is not None and not _is_transformer(pipe):
            raise UserError(f"{request.inputs['extend']} has sound, and {given['prior']} makes none")
        more: dict[str, Any] = {} if sound is None else {"sound": sound}
        if _is_transformer(pipe):
            more["film"] = note.get("film")
        more |= {"frames": given["frames"]} if redo is None else {"redo": redo}
        made: Context = pipe.context(latents, before=before, **more)
        return made

    def check(self, pipe: LongVideoPipeline, request: Request, ranks: Ranks) -> None:
        from longtake.video.pipeline import Context

        given, context = request.settings, self.context(request, pipe)
        transformer = _is_transformer(pipe)
        for name in ("first", "last"):
            if name in request.inputs and not transformer:
                raise UserError(f"--{name} is for video transformers: {given['prior']} is a UNet")
            if name in request.inputs:
                _media().read_picture(request.inputs[name])
                if context is not None and (context.start if name == "first" else context.stop < context.total):
                    raise UserError(f"--{name} is a frame of the earlier film here, and that is kept: leave it out")
        usual = {"positions": "auto", "length": None, "guidance_ranks": False}
        if not transformer and any(given[name] != value for name, value in usual.items()):
            raise UserError(
                f"--positions, --length and --guidance-ranks are for video transformers: {given['prior']} is a UNet"
            )
        if given["free_noise"] is not None and not _is_animatediff(pipe):
            raise UserError(f"--free-noise is for AnimateDiff (a UNetMotionModel): {given['prior']} is none")
        self._windows(pipe, request)
        if context is None:
            context = Context.new(pipe.latents(given["frames"]) if transformer else given["frames"])
        pipe.check_inputs(
            request.times,
            context,
            height=given["height"],
            width=given["width"],
            scope=self._scope_for(pipe, request, context),
            world=ranks.world,
        )

    def _windows(self, pipe: Any, request: Request) -> None:
        """FreeNoise's windows as a request asks, in a model that several requests may share."""
        if _is_animatediff(pipe):
            named = request.settings["free_noise"]
            pipe.free_noise(None if named is None else _free_noise(named))

    def warn(self, pipe: Any, request: Request) -> list[str]:
        given, found = request.settings, [] if _is_transformer(pipe) else super().warn(pipe, request)
        if _is_transformer(pipe):
            from longtake.video.dit.asking import cut_off

            found += cut_off(pipe.stock, request.times.prompts)
        if given["guidance"] <= 1 and given["negative"]:
            found.append(f"guidance {given['guidance']:g} is off: what the video should not show is not heeded")
        made = self._noted(request.inputs).get("prior")
        if made is not None and made != given["prior"] and not (_is_folder(made) and _same(made, given["prior"])):
            found.append(f"{request.inputs['extend']} is of the prior {made}, and goes on with {given['prior']}")
        if _is_transformer(pipe) and given["base"] is not None:
            found.append("--base is for bare UNets: it does nothing here")
        context = self.context(request, pipe) if _is_transformer(pipe) else None
        if context is not None and given["redo"] is None:
            asked = pipe.film(context.kept, self._noted(request.inputs).get("film")) + given["frames"]
            if context.film != asked:
                found.append(
                    f"a part of a latent frame cannot be made: the film has {context.film} frames, not {asked}"
                )
        if context is not None and given["redo"] is not None:
            first, last = (pipe.preset.film(one) for one in (context.start, context.stop))
            first, last = (0 if context.start == 0 else first), min(last, context.film or last)
            found.append(
                f"whole latent frames are made anew, frames {first} to {last - 1}; later ones may change a little, "
                "where the VAE remembers earlier frames"
            )
        return found

    def beside(self, pipe: Any, outputs: Sequence[Path]) -> list[Path]:
        if not _is_transformer(pipe) or not pipe.makes_sound:
            return []
        from longtake.video.dit.film_sound import wav_beside

        return list(dict.fromkeys(path for path in map(wav_beside, outputs) if path is not None))

    def most_ranks(self, pipe: LongVideoPipeline, request: Request) -> int:
        """Every rank needs a frame."""
        frames = int(request.settings["frames"])
        return int(pipe.latents(frames)) if _is_transformer(pipe) else frames

    def generate(
        self,
        pipe: LongVideoPipeline,
        request: Request,
        ranks: Ranks,
        journal: Journal | None,
        on_step: OnStep | None,
    ) -> VideoOutput:
        given, context = request.settings, self.context(request, pipe)
        self._windows(pipe, request)
        more: dict[str, Any] = {}
        if _is_transformer(pipe):
            more |= {"positions": given["positions"], "guidance_ranks": given["guidance_ranks"]}
            held: dict[int, Any] = {**_ends(request)}
            if 0 in held and context is None and pipe.begins_from_a_picture:
                more["image"] = _media().read_picture(held.pop(0))
            more["hold"] = held or None
        output = pipe(
            request.times,
            given["frames"],
            seed=request.seed,
            num_inference_steps=given["steps"],
            guidance_scale=given["guidance"],
            negative_prompt=given["negative"],
            fps=given["fps"],
            height=given["height"],
            width=given["width"],
            scope=self._scope_for(pipe, request, context),
            initial_noise=given["noise"],
            context=context,
            ranks=ranks,
            journal=journal,
            checkpoint_every=1 if journal is None else journal.every_steps,
            callback_on_step_end=step_callback(on_step, given["steps"]),
            output_type="stream",
            **more,
        )
        output.info["note"] = self._note(request, context, output.info["steps"])
        if _is_transformer(pipe):
            output.info["note"]["film"] = output.info["frames"]
        return output

    def _note(self, request: Request, context: Context | None, steps: int) -> dict[str, Any]:
        told = {name: request.settings[name] for name in ("prior", "fps")}
        last: str | None = request.times.starts[-1][1]
        if context is not None and context.stop < context.kept:  # the end of the film is of an earlier run
            last = _latents().last_prompt(_latents().read_note(_latents().latents_file(request.inputs["extend"])))
        return {**told, "prompt": request.prompt, "last_prompt": last, "seed": request.seed, "steps": steps}

    def keep(self, output: Output, request: Request, folder: Path) -> None:
        _save(folder / _latents().LATENTS, output)

    def kept(self, pipe: LongVideoPipeline, request: Request, folder: Path) -> VideoOutput | None:
        from longtake.distributed import current

        latents = _latents()
        if not (folder / latents.LATENTS).is_file():
            return None
        clean, sound, note = latents.read_take(folder / latents.LATENTS)
        frames = pipe.film(len(clean), note.get("film")) if _is_transformer(pipe) else len(clean)
        info = {"frames": frames, "steps": note.get("steps"), "completed": True, "note": note}
        more = {} if sound is None else {"sound": sound}
        return pipe.output(clean, request.settings["fps"], current(), info, "stream", **more)

    def python(self, request: Request) -> PythonCall:
        said = super().python(request)
        given = request.settings
        said.arguments = {"frames": given["frames"], **said.arguments}
        if any(given[knob.name] != knob.default for knob in KNOBS if knob.name in ("window", "global_frames", "gate")):
            scope = self.scope(request)
            words = f"window={scope.window}, global_frames={scope.global_frames}, gate={str(scope.gate)!r}"
            said.before.append("from longtake.video.scope import Scope")
            said.arguments["scope"] = _Name(f"Scope({words}, bias={scope.bias})")
        if given["free_noise"] is not None:
            said.before.append(f"pipe.free_noise({_free_noise(given['free_noise'])})")
        if "extend" in request.inputs:
            run = str(request.inputs["extend"])
            has_sound = _latents().read_sound(request.inputs["extend"]) is not None
            names = "last_prompt, read_run" + (", read_sound" if has_sound else "")
            said.before += [f"from longtake.video.latents import {names}", f"latents, note = read_run({run!r})"]
            if given["redo"] is None:
                asked = f"frames={given['frames']}, before=last_prompt(note)"
            else:
                asked = f"redo={_redo(given['redo'])}"
            asked += f", sound=read_sound({run!r})" if has_sound else ""
            asked += ", film=note['film']" if "film" in self._noted(request.inputs) else ""
            said.before.append(f"context = pipe.context(latents, {asked})")
            said.arguments |= {"context": _Name("context"), "fps": given["fps"]}
        held = _ends(request)
        if 0 in held and "extend" not in request.inputs and self._begins_from_a_picture(request):
            said.before.append("from longtake.media import read_picture")
            said.arguments["image"] = _Name(f"read_picture({str(held.pop(0))!r})")
        if held:
            said.arguments["hold"] = {place: str(path) for place, path in held.items()}
        return said


def _is_transformer(pipe: Any) -> bool:
    return hasattr(pipe, "record")


def _ends(request: Request) -> dict[int, Path]:
    """The pictures that a film begins and ends with, by frame."""
    return {place: request.inputs[name] for name, place in (("first", 0), ("last", -1)) if name in request.inputs}


def _same(one: str, two: str) -> bool:
    """Whether two names are one folder."""
    return Path(one).absolute() == Path(two).absolute()


def _is_animatediff(pipe: Any) -> bool:
    return type(getattr(pipe, "unet", None)).__name__ == "UNetMotionModel"


class _Name:
    """A name of a program, as it stands."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def _pair(text: str, wanted: str) -> tuple[int, int]:
    found = _PAIR.fullmatch(text)
    if found is None:
        raise UserError(f"{wanted}, got {text!r}")
    return int(found[1]), int(found[2])


def _free_noise(text: str) -> tuple[int, int]:
    return _pair(text, "--free-noise wants the frames of a window and how far apart windows lie, as 16:4")


def _redo(text: str) -> tuple[int, int]:
    start, stop = _pair(text, "--redo wants two frame numbers A:B")
    if not start < stop:
        raise UserError(f"--redo A:B makes the frames A to B-1, so A is below B; got {text!r}")
    return start, stop


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:
        return False


def _save(path: Path, output: Any) -> None:
    _latents().save_latents(path, output.latents, output.info["note"], getattr(output, "sound_latents", None))


def _media() -> Any:
    from longtake import media

    return media


def _latents() -> Any:
    from longtake.video import latents

    return latents


DOMAIN = VideoDomain()
