"""``longtake motion`` on the shipped prior: paths to walk, feet that stand, a report of the seams."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from longtake.cli import main
from longtake.motion.control import smooth_path

SHORT = ["--frames", "60", "--steps", "2", "--guidance", "1"]


def test_a_path_is_walked_and_feet_and_seams_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "walk.npz", tmp_path / "seams.json"
    told = ["motion", "0s: a person walks | 2s: a person runs", "--frames", "80", "--steps", "2", "--guidance", "1"]
    code = main([*told, "--path", "0,0 0,2 2,4", "--lock-feet", "--report", str(report), "--out", str(out)])
    assert code == 0
    made = np.load(out)
    root = made["joints"][:, 0][:, [0, 2]]
    way = smooth_path(torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 4.0]])).numpy()
    length = np.linalg.norm(np.diff(way, axis=0), axis=1).sum()
    walked = np.linalg.norm(np.diff(root, axis=0), axis=1)
    assert abs(walked.sum() - length) < 0.02 * length
    walk, run = walked[:24], walked[56:]  # each at its own speed, evenly
    assert walk.max() < 1.05 * walk.min() and run.max() < 1.05 * run.min() and run.min() > 1.5 * walk.max()
    # in the world of the path itself, to the centimetre, and never off the way
    assert np.linalg.norm(root[0]) < 0.01 and np.linalg.norm(root[-1] - [2.0, 4.0]) < 0.01
    assert np.linalg.norm(root - [0.0, 2.0], axis=1).min() < 0.1
    assert max(np.linalg.norm(way - place, axis=1).min() for place in root) < 0.1
    (seam,) = json.loads(report.read_text())["seams"]
    assert seam["frame"] == 40 and (seam["before"], seam["after"]) == ("a person walks", "a person runs")
    said = capsys.readouterr().out
    assert "standing feet slide" in said and "-> 0.0000 m/s" in said


def test_units_of_bvh_differ_by_a_hundred(tmp_path: Path) -> None:
    roots = []
    for unit in ("m", "cm"):
        out = tmp_path / f"{unit}.bvh"
        assert main(["motion", "a person walks", *SHORT, "--unit", unit, "--out", str(out)]) == 0
        last = out.read_text().strip().splitlines()[-1].split()
        roots.append(np.array([float(number) for number in last[:3]]))
    assert np.allclose(100 * roots[0], roots[1], atol=0.02)


@pytest.mark.parametrize("path", ["0,0", "a,b c,d", "0,0 0,0 1,1", "1 2"])
def test_a_path_that_cannot_be_walked_is_one_line(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "walk.npz"
    assert main(["motion", "a person walks", *SHORT, "--path", path, "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("longtake: error:")
    assert list(tmp_path.iterdir()) == []
