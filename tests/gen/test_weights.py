import json
import os
import sys
from pathlib import Path

import pytest
import torch
from longtake.errors import UserError
from longtake.reading import read_json_object
from longtake.weights import file_hash, load_state, match_keys, resolve, shipped_priors
from safetensors.torch import save_file

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}


@pytest.fixture
def domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable package that ships the priors "runners" and "swimmers"; running it would fail."""
    for prior in ("runners", "swimmers"):
        (tmp_path / "site/some_domain/priors" / prior).mkdir(parents=True)
    (tmp_path / "site/some_domain/__init__.py").write_text("raise RuntimeError('looking for priors must not run me')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    return "some_domain"


def test_a_local_path_wins_over_a_shipped_prior(domain: str, tmp_path: Path) -> None:
    assert list(shipped_priors(domain)) == ["runners", "swimmers"]
    shipped = resolve("runners", kind="video prior", priors_package=domain)
    assert shipped == tmp_path / "site/some_domain/priors/runners"
    (tmp_path / "runners").mkdir()
    (tmp_path / "runners/config.json").write_text("{}")
    assert resolve("runners", kind="video prior", priors_package=domain) == Path("runners")
    assert domain not in sys.modules


def test_an_unknown_name_is_answered_with_the_known_ones(domain: str) -> None:
    with pytest.raises(UserError, match="unknown video prior 'walkers'; priors that ship: runners, swimmers"):
        resolve("walkers", kind="video prior", priors_package=domain)
    with pytest.raises(UserError, match="the video prior ./walkers does not exist"):
        resolve("./walkers", kind="video prior", priors_package=domain)
    with pytest.raises(UserError, match="weights.safetensors does not exist"):
        resolve("weights.safetensors", kind="video prior", priors_package=domain)
    with pytest.raises(UserError, match="no video prior was named"):
        resolve(" ", kind="video prior")


def test_the_hubs_cache_is_used_and_its_absence_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--model/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--owner--model/refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    assert resolve("owner/model", kind="video prior", offline=True) == snapshot
    with pytest.raises(UserError, match="hf download owner/other --local-dir FOLDER") as refusal:
        resolve("owner/other", kind="video prior", offline=True)
    assert "there is no folder owner/other here" in str(refusal.value), "it may be a folder's name, misspelt"
    assert str(tmp_path) in str(refusal.value) and "HF_HUB_OFFLINE" in str(refusal.value)


def test_safetensors_torch_files_folders_and_shards_load_alike(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "s.safetensors")
    torch.save({"state_dict": STATE}, tmp_path / "t.ckpt")
    (tmp_path / "folder").mkdir()
    save_file(STATE, tmp_path / "folder/diffusion_pytorch_model.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    save_file({"a.weight": STATE["a.weight"]}, shards / "1.safetensors")
    save_file({"b": STATE["b"]}, shards / "2.safetensors")
    (shards / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a.weight": "1.safetensors", "b": "2.safetensors"}}'
    )
    for path in ("s.safetensors", "t.ckpt", "folder", "shards"):
        loaded = load_state(tmp_path / path)
        assert set(loaded) == set(STATE)
        assert all(torch.equal(loaded[key], STATE[key]) for key in STATE)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('the pickle ran')",)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    torch.save({"a": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt is damaged or holds Python objects"):
        load_state(tmp_path / "evil.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damaged_weights_are_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"\xff" * 500}[damage])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        load_state(path)


def test_what_is_not_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_state(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="holds no weights"):
        load_state(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="unknown kind of weights file"):
        load_state(tmp_path / "notes.txt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no plain dictionary of tensors"):
        load_state(tmp_path / "list.pt")


def test_keys_are_matched_by_layout() -> None:
    model = ["up.weight", "down.weight"]
    assert match_keys(model, ["down.weight", "up.weight"]).layout == "native"
    public = {"model.up.weight": torch.ones(1), "model.down.weight": torch.zeros(1), "fps.bias": torch.ones(2)}
    layouts = {
        "reversed": lambda key: key[::-1],
        "public": lambda key: None if key.startswith("fps.") else key.removeprefix("model."),
    }
    match = match_keys(model, public, layouts)
    assert match.layout == "public"
    assert {key: value.item() for key, value in match.apply(public).items()} == {"up.weight": 1.0, "down.weight": 0.0}


def test_a_wrong_key_is_answered_with_the_closest_layout() -> None:
    layouts = {"prefixed": lambda key: key.removeprefix("model.")}
    with pytest.raises(UserError, match="closest is 'prefixed': 1 missing \\(down\\), 1 unexpected \\(model.side\\)"):
        match_keys(["up", "down"], ["model.up", "model.side"], layouts)
    with pytest.raises(UserError, match="nothing missing"):
        match_keys(["up"], ["up", "extra"])


def test_hashes_follow_content_and_names_only(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"x")
    (tmp_path / "two/.cache").write_bytes(b"hidden")
    assert file_hash(tmp_path / "one") == file_hash(tmp_path / "two")
    (tmp_path / "two/a").rename(tmp_path / "two/b")
    assert file_hash(tmp_path / "one") != file_hash(tmp_path / "two")
    before = file_hash(tmp_path / "one", (".safetensors",))
    (tmp_path / "one/card.md").write_text("a word more")
    assert file_hash(tmp_path / "one", (".safetensors",)) == before
    (tmp_path / "one/model.safetensors").write_bytes(b"1")
    assert file_hash(tmp_path / "one", (".safetensors",)) != before
    assert file_hash(tmp_path / "one/a") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


@pytest.mark.parametrize("name", ["/", "/proc", "a" * 300, "~nosuchuser/x", "a\0b", "x/..", "a" * 90 + "/" + "b" * 90])
def test_a_name_that_cannot_be_a_prior_is_one_line(name: str) -> None:
    with pytest.raises(UserError) as refusal:
        resolve(name, kind="video prior", offline=True)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_model_is_refused_and_hides_no_shipped_prior(domain: str, tmp_path: Path) -> None:
    (tmp_path / "runners").mkdir()
    assert "site" in str(resolve("runners", kind="video prior", priors_package=domain))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine is a folder without a model's files"):
        resolve("mine", kind="video prior", priors_package=domain)


@pytest.mark.parametrize(
    "listed",
    [5, None, [], {"a": 5}, {"a": ["x"]}, {"a": "1.safetensors", "b": 5}, {"a": "m.safetensors.index.json"}]
    + [{"a": "../other.safetensors"}, {"a": "/etc/passwd"}],
    ids=range(9),
)
def test_a_damaged_shard_index_is_named(tmp_path: Path, listed: object) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(UserError, match="index.json is damaged"):
        load_state(index)


@pytest.mark.parametrize("text", ["null", "[]", "5", '"x"', "true", "{", "[" * 50_000, "9" * 5000, ""], ids=range(9))
def test_a_configuration_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json (must hold a JSON object|is not valid JSON)"):
        read_json_object(tmp_path / "config.json")


def test_a_pipe_is_no_weights_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="w.safetensors is a pipe"):
        load_state(tmp_path / "w.safetensors")


def test_hashing_ends_where_no_model_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.weights.MOST_ENTRIES", 10)
    for number in range(11):
        (tmp_path / f"{number}.json").write_text("{}")
    with pytest.raises(UserError, match="holds more than 10 files"):
        file_hash(tmp_path)
