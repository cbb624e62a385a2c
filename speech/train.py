"""``longtake train speech``: the priors of speech from aligned utterances, ProsodyFM, a quick vocoder, and VALL-E R.

Three stages, each of which leaves a folder: ``prosody`` (durations of the data, flow matching on crops), ``vocoder`` (a
smaller generator that learns from the universal one) and ``valle_r`` (a codec over mels and the two networks over its
codes). A batch is made on the device that trains; ``--prepare`` writes one file from which all of it can be trained
where there is neither data nor phonemiser.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError

if TYPE_CHECKING:
    from longtake.speech.data import Prepared, Utterance

STAGES = ("prosody", "vocoder", "valle_r")
SHARES = {"prosody": 0.5, "vocoder": 0.15, "valle_r": 0.35}  # of the minutes of ``whole``
BESIDE = 0.3  # minutes a command spends before its first step and after its last
PROSODY_RATE, VOCODER_RATE = 1.5e-3, 1e-4


def whole(prepared: Path, minutes: float, out: Path, vocoder: Path | None = None) -> list[list[str]]:
    """The commands, as words after ``longtake``, that train all stages in ``minutes``.

    They leave ``out``/<stage>/prior. vocoder: the folder of the universal generator (speech/priors/hifigan-universal),
    as it is named where training runs, from which the quick one learns; None leaves that stage out, and its minutes go
    to the others. Each command stands alone. Raises UserError for too few minutes.
    """
    stages = [stage for stage in ("prosody", "valle_r", "vocoder") if stage != "vocoder" or vocoder is not None]
    left = minutes - BESIDE * len(stages)
    if left <= 0:
        raise UserError(f"the speech priors need more than {BESIDE * len(stages):g} minutes")
    total = sum(SHARES[stage] for stage in stages)
    commands = []
    for stage in stages:
        share = f"{left * SHARES[stage] / total:.3f}"
        told = ["--stages", stage, "--minutes", share, "--out", str(out)]
        source = ["--vocoder", str(vocoder)] if stage == "vocoder" else []
        commands.append(["train", "speech", "--prepared", str(prepared), *told, *source])
    return commands


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train speech``."""
    from longtake.train import add_arguments as add_schedule
    from longtake.train import add_sources

    add_sources(parser, "folder with aligned_train.zip or human_train.zip, or VOICE/*.TextGrid beside sounds")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=["prosody", "valle_r"], help="default: prosody valle_r"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/train-speech"), help="checkpoints, record, the priors")
    parser.add_argument("--steps", type=int, help="of prosody (default 4,000; with --minutes as many as they give)")
    parser.add_argument("--batch", type=int, help="crops of a prosody step (default 8, on a GPU 160)")
    parser.add_argument("--frames", type=int, help="of a prosody crop (default 192, on a GPU 256)")
    parser.add_argument("--vocoder", type=Path, help="generator that the vocoder stage learns from (default: shipped)")
    parser.add_argument("--vocoder-steps", type=int, help="default 1,000; with --minutes as many as they give")
    add_schedule(parser)


def run(args: argparse.Namespace) -> int:
    """Train the stages asked for, resuming what is there, and export each to ``--out``/<stage>/prior."""
    from longtake.speech import data

    if args.prepare is not None and args.data is None:
        raise UserError("--prepare writes what --data holds: give --data, not --prepared")
    if args.prepare is not None:
        print(f"prepared data written to {data.save(args.prepare, _utterances(args.data))}")
        return 0
    stages = list(dict.fromkeys(args.stages))
    if args.prepared is not None:
        source = data.load(args.prepared)
    else:
        source = data.prepared(_utterances(args.data), pitch="prosody" in stages)
    share = sum(SHARES[stage] for stage in stages)
    for stage in stages:
        print(f"{stage} prior written to {_STAGES[stage](source, args, SHARES[stage] / share)}")
    return 0


def _utterances(folder: Path) -> list[Utterance]:
    """Of the corpora's zips in a folder, or of its sub-folders of sound with TextGrids."""
    from longtake.speech import data, textgrid

    return textgrid.load_folder(folder) if textgrid.has_textgrids(folder) else data.load_corpora(folder)


def _prosody(source: Prepared, args: argparse.Namespace, share: float) -> Path:
    from longtake.speech.data import Corpus
    from longtake.speech.prosody_fm.convert import save
    from longtake.speech.prosody_fm.train import calibrate, report, train_model
    from longtake.train import Settings, count, schedule, training_device

    device = training_device()
    large = device.type != "cpu"
    corpus = Corpus.of(source, "train", device)
    held_out = Corpus.of(source, "val", device, voices=corpus.voices)
    settings = Settings(
        count(args.steps, args, 4000), PROSODY_RATE if large else 1e-3, warmup=300, ema=0.998, **schedule(args, share)
    )
    out = args.out / "prosody"
    model = train_model(
        corpus,
        held_out,
        out,
        settings,
        batch=args.batch or (160 if large else 8),
        frames=args.frames or (256 if large else 192),
        seed=args.seed,
    )
    print(f"durations of prosody grow by {calibrate(model, corpus):.3f}")
    folder = save(model, out / "prior")
    report(model, held_out, out, seed=args.seed)
    return folder


def _vocoder(source: Prepared, args: argparse.Namespace, share: float) -> Path:
    from longtake.speech import vocoder
    from longtake.speech.data import Corpus
    from longtake.speech.distil import begin, report, train_vocoder
    from longtake.train import Settings, count, schedule, training_device

    device = training_device()
    large = device.type != "cpu"
    teacher = vocoder.load(vocoder.find(args.vocoder))
    corpus = Corpus.of(source, "train", device)
    held_out = Corpus.of(source, "val", device, voices=corpus.voices)
    settings = Settings(
        count(args.vocoder_steps, args, 1000), VOCODER_RATE, warmup=20, ema=0.99, **schedule(args, share)
    )
    out = args.out / "vocoder"
    student = begin(corpus, teacher, out, seed=args.seed)
    batch = 48 if large else 2
    model = train_vocoder(corpus, held_out, teacher, student, out, settings, batch=batch, seed=args.seed)
    folder = vocoder.save(model, out / "prior")
    report(model, teacher, held_out, out)
    return folder


def _valle_r(source: Prepared, args: argparse.Namespace, share: float) -> Path:
    from longtake.speech.valle_r.train import train
    from longtake.train import schedule

    def told(part: float) -> dict[str, Any]:
        return schedule(args, share * part)

    return train(source, args.out / "valle_r", told, seed=args.seed)


_STAGES = {"prosody": _prosody, "vocoder": _vocoder, "valle_r": _valle_r}
