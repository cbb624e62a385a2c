"""The loop that every modality shares: any scheduler twice alike, callbacks of diffusers, stops, and step files."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from longtake.denoising import Denoising, Step, Strand, denoise, frame_noise
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.noise import noise
from longtake.pipeline import MOST_FRAMES, LongTakePipeline, frames_of, seed_of, steps_of
from safetensors.torch import load_file, save_file

STOCK = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "leading"},
    "EulerDiscreteScheduler": {"timestep_spacing": "leading"},
    "HeunDiscreteScheduler": {"timestep_spacing": "leading"},
    "KDPM2AncestralDiscreteScheduler": {"timestep_spacing": "leading"},
    "KDPM2DiscreteScheduler": {"timestep_spacing": "leading"},
    "LMSDiscreteScheduler": {"timestep_spacing": "leading"},
    "PNDMScheduler": {},
    "UniPCMultistepScheduler": {},
}
STEPS = 5


def made(scheduler: Any, journal: Journal | None = None, steps: int = STEPS, **how: Any) -> dict[str, torch.Tensor]:
    """Two strands of 6 and 3 frames from a net that only shrinks what it sees."""
    one = Strand(noise(3, 0, range(6), 0, (4,)), range(6))
    two = Strand(noise(3, 0, range(100, 103), 0, (2, 2)), range(100, 103))
    state = Denoising({"one": one, "two": two}, 3)
    predict = lambda samples, t, step: {name: 0.4 * sample for name, sample in samples.items()}  # noqa: E731
    final = denoise(scheduler, state, predict, steps=steps, ranks=Ranks.single("cpu"), journal=journal, **how)
    return {**final, "stopped": state.stopped, "step": state.step}  # type: ignore[dict-item]


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in ("one", "two"))


class Killed(Exception):
    pass


def killed_after(step: int, journal: Journal, scheduler: Any) -> None:
    def kill(now: Step) -> bool:
        if now.number == step + 1:
            raise Killed
        return False

    with pytest.raises(Killed):
        made(scheduler, journal, on_step=kill)


@pytest.mark.parametrize("name", STOCK)
def test_b3_the_first_noise_is_scaled_by_this_runs_steps_and_equal_calls_are_equal(name: str) -> None:
    scheduler = getattr(diffusers, name)(**STOCK[name])
    seen: list[torch.Tensor] = []

    def look(scheduler: Any) -> dict[str, torch.Tensor]:
        state = Denoising.of(noise(3, 0, range(6), 0, (4,)), range(6), 3)

        def predict(samples: dict[str, torch.Tensor], t: Any, step: int) -> dict[str, torch.Tensor]:
            if step == 0:
                seen.append(state.latents.clone())
            return {"latents": 0.4 * samples["latents"]}

        return denoise(scheduler, state, predict, steps=STEPS, ranks=Ranks.single("cpu"))

    first, second = look(scheduler), look(scheduler)
    fresh = getattr(diffusers, name)(**STOCK[name])
    fresh.set_timesteps(STEPS)
    assert torch.equal(seen[0], noise(3, 0, range(6), 0, (4,)) * float(fresh.init_noise_sigma))
    assert torch.equal(seen[0], seen[1]) and torch.equal(first["latents"], second["latents"])


@pytest.mark.parametrize("name", [name for name in STOCK if name not in ("PNDMScheduler",)])
def test_a_run_of_several_tensors_killed_after_any_step_ends_the_same(name: str, tmp_path: Path) -> None:
    scheduler = getattr(diffusers, name)(**STOCK[name])
    whole = made(copy.deepcopy(scheduler))
    for step in range(1, whole["step"]):
        with Journal(tmp_path / str(step)) as journal:
            journal.open({})
            killed_after(step, journal, copy.deepcopy(scheduler))
            assert journal.latest("step")[0] == step  # type: ignore[index]
            assert same(made(copy.deepcopy(scheduler), journal), whole), step


def damage(path: Path, how: str) -> None:
    tensors = load_file(path)
    meta = json.loads(bytes(tensors["meta"].tolist()))

    def told(**changes: Any) -> None:
        tensors["meta"] = torch.frombuffer(bytearray(json.dumps({**meta, **changes}).encode()), dtype=torch.uint8)

    strands = meta["strands"]
    if how == "no meta":
        del tensors["meta"]
    elif how == "meta of floats":
        tensors["meta"] = torch.zeros(3)
    elif how == "meta of no JSON":
        tensors["meta"] = torch.full((9,), 91, dtype=torch.uint8)
    elif how == "meta of deep JSON":
        tensors["meta"] = torch.full((90_000,), 91, dtype=torch.uint8)
    elif how == "meta null":
        tensors["meta"] = torch.frombuffer(bytearray(b"null"), dtype=torch.uint8)
    elif how == "another step":
        told(step=meta["step"] + 1)
    elif how == "of another number of steps":
        told(of=50)
    elif how == "strands null":
        told(strands=None)
    elif how == "other strands":
        told(strands={"three": strands["one"]})
    elif how == "another scheduler":
        told(strands={**strands, "one": {**strands["one"], "kind": "EulerDiscreteScheduler"}})
    elif how == "scheduler a list":
        told(strands={**strands, "one": {**strands["one"], "scheduler": [1]}})
    elif how == "start a text":
        told(strands={**strands, "one": {**strands["one"], "start": "0"}})
    elif how == "start elsewhere":
        told(strands={**strands, "one": {**strands["one"], "start": 2}})
    elif how == "count wrong":
        told(strands={**strands, "one": {**strands["one"], "count": 5}})
    elif how == "no latents":
        del tensors["one"]
    elif how == "a stranger":
        tensors["three"] = torch.zeros(3)
    elif how == "wrong width":
        tensors["one"] = torch.zeros(6, 5)
    elif how == "of integers":
        tensors["one"] = torch.zeros(6, 4, dtype=torch.int64)
    elif how == "NaN":
        tensors["one"][2, 1] = float("nan")
    elif how == "fewer frames":
        tensors["one"] = tensors["one"][:5]
    elif how == "a scalar":
        tensors["one"] = torch.zeros(())
    elif how == "a scheduler's tensor of no name":
        tensors["one/scheduler/x"] = torch.zeros(6, 4)
    else:
        raise AssertionError(how)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize(
    "how",
    "no meta|meta of floats|meta of no JSON|meta of deep JSON|meta null|another step|of another number of steps|"
    "strands null|other strands|another scheduler|scheduler a list|start a text|start elsewhere|count wrong|no latents|"
    "a stranger|wrong width|of integers|NaN|fewer frames|a scalar|a scheduler's tensor of no name".split("|"),
)
def test_a_foreign_or_damaged_step_file_is_one_line_and_is_not_believed(how: str, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.open({})
        killed_after(3, journal, diffusers.DDIMScheduler())
        damage(tmp_path / "step000003.safetensors", how)
        with pytest.raises(UserError, match=r"step000003.safetensors is no step of this run") as told:
            made(diffusers.DDIMScheduler(), journal)
    assert "\n" not in str(told.value) and "--overwrite" in str(told.value)


def test_a_step_beyond_the_run_and_a_head_of_another_shape_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.open({})
        killed_after(3, journal, diffusers.DDIMScheduler())
        data = (tmp_path / "step000003.safetensors").read_bytes()
        (tmp_path / "step999999.safetensors").write_bytes(data)
        with pytest.raises(UserError, match="the run has 5 steps"):
            made(diffusers.DDIMScheduler(), journal)
        for head in (b"[]", b'{"a":{}}', b'{"a":1}', b"[" * 50_000):
            (tmp_path / "step999999.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
            try:
                made(diffusers.DDIMScheduler(), journal)  # a file that is not whole is passed over
            except UserError as error:
                assert "\n" not in str(error)


def test_step_files_of_the_same_run_by_another_number_of_ranks_are_joined(tmp_path: Path) -> None:
    whole = made(diffusers.DPMSolverMultistepScheduler())
    with Journal(tmp_path) as journal:
        journal.open({})
        killed_after(3, journal, diffusers.DPMSolverMultistepScheduler())
        tensors = load_file(tmp_path / "step000003.safetensors")
        meta = json.loads(bytes(tensors.pop("meta").tolist()))
        (tmp_path / "step000003.safetensors").unlink()
        for rank, (a, b) in enumerate((((0, 2), (0, 1)), ((2, 3), (1, 1)), ((3, 6), (1, 3)))):
            cut = {"one": a, "two": b}
            part = {name: t[slice(*cut[name.partition("/")[0]])].clone() for name, t in tensors.items()}
            meta = copy.deepcopy(meta)
            for name, (start, stop) in cut.items():
                meta["strands"][name].update(start=start, count=stop - start)
            part["meta"] = torch.frombuffer(bytearray(json.dumps(meta).encode()), dtype=torch.uint8)
            save_file(part, tmp_path / f"step000003.rank{rank}of3.safetensors")
        first = tmp_path / "step000003.rank0of3.safetensors"
        twice = first.with_name("step000003.rank1of3.safetensors")
        kept, good = twice.read_bytes(), first.read_bytes()
        twice.write_bytes(good)
        with pytest.raises(UserError, match="end to end"):
            made(diffusers.DPMSolverMultistepScheduler(), journal)
        twice.write_bytes(kept)
        assert same(made(diffusers.DPMSolverMultistepScheduler(), journal), whole)


# ------------------------------------------------------------------------------------------------------ watching


class Pipe(LongTakePipeline):
    PRIORS = "longtake.motion"

    def __init__(self) -> None:
        super().__init__()
        self.register_to_config(kind="test")


def test_u6_u7_b10_a_callback_is_diffusers_own() -> None:
    pipe, seen = Pipe(), []

    def callback(pipeline: Any, index: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipeline is pipe and list(tensors) == ["latents"]
        seen.append((index, int(t)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    final = made(diffusers.DDIMScheduler(), on_step=pipe.watcher(callback, ["latents"]))
    assert [index for index, _ in seen] == list(range(STEPS)), "counted from 0"
    assert not final["one"].any() and final["two"].any(), "what is given back is what the run goes on with"

    def interrupts(pipeline: Any, index: int, t: Any, tensors: dict[str, Any]) -> None:
        assert list(tensors) == ["latents", "clean"]
        pipeline._interrupt = index == 1

    final = made(diffusers.DDIMScheduler(), on_step=pipe.watcher(interrupts))
    assert final["stopped"] and final["step"] == 2
    for answer, message in (
        ({"latents": torch.zeros(2, 2)}, r"shape \(6, 4\)"),
        ({"clean": torch.zeros(6, 4)}, "latents only, not 'clean'"),
        ({"latents": torch.full((6, 4), float("nan"))}, "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            made(diffusers.DDIMScheduler(), on_step=pipe.watcher(lambda *_, answer=answer: answer))
    with pytest.raises(UserError, match="prompt_embeds"):
        pipe.watcher(callback, ["prompt_embeds"])


def test_b9_a_stop_counts_from_the_first_act_of_a_call() -> None:
    pipe = Pipe()
    pipe.stop()
    pipe.begin()
    assert not pipe.interrupt
    pipe.stop()  # texts are encoded here
    final = made(diffusers.DDIMScheduler(), should_stop=lambda: pipe.interrupt)
    assert final["stopped"] and final["step"] == 1


def test_a_step_that_gives_nan_ends_the_run_and_is_not_kept(tmp_path: Path) -> None:
    def on_step(step: Step) -> bool:
        if step.number == 3:
            step.latents = step.latents * float("inf")
        return False

    with Journal(tmp_path) as journal:
        journal.open({})
        with pytest.raises(UserError, match="step 3 gave NaN"):
            made(diffusers.DDIMScheduler(), journal, on_step=on_step)
        assert journal.latest("step")[0] == 2  # type: ignore[index]


# ------------------------------------------------------------------------------------------------------ what is asked


def test_u6_a_seed_or_a_generator_and_never_both() -> None:
    assert seed_of(None) == 0 and seed_of(7) == 7 and seed_of(2**64 - 1) == 2**64 - 1
    generator = torch.Generator().manual_seed(11)
    assert seed_of(None, generator) == seed_of(None, [generator]) == seed_of(None, generator) == 11
    for seed, given in ((1, generator), (None, [generator, generator]), (None, 5), (-1, None), (2**64, None),
                        (True, None), (1.0, None), ("1", None)):  # fmt: skip
        with pytest.raises(UserError):
            seed_of(seed, given)  # type: ignore[arg-type]


def test_u6_one_length_by_any_of_its_names() -> None:
    assert frames_of(None) is None and frames_of(9) == frames_of(None, 9) == 9
    assert frames_of(None, None, 2.5, 20.0) == 50 and frames_of(None, None, 0.001, 20.0) == 1
    wrong = [(9, 9, None), (9, None, 1.0), (0, None, None), (True, None, None), (2.5, None, None), (None, -3, None),
             (None, None, 0.0), (None, None, float("inf")), (None, None, float("nan")), (None, None, 1e308),
             (MOST_FRAMES + 1, None, None)]  # fmt: skip
    for given in wrong:
        with pytest.raises(UserError):
            frames_of(*given, 20.0)  # type: ignore[arg-type]


def test_b12_steps_are_at_least_one_and_at_most_those_of_training() -> None:
    assert steps_of(1) == 1 and steps_of(1000, 1000) == 1000
    for steps, most in ((0, None), (-3, None), (True, None), (2.0, None), (1001, 1000), (99999999999999999999, 1000)):
        with pytest.raises(UserError, match="num_inference_steps"):
            steps_of(steps, most)


def test_u6_what_a_pipeline_does_not_do_is_refused_by_name() -> None:
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        with pytest.raises(UserError, match=name):
            getattr(Pipe(), name)()
    assert "from_pretrained" in vars(LongTakePipeline) and inspect.ismethod(Pipe.from_pretrained)


def test_a_step_with_an_eta_draws_its_frames_own_noise_and_one_without_draws_none() -> None:
    frames, found = range(40, 43), {}
    for name, positional, named in (("named", (), {"eta": 1.0}), ("positional", (1.0,), {}), ("none", (), {})):
        scheduler = diffusers.DDIMScheduler()
        scheduler.set_timesteps(STEPS)
        x, t = noise(3, 0, frames, 0, (4,)), scheduler.timesteps[0]
        before = torch.random.get_rng_state()
        with frame_noise(scheduler, 3, frames):
            found[name] = scheduler.step(0.4 * x, t, x, *positional, **named).prev_sample
            alone = x[1:2]
        with frame_noise(scheduler, 3, frames[1:2]):
            part = scheduler.step(0.4 * alone, t, alone, *positional, **named).prev_sample
        assert torch.equal(part, found[name][1:2]), "a frame draws the same alone"
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found["named"], found["positional"]) and not torch.equal(found["named"], found["none"])
