"""Request: what is asked for, said once. The command line, a line of a manifest and the page's form all become one.

    request = Request.read({"modality": "motion", "prompt": "0s: walks | 4s: waves", "seed": 1,
                            "parameters": {"steps": 20, "outputs": [".glb"]}})
    request.as_command("walk")          # longtake motion '0s: walks | 4s: waves' --seed 1 --out walk.glb

Only what stands here decides a result: it is hashed, sent to ranks, recorded in the journal and shown as JSON.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.domain import Domain, domain_of
from longtake.errors import UserError, in_brief
from longtake.knob import read_settings

if TYPE_CHECKING:
    from longtake.timeline import Timeline

MOST_SEED = 2**64 - 1
MOST_PROMPT = 200_000  # characters of a whole Timeline
KEYS = ("modality", "prompt", "timeline", "seed", "parameters", "inputs")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    modality: name of the domain. prompt: as it was written. timeline: what it says, None where the modality has none.
    settings: every knob of the domain. inputs: files to start from. outputs: suffixes of the files wanted; sides: names
    of the files wanted beside them.
    """

    modality: str
    prompt: str | None = None
    timeline: Timeline | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()

    @property
    def domain(self) -> Domain:
        """The domain that makes it."""
        return domain_of(self.modality)

    @property
    def times(self) -> Timeline:
        """The timeline, of a modality that has one."""
        assert self.timeline is not None
        return self.timeline

    # -------------------------------------------------------------------------------------------------------- reading

    @classmethod
    def read(cls, line: Mapping[str, Any], folder: Path = Path()) -> Request:
        """The request of a JSON object; relative input files are looked for in ``folder``. Raises UserError.

        Keys: modality, prompt or timeline, seed, parameters (the domain's settings, "outputs", and true for each side
        file wanted), inputs.
        """
        domain = domain_of(line.get("modality"))
        parameters = _object(line, "parameters")
        sides = {side.name: parameters.pop(side.name, side.usual) for side in domain.SIDES}
        for name, wanted in sides.items():
            if not isinstance(wanted, bool):
                raise UserError(f"{name} is true or false, got {wanted!r}")
        outputs = parameters.pop("outputs", list(domain.USUAL))
        kinds = [suffix for suffix in domain.file_kinds() if suffix]
        if (
            not isinstance(outputs, list)
            or not outputs
            or any(not isinstance(suffix, str) or suffix not in kinds for suffix in outputs)
        ):
            raise UserError(f"outputs is a list of {', '.join(kinds)}; given {in_brief(outputs)}")
        if len(set(outputs)) < len(outputs):
            raise UserError(f"outputs names {max(outputs, key=outputs.count)} twice")
        inputs = _object(line, "inputs")
        known = [item.name for item in domain.INPUTS]
        for name, path in inputs.items():
            if name not in known:
                raise UserError(f"{domain.NAME} knows no input {name!r}; it knows {', '.join(known) or 'none'}")
            if not isinstance(path, str) or not path or "\0" in path:
                raise UserError(f"the input {name} is the name of a file; given {in_brief(path)}")
        if "prompt" in line and "timeline" in line:
            raise UserError("a request has a prompt or a timeline, one of them")
        said = line.get("prompt", line.get("timeline"))
        if isinstance(said, str) and said.endswith((".json", ".csv")) and "prompt" in line and domain.TIMELINE:
            said = str(folder / said)
        return cls.make(
            domain,
            said if isinstance(said, str) or said is None or "prompt" in line else json.dumps(said),
            seed=line.get("seed", 0),
            settings=parameters,
            inputs={name: folder / path for name, path in inputs.items()},
            outputs=tuple(outputs),
            sides=tuple(name for name, wanted in sides.items() if wanted),
        )

    @classmethod
    def make(
        cls,
        domain: Domain,
        prompt: Any,
        *,
        seed: Any = 0,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Path] | None = None,
        outputs: tuple[str, ...] = (),
        sides: tuple[str, ...] = (),
    ) -> Request:
        """A request from its parts, each checked, with open settings decided. Raises UserError."""
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST_SEED:
            shown = in_brief(seed)
            raise UserError(f"a seed is a whole number, must not be negative, {MOST_SEED} at most; given {shown}")
        for item in domain.INPUTS:
            if item.positional and item.name not in (inputs or {}):
                raise UserError(f"{domain.NAME} needs the input {item.name}: {item.help}")
        read = read_settings(domain.KNOBS, settings, domain.NAME)
        timeline = None
        if domain.PROMPT is None:
            if prompt is not None:
                raise UserError(f"{domain.NAME} takes no prompt")
        else:
            if prompt is None and domain.PROMPT_INPUT in (inputs or {}):
                prompt = ""
            if not isinstance(prompt, str):
                raise UserError(f"a prompt is text; given {in_brief(prompt)}")
            if len(prompt) > MOST_PROMPT:
                raise UserError(f"a prompt is at most {MOST_PROMPT} characters, got {len(prompt)}")
            if domain.TIMELINE and (prompt or domain.PROMPT_INPUT not in (inputs or {})):
                from longtake.timeline import Timeline

                timeline = Timeline.parse(prompt, fps=domain.fps_of(read, inputs or {}))
        request = cls(domain.NAME, prompt, timeline, seed, read, dict(inputs or {}), outputs, sides)
        return replace(request, settings=domain.settle(request))

    # ------------------------------------------------------------------------------------------------------ what it is

    def plan(self, weights: str, inputs: Mapping[str, str], dtype: str = "float32") -> dict[str, Any]:
        """All that decides the result, and nothing else, as JSON values: a run may go on with other ranks, another
        name, other files. weights: hash of the weights; inputs: hash of each input file; dtype: of the arithmetic,
        told where it is not float32."""
        domain = self.domain
        plan: dict[str, Any] = {"modality": self.modality}
        if self.timeline is not None:
            plan["timeline"] = self.timeline.to_json()
        elif self.prompt is not None:
            plan["prompt"] = self.prompt
        plan["seed"] = self.seed
        plan |= {knob.name: self.settings[knob.name] for knob in domain.KNOBS if knob.decides}
        if inputs:
            plan["inputs"] = dict(inputs)
        plan["weights"] = weights
        if dtype != "float32":
            plan["dtype"] = dtype
        return plan

    def as_command(self, stem: str, sides: Mapping[str, str] | None = None) -> str:
        """The line to type in a terminal for the same result, files named by ``stem``."""
        first = [str(self.inputs[item.name]) for item in self.domain.INPUTS if item.positional]
        first += [] if self.prompt is None else [self.prompt]
        dashed = any(word.startswith("-") for word in first)
        usual = self.domain.usual(self.settings, self.inputs)
        told = {name: value for name, value in self.settings.items() if value != usual.get(name)}
        more = [word for knob in self.domain.KNOBS for word in knob.words(told.get(knob.name, knob.default))]
        more += ["--seed", str(self.seed)]
        inputs = {item.name: item for item in self.domain.INPUTS if not item.positional}
        named = [(inputs[name].option, str(path)) for name, path in self.inputs.items() if name in inputs]
        named += [("--out", stem + suffix) for suffix in self.outputs]
        named += [(self.domain.side(name).option, path) for name, path in (sides or {}).items()]
        for option, word in named:
            more += [f"{option}={word}"] if word.startswith("-") else [option, word]
        said = [*more, "--", *first] if dashed else [*first, *more]  # options stand before words that look like one
        return shlex.join(["longtake", self.modality, *said])

    def as_python(self, stem: str) -> str:
        """The same in Python."""
        domain = self.domain
        said = domain.python(self)
        prior = self.settings.get("prior")
        arguments = {**({"seed": self.seed} if said.pipe else {}), **said.arguments}
        lines = [f"from longtake import {domain.PIPELINE}", ""] if said.pipe else []
        if said.pipe:
            lines.append(f"pipe = {domain.PIPELINE}.from_prior({'' if prior is None else json.dumps(prior)})")
        lines += said.before
        lines.append(f"out = {said.call}(")
        lines += [f"    {str(self.inputs[item.name])!r}," for item in domain.INPUTS if item.positional]
        if self.prompt is not None and said.pipe:
            lines.append(f"    {self.prompt!r},")
        lines += [f"    {name}={value!r}," for name, value in arguments.items() if value is not None]
        lines += [")", *said.after]
        lines += [f"out.save({stem + suffix!r})" for suffix in self.outputs]
        return "\n".join(lines)


def names_of(request: Request, stem: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """(files of the outputs, file of each side file) that are named by a stem, folder and all."""
    sides = {name: stem.with_name(stem.name + request.domain.side(name).suffix) for name in request.sides}
    return tuple(stem.with_name(stem.name + suffix) for suffix in request.outputs), sides


def _object(line: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = line.get(key, {})
    if not isinstance(value, dict):
        raise UserError(f"{key} is a JSON object; given {in_brief(value)}")
    return dict(value)
