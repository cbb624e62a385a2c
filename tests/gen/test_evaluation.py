"""What evaluations share: a judge is trained once for what it is made of, a table is aligned, files are whole."""

import json
from dataclasses import dataclass

import pytest
import torch
from longtake.evaluation import Table, cached_judge, figure, told_command, write_table
from torch import nn


class Toy:
    def __init__(self, width):
        self.weights, self.facts = nn.Linear(width, 1), {"width": width}


def judge(folder, identity, trained, **more):
    def train(name):
        trained.append(name)
        return Toy(3)

    def build(report):
        return Toy(report["width"])

    return cached_judge(folder, "toy", {"settings": {}, **identity}, train, build, lambda _: {"right": 1.0}, **more)


def test_a_judge_is_trained_once_for_what_it_is_made_of(tmp_path):
    trained = []
    first, report = judge(tmp_path, {"data": "a"}, trained)
    again, same = judge(tmp_path, {"data": "a"}, trained)
    assert len(trained) == 1 and report == same and report["right"] == 1
    assert torch.equal(first.weights.weight, again.weights.weight)
    _, other = judge(tmp_path, {"data": "b"}, trained)
    assert len(set(trained)) == 2 and other["hash"] != report["hash"]
    judge(tmp_path, {"data": "a"}, trained, again=True)
    assert len(trained) == 3


@dataclass
class Row:
    label: str
    value: float | None


def test_a_table_is_aligned_and_its_files_hold_no_nan(tmp_path, monkeypatch):
    table = Table({"method": lambda row: row.label, "value": lambda row: figure(row.value, 2)})
    rows = [Row("one", 1.234), Row("another", None), Row("a third", float("nan"))]
    text = table.markdown(rows)
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[1] == "|---------|------:|"
    assert lines[2:] == ["| one     |  1.23 |", "| another |     - |", "| a third |     - |"]
    monkeypatch.setattr("sys.argv", ["longtake", "evaluate", "video", "--data", "a b"])
    assert told_command("video") == "longtake evaluate video --data 'a b'" and told_command("motion") is None
    write_table(tmp_path, "table", text, {"rows": table.json(rows), "seconds": float("inf")})
    saved = json.loads((tmp_path / "table.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert [row["value"] for row in saved["rows"]] == [1.234, None, None] and saved["seconds"] is None
    assert (tmp_path / "table.md").read_text() == text + "\n"
