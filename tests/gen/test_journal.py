import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from longtake.errors import UserError
from longtake.journal import Journal, Policy, atomic_path, fingerprint, partial_path, piece_name, write_tensors

PLAN = {"prompt": "a person walks", "seed": 7, "steps": 12}


def test_a_rerun_of_the_same_plan_continues_and_another_plan_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "run") as journal:
        assert journal.open(PLAN) is False
        journal.write_tensors(piece_name("step", 3), {"x": torch.ones(2)})
    with Journal(tmp_path / "run") as journal:
        assert journal.open(dict(reversed(PLAN.items()))) is True
        step, files = journal.latest("step") or (None, [])
        assert step == 3
        assert torch.equal(journal.read_tensors(files[0].name)["x"], torch.ones(2))
    with pytest.raises(UserError, match="holds another run \\(seed was 7, is 8\\)"):
        Journal(tmp_path / "run").open({**PLAN, "seed": 8})
    with pytest.raises(UserError, match="already holds a run"):
        Journal(tmp_path / "run").open(PLAN, Policy.NEW)


def test_overwrite_removes_the_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.open(PLAN)
        journal.write_tensors(piece_name("step", 3), {"x": torch.ones(2)})
        journal.record({"step": 3})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step000004.safetensors.partial").write_bytes(b"half")
    with Journal(tmp_path) as journal:
        assert journal.open({**PLAN, "seed": 8}, Policy.OVERWRITE) is False
        assert journal.latest("step") is None and journal.events() == []
        assert journal.plan == {**PLAN, "seed": 8}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.json", "journal.lock", "notes.txt"]


def test_a_step_counts_only_when_the_piece_of_every_rank_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step, world, ranks in ((1, 3, (0, 1, 2)), (2, 2, (0, 1)), (3, 3, (0, 2)), (4, 1, (0,)), (5, 2, (1,))):
        for rank in ranks:
            journal.write_tensors(piece_name("step", step, rank, world), {"x": torch.tensor([rank])})
    journal.write_tensors(piece_name("other", 9), {"x": torch.zeros(1)})
    complete = journal.complete_sets("step")
    assert {step: len(files) for step, files in complete.items()} == {1: 3, 2: 2, 4: 1}
    assert [int(journal.read_tensors(file.name)["x"]) for file in complete[1]] == [0, 1, 2]
    journal.prune("step", keep=2)
    assert sorted(journal.complete_sets("step")) == [2, 4]
    assert (tmp_path / piece_name("step", 3, 0, 3)).exists()


def test_a_damaged_piece_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in (1, 2, 3):
        journal.write_tensors(piece_name("step", step), {"x": torch.arange(100.0)})
    damaged = tmp_path / piece_name("step", 3)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (tmp_path / piece_name("step", 2)).write_bytes(b"")
    assert list(journal.complete_sets("step")) == [1]
    with pytest.raises(UserError, match="step000003.safetensors is damaged"):
        journal.read_tensors(damaged.name)


def test_a_torn_event_is_skipped_and_the_next_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record({"step": 1})
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"step": 2, "los')
    journal.record({"step": 3})
    assert journal.events() == [{"step": 1}, {"step": 3}]


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with Journal(tmp_path) as first:
        first.open(PLAN)
        with pytest.raises(UserError, match="another process is at work"):
            Journal(tmp_path).open(PLAN)
    Journal(tmp_path).open(PLAN)


def test_the_other_ranks_attach_to_the_same_plan_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        Journal(tmp_path).attach(PLAN)
    with Journal(tmp_path) as journal:
        journal.open(PLAN)
        Journal(tmp_path).attach(PLAN)
        with pytest.raises(UserError, match="steps was 12, is 13"):
            Journal(tmp_path).attach({**PLAN, "steps": 13})


def test_a_head_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text("{")
    with pytest.raises(UserError, match="journal.json is damaged"):
        Journal(tmp_path).open(PLAN)
    (tmp_path / "journal.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="not a journal of format 1"):
        Journal(tmp_path).open(PLAN)


def test_a_plan_of_other_things_than_json_values_is_refused() -> None:
    with pytest.raises(ValueError):
        fingerprint({"guidance": float("nan")})
    with pytest.raises(TypeError):
        fingerprint({"device": object()})


def test_views_and_shared_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    journal = Journal(tmp_path)
    journal.write_tensors("t.safetensors", {"base": base, "column": base[:, 1], "transposed": base.T})
    read = journal.read_tensors("t.safetensors")
    assert torch.equal(read["base"], base)
    assert torch.equal(read["column"], base[:, 1])
    assert torch.equal(read["transposed"], base.T)


def test_a_failed_write_leaves_the_old_file_and_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.ones(3)})
    script = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from longtake.journal import write_tensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "write_tensors(Path(sys.argv[1]), {'x': torch.zeros(10_000)})\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert result.returncode == 1 and "UserError: cannot write" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]
    assert torch.equal(Journal(tmp_path).read_tensors("t.safetensors")["x"], torch.ones(3))


_KILL_TEST = """
import os, random, signal, sys, time, torch
from longtake.journal import Journal, piece_name
torch.set_num_threads(1)
folder, kills, plan = sys.argv[1], int(sys.argv[2]), {"seed": 1}

def worker():
    journal = Journal(folder)
    journal.open(plan)
    latest = journal.latest("step")
    step = latest[0] if latest else 0
    while True:
        step += 1
        for rank in range(2):
            journal.write_tensors(piece_name("step", step, rank, 2), {"x": torch.full((5000,), float(step))})
        journal.write_json("state.json", [step] * 100_000)  # the same name each time, and large
        journal.record({"step": step})
        journal.prune("step")

random.seed(0)
reached = 0
for kill in range(kills):
    child = os.fork()
    if child == 0:
        worker()
    time.sleep(random.uniform(0.0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    journal = Journal(folder)
    latest = journal.latest("step")
    step = latest[0] if latest else 0
    assert step >= reached, f"step {reached} was lost, only {step} is there"
    recorded = [event["step"] for event in journal.events()]
    assert recorded == sorted(recorded) and (not recorded or recorded[-1] <= step), (recorded[-3:], step)
    for file in latest[1] if latest else []:
        x = journal.read_tensors(file.name)["x"]
        assert x.shape == (5000,) and bool((x == step).all()), file
    if recorded:
        state = journal.read_json("state.json")
        assert len(state) == 100_000 and len(set(state)) == 1 and recorded[-1] <= state[0] <= step
    reached = step
journal.open(plan)
left = [name for name in os.listdir(folder) if name.endswith(".partial")]
assert not left, left
print(reached)
"""


def test_a_kill_at_any_instant_loses_nothing_that_was_complete(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _KILL_TEST, str(tmp_path / "run"), "25"], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 3, "the worker hardly got anything done between the kills"


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", "null", "[" * 50_000, '{"format": 1, "fingerprint": "x", "plan": null}', "9" * 5000]
    + ['{"format": 1, "fingerprint": "x", "plan": []}', '{"format": 1, "fingerprint": 5, "plan": {}}'],
    ids=range(8),
)
def test_a_damaged_journal_is_refused_and_can_be_overwritten(tmp_path: Path, damage: str) -> None:
    (tmp_path / "journal.json").write_text(damage)
    with pytest.raises(UserError, match="journal.json is"):
        Journal(tmp_path).open(PLAN)
    with Journal(tmp_path) as journal:
        assert journal.open(PLAN, Policy.OVERWRITE) is False
        assert journal.plan == PLAN


@pytest.mark.parametrize("header", ["[]", '{"a": {}}', '{"a": 5}', '{"a": {"data_offsets": []}}', "[" * 50_000])
def test_a_piece_with_a_strange_header_does_not_count(tmp_path: Path, header: str) -> None:
    data = len(header).to_bytes(8, "little") + header.encode()
    (tmp_path / piece_name("step", 3)).write_bytes(data)
    (tmp_path / "step000004.rank0of99999999999.safetensors").write_bytes(data)
    assert Journal(tmp_path).latest("step") is None


def test_only_our_own_temporaries_are_removed(tmp_path: Path) -> None:
    kept = ["thesis.partial", "my.partial.notes.txt"]
    gone = [".thesis.bin.longtake.partial", "step000002.safetensors.partial", "journal.json.partial"]
    for name in kept + gone:
        (tmp_path / name).write_text("x")
    with Journal(tmp_path) as journal:
        journal.open(PLAN)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "journal.json", "journal.lock"}


def test_what_stands_where_a_run_should_go_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text("a file")
    (tmp_path / "b.run").symlink_to("nowhere")
    (tmp_path / "c.run").symlink_to("c.run")
    for name in ("a.run", "b.run", "c.run"):
        with pytest.raises(UserError, match=f"cannot write .*{name}: "):
            Journal(tmp_path / name).open(PLAN)


def test_a_pipe_or_a_link_at_the_temporary_name_is_replaced(tmp_path: Path) -> None:
    path, mine = tmp_path / "t.json", tmp_path / "mine.txt"
    mine.write_text("mine")
    os.mkfifo(partial_path(path))
    for _ in range(2):
        with atomic_path(path) as partial:
            partial.write_text("new")
        partial_path(path).symlink_to(mine)
    assert (path.read_text(), mine.read_text()) == ("new", "mine")
    long = tmp_path / ("n" * 255)
    with atomic_path(long) as partial:
        partial.write_text("new")
    assert long.read_text() == "new"
