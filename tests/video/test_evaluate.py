"""The evaluator learns subjects and notices when they change; the command makes one table and goes on after a stop."""

import json
import shutil

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.timeline import Timeline
from longtake.video import baselines, entries, evaluate, evaluator, metrics, table
from longtake.video.data import load_clips
from longtake.video.entries import Entry, Method, Settings, Video
from longtake.weights import WEIGHT_SUFFIXES, file_hash
from video_clips import write_clips, write_kaykit
from video_models import noise

TOY = evaluator.EvaluatorSettings(steps=40, batch=6, widths=(8, 16, 16), embedding=16, precision="no")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("data") / "emoji_train.zip")


@pytest.fixture(scope="module")
def clips(data):
    return load_clips(data)


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluator")
    judge, report = evaluator.load_or_train(clips, folder, TOY)
    return judge, report, folder


def looped(clips, subject, frames):
    return table.reference(clips, subject, frames)


def test_it_knows_clips_it_was_not_trained_on(trained):
    _, report, _ = trained
    assert report["parts"] == [["dog", "horse", "running"]]
    assert report["unseen_clips"]["subjects"] == 1 and report["unseen_clips"]["accuracy"] == 1
    assert report["unseen_starts"]["subjects"] == 2 and report["unseen_starts"]["accuracy"] == 1


def test_what_it_is_judged_on_is_kept_out_of_training(clips):
    lone = next(clip for clip in clips if clip.subject == "dog")
    training = evaluator._starts(lone, True, False)
    judging = evaluator._starts(lone, True, True)
    assert judging and not set(training) & set(judging)
    windows, subjects = evaluator.real_windows(clips, held_out=True)
    assert set(subjects) == {"running"}
    held = next(clip for clip in clips if clip.held_out)
    assert (windows[0] == held.frames[held.window(0, 16)]).all()


def test_it_is_read_back_and_not_trained_twice(clips, trained, monkeypatch):
    judge, report, folder = trained
    assert not list(folder.glob("*.state"))
    monkeypatch.setattr(evaluator, "train", lambda *_: pytest.fail("trained again"))
    again, same = evaluator.load_or_train(clips, folder, TOY)
    windows, _ = evaluator.real_windows(clips, held_out=False)
    assert same == report
    for first, second in zip(judge.classify(windows), again.classify(windows), strict=True):
        np.testing.assert_array_equal(first, second)


def test_other_data_or_settings_are_another_evaluator(clips):
    changed = [clips[0].__class__(**{**vars(clips[0]), "frames": clips[0].frames ^ 1}), *clips[1:]]
    assert evaluator.data_hash(changed) != evaluator.data_hash(clips)


def test_one_subject_cannot_be_told_apart(clips, tmp_path):
    with pytest.raises(UserError, match="tells subjects apart"):
        evaluator.train([clip for clip in clips if clip.subject == "dog"], tmp_path, TOY)


def test_a_change_of_subject_is_not_kept(clips, trained):
    judge = trained[0]
    whole = metrics.judge(looped(clips, "dog", 64), judge, "dog")
    assert whole.kept and whole.start and whole.end and whole.windows_right == 1
    switched = np.concatenate([looped(clips, "dog", 32), looped(clips, "horse", 32)])
    seen = metrics.judge(switched, judge, "dog")
    assert seen.start and not seen.end and not seen.kept
    assert seen.windows_right == 0.5
    assert seen.cosine < whole.cosine - 0.1
    assert not metrics.judge(looped(clips, "dog", 64), judge, "horse").start
    with pytest.raises(ValueError, match="does not know"):
        metrics.judge(switched, judge, "whale")


def test_augmentation_is_a_function_of_its_generator_and_stays_in_range():
    windows = noise("windows", 3, 16, 3, 64, 64).clamp(-1, 1)
    first, again, other = (evaluator.augment(windows, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == windows.shape and first.abs().max() <= 1


def test_a_row_sets_films_beside_real_clips_of_their_subject(clips, trained):
    judge = table.Judge(trained[0], clips)
    rng = np.random.default_rng(0)
    real = looped(clips, "dog", 64)
    grainy = np.clip(real + rng.normal(0, 20, real.shape), 0, 255).astype(np.uint8)
    as_it_is, harmed = (judge.row("dog", 64, [("dog", Video(film, 32.0))]) for film in (real, grainy))
    assert as_it_is.kept == 1 and as_it_is.videos == 1
    assert as_it_is.flicker == pytest.approx(1, abs=0.1) and as_it_is.motion == pytest.approx(1, abs=0.1)
    assert harmed.flicker > 1.1 * as_it_is.flicker and harmed.motion > 1.5
    assert as_it_is.seconds == 50  # 32 s for 64 frames, told for 100
    nothing = judge.row("none yet", 64, [])
    assert nothing.videos == 0 and nothing.kept is None and nothing.border is None
    with pytest.raises(ValueError, match="not 240"):
        judge.row("dog", 240, [("dog", Video(real))])


def test_ratios_are_averaged_so_that_two_and_a_half_cancel():
    assert table.geometric_mean([2.0, 0.5, None]) == pytest.approx(1)
    assert table.geometric_mean([None]) is None


def test_more_subjects_contain_fewer():
    names = [f"subject {number}" for number in range(60)]
    few, many = evaluate.choose_subjects(names, 4), evaluate.choose_subjects(names, 20)
    assert many[:4] == few and len(set(many)) == 20


def test_long_lengths_get_fewer_prompts_and_every_method_the_same():
    methods = [Method.LONGTAKE, Method.JOINED]
    prompts = {name: f"a {name}" for name in ("dog", "horse", "running", "fish")}
    asked = evaluate.long_entries(prompts, methods, [240, 960], 4, seed=0)
    count = {(entry.method, entry.frames): 0 for entry in asked}
    for entry in asked:
        count[entry.method, entry.frames] += 1
    assert count == {(m, f): n for m in methods for f, n in ((240, 4), (960, 1))}
    assert [entry.frames for entry in asked[:4]] == [240, 240, 960, 960]  # the first subject's rows are complete first
    assert all(entry.prompt == f"a {entry.subject}" for entry in asked)
    assert not evaluate.long_entries({"dog": "a dog"}, methods, [240], 0, seed=0)


# ------------------------------------------------------------------------------------------------------ a tiny prior


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """An untrained prior of the shipped kind, as a folder."""
    from diffusers import DDIMScheduler, UNet3DConditionModel
    from longtake.text import SentenceEncoder
    from longtake.video.pipeline import LongVideoPipeline
    from longtake.video.prior import FrameAutoencoder
    from longtake.video.train import SCHEDULE, UNET

    torch.manual_seed(0)
    small = {**UNET, "block_out_channels": (32, 32), "attention_head_dim": 16, "in_channels": 4, "out_channels": 4}
    pipe = LongVideoPipeline(
        vae=FrameAutoencoder(4, (8, 8, 8), (0, 0, 0), (0, 0, 0)),
        text_encoder=SentenceEncoder(),
        unet=UNet3DConditionModel(**small),
        scheduler=DDIMScheduler(**SCHEDULE),
    )
    folder = tmp_path_factory.mktemp("prior")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(prior):
    from longtake.video.pipeline import LongVideoPipeline

    return LongVideoPipeline.from_prior(prior)


SETTINGS = Settings("toy", steps=1, guidance=2.0)


def test_the_stock_baseline_is_the_pipeline_with_full_attention(pipe):
    """Two programs, one function: ours with scope=None, and the stock model in the plain loop."""
    ours = pipe("a dog", frames=20, seed=3, num_inference_steps=2, guidance_scale=2.0, scope=None).latents
    start = baselines.first_noise(3, [0], 20, pipe.latent_shape(None, None))
    plain = baselines.sample(pipe, ["a dog"], start, steps=2, guidance=2.0)[0]
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=1e-5)


def test_films_made_at_once_equal_films_made_alone(pipe):
    start = baselines.first_noise(0, [0, 1], 16, pipe.latent_shape(None, None))
    both = baselines.sample(pipe, ["a dog", "a cat"], start, steps=2, guidance=2.0)
    alone = baselines.sample(pipe, ["a cat"], start[1:], steps=2, guidance=2.0)
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)


def test_joined_clips_are_clips_with_noise_of_their_own(pipe):
    film = baselines.joined(pipe, "a dog", 40, 0, steps=1, guidance=2.0)
    short = baselines.short_clips(pipe, ["a dog"], 0, steps=1, guidance=2.0)[0]
    assert film.shape == (40, 64, 64, 3) and film.dtype == np.uint8
    assert np.abs(film[:16].astype(int) - short).max() <= 1
    assert np.abs(film[16:32].astype(int) - short).max() > 1


def test_windowed_attention_is_stock_on_one_window_and_leaves_no_trace(pipe):
    latents, text = noise("latents", 1, 4, 24, 8, 8), noise("text", 1, 16, 384)

    def forward(frames):
        with torch.no_grad():
            return pipe.unet(latents[:, :, :frames], 500, encoder_hidden_states=text).sample

    before = forward(16), forward(24)
    with baselines.windowed_attention(pipe.unet):
        one, more = forward(16), forward(24)
    torch.testing.assert_close(one, before[0], atol=1e-5, rtol=1e-5)
    assert (more - before[1]).abs().max() > 1e-4
    assert torch.equal(forward(24), before[1])


def test_freenoise_starts_from_the_noise_of_sixteen_frames(pipe, monkeypatch):
    seen = {}

    def catch(pipe, prompts, start, **settings):
        seen["start"] = start
        return start

    monkeypatch.setattr(baselines, "sample", catch)
    baselines.freenoise(pipe, "a dog", 40, 0, steps=1, guidance=2.0)
    assert seen["start"].shape[1] == 40
    assert len({row.numpy().tobytes() for row in seen["start"][0]}) == 16


def test_videos_are_made_once_and_kept_without_loss(pipe, tmp_path, monkeypatch):
    asked = [Entry(method, "dog", "dog", 20, 0) for method in entries.LONG_METHODS]
    asked.append(Entry(Method.SHORT, "dog", "a hound", 16, 0))
    asked.append(Entry(Method.TIMELINE, "film", Timeline(((0, "a dog"), (9, "a cat"))).to_json(), 20, 0))
    made = entries.make_all(pipe, asked, SETTINGS, tmp_path)
    assert all(len(made[entry].frames) == entry.frames and made[entry].seconds > 0 for entry in asked)
    monkeypatch.setattr(baselines, "sample", lambda *_, **__: pytest.fail("made again"))
    again = entries.make_all(pipe, asked, SETTINGS, tmp_path)
    for entry in asked:
        np.testing.assert_array_equal(again[entry].frames, made[entry].frames)
        assert (again[entry].seconds, again[entry].memory) == (made[entry].seconds, made[entry].memory)


def test_a_timeline_is_made_as_the_pipeline_makes_it(pipe, tmp_path):
    timeline = Timeline(((0, "a dog"), (9, "a cat")))
    entry = Entry(Method.TIMELINE, "film", timeline.to_json(), 20, 3)
    made = entries.make_all(pipe, [entry], SETTINGS, tmp_path)[entry].frames
    plain = pipe(timeline, 20, seed=3, num_inference_steps=1, guidance_scale=2.0).frames
    np.testing.assert_array_equal(made, plain)
    other = pipe("a dog", 20, seed=3, num_inference_steps=1, guidance_scale=2.0).frames
    assert (made != other).any()


def test_whatever_decides_a_video_is_in_its_name():
    entry = Entry(Method.LONGTAKE, "dog", "dog", 20, 0)
    marks = {
        entries.entry_mark(entry, SETTINGS),
        entries.entry_mark(Entry(Method.LONGTAKE, "dog", "dog", 20, 1), SETTINGS),
        entries.entry_mark(Entry(Method.LONGTAKE, "dog", "a hound", 20, 0), SETTINGS),
        entries.entry_mark(Entry(Method.STOCK, "dog", "dog", 20, 0), SETTINGS),
        entries.entry_mark(entry, Settings("other weights", 1, 2.0)),
        entries.entry_mark(entry, Settings("toy", 2, 2.0)),
        entries.entry_mark(entry, Settings("toy", 1, 3.0)),
        entries.entry_mark(entry, Settings("toy", 1, 2.0, "bfloat16")),
    }
    assert len(marks) == 8


def test_a_model_card_is_no_part_of_a_prior_but_its_weights_are(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    first = file_hash(tmp_path, WEIGHT_SUFFIXES)
    (tmp_path / "README.md").write_text("card")
    assert file_hash(tmp_path, WEIGHT_SUFFIXES) == first
    (tmp_path / "unet" / "config.json").write_text("{ }")
    assert file_hash(tmp_path, WEIGHT_SUFFIXES) != first


def test_out_of_time_the_rest_is_left_for_a_rerun(pipe, tmp_path):
    asked = [Entry(Method.STOCK, name, name, 17, 0) for name in ("dog", "horse")]
    made = entries.make_all(pipe, asked, SETTINGS, tmp_path, minutes=1e-9)
    assert not made
    made = entries.make_all(pipe, asked[:1], SETTINGS, tmp_path)
    made = entries.make_all(pipe, asked, SETTINGS, tmp_path, minutes=1e-9)
    assert list(made) == asked[:1]


def test_one_command_makes_the_table(data, prior, tmp_path, run_cli):
    command = ["evaluate", "video", "--data", str(data), "--prior", str(prior), "--out", str(tmp_path / "out")]
    command += ["--frames", "32", "--subjects", "1", "--short", "2", "--steps", "1", "--evaluator-steps", "5"]
    command += ["--precision", "no", "--minutes", "0", "--save-videos", "--joined", "2"]
    command += ["--sheet", str(tmp_path / "subjects.png")]
    ran = run_cli(*command, env={"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    result = json.loads((tmp_path / "out" / "table.json").read_text())
    rows = {(row["label"], row["frames"]): row for row in result["rows"]}
    for label in (
        "real clips, looped",
        "longtake",
        "independent clips joined",
        "one stock run over all frames",
        "FreeNoise",
    ):
        row = rows[label, 32]
        assert row["videos"] == 1 and 0 <= row["kept"] <= 1 and row["drift"] >= 0
        # "running" is a square that jumps up and comes down the same way: it tells no direction of time
        assert row["arrow"] is None and "nan" not in ran.stdout
        assert (row["memory"] is None) == (label == "real clips, looped")
        assert f"| {label} " in ran.stdout
    assert rows["prior, training captions", 16]["videos"] == rows["prior, wordings never seen", 16]["videos"] == 2
    assert rows["real, as asked", 16]["arrow"] > 0.8 and rows["real, as asked", 16]["stays"] < 0.25
    assert rows["independent clips joined", 48]["videos"] == rows["real clips, looped", 48]["videos"] == 2
    assert "independent clips joined, 48 frames, change who is seen in " in ran.stdout
    assert "prior, training captions, " in ran.stdout and (tmp_path / "subjects.png").exists()
    assert "plan: 4 clips of 16 frames, 2 joined videos of 48 frames, 4 long videos; 10 are not" in ran.stdout
    assert "Evaluator on real held-out clips" in ran.stdout
    assert (tmp_path / "out" / "table.md").read_text().strip() in ran.stdout
    assert (tmp_path / "out" / "sheet-32.png").exists() and len(list((tmp_path / "out").glob("*.mp4"))) == 4


def test_a_kaykit_prior_is_judged_by_pairs_it_never_saw_and_by_timelines(prior, tmp_path, monkeypatch, capsys):
    from longtake.cli import main

    write_kaykit(tmp_path)
    monkeypatch.setattr(evaluate, "BASE_FRAMES", 32)
    named = tmp_path / "prior"
    shutil.copytree(prior, named)
    (named / "prior.json").write_text('{"corpus": "kaykit"}')
    (named / "knows.json").write_text('["a knight does a sweep", "a mage does a circle", "a knight does a jump"]')
    command = ["evaluate", "video", "--data", str(tmp_path), "--prior", str(named), "--out", str(tmp_path / "out")]
    command += ["--quick", "--steps", "1", "--evaluator-steps", "5", "--precision", "no", "--methods", "longtake"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "plan: 4 clips of 16 frames, 1 Timelines, 2 joined videos of 48 frames, 1 long videos; 8 are not" in told
    result = json.loads((tmp_path / "out" / "table.json").read_text())
    rows = {(row["label"], row["frames"]): row for row in result["rows"]}
    assert rows["prior, training captions", 16]["videos"] == 3 and rows["prior, pairs never seen", 16]["videos"] == 1
    assert rows["longtake", 32]["each"][0]["subject"] in ("knight sweep", "mage circle"), "long films are of loops"
    real, made = result["films"]
    assert (real["label"], real["parts"], real["in_time"], real["identity"]) == ("real films", 2, 1, 1)
    assert made["label"] == "longtake" and made["turns"] == 1 and "| Timelines " in told
    assert result["evaluator"]["parts"] == [["knight", "mage"], ["circle", "jump", "sweep"]]
    assert {"character_right", "action_right"} <= set(result["evaluator"]["unseen_clips"])


def test_a_judge_of_two_parts_names_each_and_can_name_a_pair_that_it_never_saw(tmp_path):
    clips = load_clips(write_kaykit(tmp_path), "kaykit")
    settings = evaluator.EvaluatorSettings(steps=150, batch=8, widths=(8, 16, 16), embedding=16, precision="no")
    judge, report = evaluator.load_or_train(clips, tmp_path, settings)
    seen = [clip for clip in clips if not clip.held_out]
    windows = np.stack([clip.frames[clip.window(2, 16)] for clip in seen])
    assert judge.accuracy(windows, [clip.subject for clip in seen]) > 0.9
    guess, _ = judge.classify(windows)
    assert [" ".join(names) for names in judge.named(windows)] == [judge.subjects[index] for index in guess]
    assert "mage jump" in judge.subjects and "mage jump" not in {clip.subject for clip in seen}
    assert report["unseen_clips"]["subjects"] == 1


def test_a_window_of_an_action_that_ends_lies_in_it(tmp_path):
    clips = load_clips(write_kaykit(tmp_path), "kaykit")
    loop, once = (next(clip for clip in clips if clip.action == action) for action in ("circle", "jump"))
    assert evaluator._starts(loop, False, False) == list(range(20))
    still = once.__class__(**{**vars(once), "wraps": False})
    last = evaluator._starts(still, False, False)[-1]
    assert last + 16 <= len(once.frames) + evaluator.LATE


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--frames", "16"], "more than 16 frames"),
        (["--subjects", "-1"], "--subjects must be 0 or more"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--evaluator-steps", "0"], "--evaluator-steps must be at least 1"),
        (["--films", "-1"], "--films must be 0 or more"),
        (["--sheet", "subjects.jpg"], "subjects.jpg"),
        (["--data", "nowhere"], "no training data at nowhere"),
        (["--prior", "no-such-prior"], "unknown video prior 'no-such-prior'"),
    ],
)
def test_bad_input_is_one_clear_line(wrong, message, data, tmp_path, monkeypatch, capsys):
    from longtake.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "video", "--data", str(data), *wrong]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_prior_that_names_none_of_the_clips_is_refused_in_one_line(tmp_path, capsys):
    from longtake.cli import main

    write_kaykit(tmp_path)
    assert main(["evaluate", "video", "--data", str(tmp_path), "--corpus", "kaykit", "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err.strip()
    assert "names none of the 5 captions of these KayKit clips" in error and len(error.splitlines()) == 1


def test_several_ranks_are_refused(data, monkeypatch, capsys):
    from longtake.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["evaluate", "video", "--data", str(data)]) == 2
    assert "runs in one process" in capsys.readouterr().err
