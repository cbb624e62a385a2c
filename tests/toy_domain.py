"""A modality of its own, as somebody else would bring it: counts to a number and writes what it counted to a text."""

import time
from dataclasses import dataclass
from pathlib import Path

from longtake.domain import Domain, Example, Forecast, SideFile
from longtake.journal import piece_name
from longtake.knob import Knob
from longtake.outputs import FileKind, Output


@dataclass
class Count(Output):
    words: list[str]

    def save(self, path, *, overwrite=False):
        Path(path).write_text("\n".join(self.words) + "\n")
        return Path(path)

    preview = save


def whole(path):
    assert path.read_text().endswith("\n")


class Counter(Domain):
    NAME, ABOUT, PROMPT, TIMELINE, OUT, USUAL = "counter", "count aloud", "what to count", False, "count.txt", (".txt",)
    KNOBS = (
        Knob(name="to", default=3, kind=int, least=1, most=10_000, help="the last number", page="Count to"),
        Knob(name="slow", default=0.0, least=0, most=1, help="seconds a number", decides=False),
    )
    SIDES = (SideFile("proof", ".proof", "the same again", lambda out, path: out.save(path), whole),)
    EXAMPLES = (Example("Sheep", "sheep", parameters={"to": 5}),)

    def file_kinds(self):
        return {".txt": FileKind(lambda output, path: output.save(path), whole)}

    def forecast(self, request):
        return Forecast(0.01 + request.settings["to"], 0.1, f"{request.settings['to']} numbers", request.settings["to"])

    def load(self, request, ranks):
        return object()

    def generate(self, pipe, request, ranks, journal, on_step):
        found = journal and journal.latest("count")
        done = journal.read_json(found[1][0].name) if found else []
        while len(done) < request.settings["to"]:
            time.sleep(request.settings["slow"])
            done.append(f"{len(done) + 1} {request.prompt}")
            if journal and len(done) % journal.every_steps == 0:
                journal.write_json(piece_name("count", len(done), suffix=".json"), done)
            if on_step and on_step(len(done), request.settings["to"], None):
                break
        return Count(done, info={"steps": len(done), "completed": len(done) == request.settings["to"]})


DOMAIN = Counter()
