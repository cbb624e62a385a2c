"""Knob: a setting that is said once and is the same on every door.

    GUIDANCE = Knob(name="guidance", default=3.0, least=0, most=100, argument="guidance_scale",
                    help="classifier-free guidance, 1 switches it off", page="Guidance by the prompt")

From one Knob come the option of the command line (--guidance), the key of a batch job ("guidance"), the control of the
page, the keyword of the pipeline (guidance_scale), the check, the default and the part of a run's fingerprint.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from longtake.errors import UserError, in_brief

MOST_TEXT = 2_000  # characters of a text setting
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A setting.

    name: key of a job, and --name with dashes for underscores. default: may be None, which then stands for "as the
    model was trained" or what `help` says. kind: int, float, str, bool, or a tuple of the values to choose from.
    least, most: bounds, both included; above: a bound that is not. argument: keyword of the pipeline's call, None when
    the call does not take it. decides: whether the result depends on it (part of the fingerprint). page: label of its
    control, None when the page has none; page_most: end of its slider. metavar: placeholder in the help.
    """

    name: str
    default: Any
    help: str
    kind: type | tuple[Any, ...] = float
    least: float | None = None
    most: float | None = None
    above: float | None = None
    argument: str | None = None
    decides: bool = True
    page: str | None = None
    page_most: float | None = None
    metavar: str | None = None

    @property
    def option(self) -> str:
        """As the command line spells it."""
        return "--" + self.name.replace("_", "-")

    def read(self, value: Any) -> Any:
        """The value, checked. Raises UserError in the same words on every door."""
        if value is None and self.default is None:
            return None
        if isinstance(self.kind, tuple):
            if isinstance(value, bool) or value not in self.kind:
                choices = ", ".join(str(choice) for choice in self.kind)
                raise UserError(f"{self.name} must be one of {choices}, got {in_brief(value)}")
            return value
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 1e300 else math.inf
        if type(value) is not self.kind:
            raise UserError(f"{self.name} is {_KINDS[self.kind]}, got {in_brief(value)}")
        return self._bounded(value)

    def _bounded(self, value: Any) -> Any:
        if self.kind is str:
            return _text(self.name, value)
        if self.kind is bool:
            return value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{self.name} must be a finite number, got {value}")
        if self.least is not None and value < self.least:
            raise UserError(f"{self.name} must be at least {self.least:g}, got {in_brief(value)}")
        if self.above is not None and not value > self.above:
            raise UserError(f"{self.name} must be greater than {self.above:g}, got {in_brief(value)}")
        if self.most is not None and value > self.most:
            raise UserError(f"{self.name} must be at most {self.most:g}, got {in_brief(value)}")
        return value

    def add_to(self, parser: Any) -> None:
        """The option of a command line; what it reads has been through `read`."""
        said = self.help if self.default in (None, "", False) else f"{self.help} (default {self.default})"
        if self.kind is bool:
            parser.add_argument(self.option, action="store_true", default=self.default, help=said)
            return
        shown = self.metavar
        if shown is None and isinstance(self.kind, tuple):
            shown = "{" + ",".join(str(choice) for choice in self.kind) + "}"
        parser.add_argument(self.option, type=self._from_word, default=self.default, metavar=shown, help=said)

    def words(self, value: Any) -> list[str]:
        """The words of a command line that say this value; none for the default."""
        if value == self.default:
            return []
        if self.kind is bool:
            return [self.option]
        word = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
        return [f"{self.option}={word}"] if word.startswith("-") or word == "" else [self.option, word]

    def from_word(self, word: str) -> Any:
        """What a word of a command line says, checked. Raises UserError."""
        if self.kind is bool:
            if word not in ("true", "false"):
                raise UserError(f"{self.name} is true or false, got {in_brief(word)}")
            return word == "true"
        try:
            return self._from_word(word)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{self.name}: {error}") from None

    def _from_word(self, word: str) -> Any:
        kind = self.kind
        if isinstance(kind, tuple):
            found = [choice for choice in kind if str(choice) == word]
            value: Any = found[0] if found else word
        elif kind is str:
            value = word
        else:
            try:
                # a number of 5,000 digits takes Python a second and then an error of another kind
                value = kind(word) if len(word) <= 40 and word.isascii() and "_" not in word else None
            except ValueError:
                value = None
            if value is None:
                raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {in_brief(word)}")
        try:
            return self.read(value)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{self.name} ")) from None


def read_settings(knobs: Iterable[Knob], given: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """Every knob's value: the given one, checked, or its default. Raises UserError, also for a name that none has."""
    known = {knob.name: knob for knob in knobs}
    strange = sorted(str(name) for name in set(given) - set(known))
    if strange:
        raise UserError(f"{whose} knows no parameter {in_brief(strange[0])}; it knows {', '.join(sorted(known))}")
    return {name: knob.read(given.get(name, knob.default)) for name, knob in known.items()}


def _text(name: str, value: str) -> str:
    if len(value) > MOST_TEXT:
        raise UserError(f"{name} is at most {MOST_TEXT} characters of text, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} is no valid text: it holds half a surrogate pair") from None
    if "\0" in value:
        raise UserError(f"{name} is no valid text: it holds a zero byte")
    return value
