"""Speed of ProsodyFM with its vocoder on this machine (ACCEPTANCE D2): random weights, a chunk of 12 s; with --voice
the voice that ships, from text to sound: a paragraph whole, and when the first packet of its stream comes.

python tests/benchmarks/speech_prosody.py --threads 2
python tests/benchmarks/speech_prosody.py --threads 2 --voice --vocoder hifigan-universal hifigan-quick
"""

import argparse
import os
import time

import torch
from longtake.speech import vocoder
from longtake.speech.mel import FRAMES_A_SECOND, HOP, RATE
from longtake.speech.prosody_fm.model import Config, ProsodyFM
from longtake.speech.prosody_fm.train import SMALL

SYMBOLS = 170


def seconds(work, times=3):
    """Of wall clock and of this process's CPU, the best of some runs."""
    work()
    found = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(found)


TEXT = (
    "The ferry left a little after nine, and nobody on the pier waved. Was it the rain, or the early hour? The captain "
    "looked back once, shrugged, and turned the bow towards the open water. By noon the coast was a thin grey line."
)


def spoken(names, steps):
    """The shipped voice with each of the vocoders in turns: seconds of work for one of sound, until a first packet."""
    from longtake.speech.pipeline import LongSpeechPipeline

    pipes = {name: LongSpeechPipeline.from_prior(vocoder=vocoder.find(name)) for name in names}
    for turn in range(3):
        for name, pipe in pipes.items():
            wall, cpu = time.perf_counter(), time.process_time()
            said = pipe(TEXT, seed=turn, num_inference_steps=steps)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            length = len(said.samples) / said.rate
            begun = time.perf_counter()
            packets = pipe.stream(TEXT, seed=turn, steps=steps)
            first = next(iter(packets))
            until = time.perf_counter() - begun
            print(
                f"{name}, turn {turn + 1}: {length:.1f} s of sound, {wall / length:.3f} wall, {cpu / length:.3f} CPU; "
                f"first packet, {len(first.samples) / said.rate:.2f} s of sound, after {until:.2f} s"
            )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--voice", action="store_true", help="the voice that ships, from text to sound")
    parser.add_argument("--vocoder", nargs="+", default=[None], help="with --voice: names or files, in turns")
    parser.add_argument("--steps", type=int, default=4, help="of the flow, with --voice")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--length", type=float, default=12.0, help="seconds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.voice:
        print(f"{args.threads} threads, load {os.getloadavg()[0]:.1f}")
        spoken(args.vocoder, args.steps)
        return
    frames = round(args.length * FRAMES_A_SECOND)
    length = frames * HOP / RATE
    print(
        f"{args.threads} threads, {length:.1f} s of sound, load {os.getloadavg()[0]:.1f}; wall and CPU seconds a second"
    )
    generator = vocoder.load(vocoder.find())
    mel = torch.randn(1, 80, frames) - 5
    sounds = {}
    with torch.inference_mode():
        for name, net in (("plain", generator), ("quick", vocoder.load(vocoder.find()).quicken())):
            wall, cpu = sounds[name] = seconds(lambda net=net: net(mel))
            print(f"vocoder, {name}: {wall / length:.3f} {cpu / length:.3f}")
        for name, config in (("public size", Config()), ("small", Config(**{**SMALL, "speakers": 53}))):
            model = ProsodyFM(config).eval()
            ids, count = torch.randint(17, 100, (1, SYMBOLS)), torch.tensor([SYMBOLS])
            who = model.speaker(torch.tensor([0]))
            wide, valid = torch.randn(1, 80, frames), torch.tensor([frames])
            for steps in (4, 10):

                def chunk(model=model, steps=steps, ids=ids, count=count, who=who, wide=wide, valid=valid):
                    model.encoder(ids, count, who)
                    model.mels(wide, valid, wide, steps=steps, speaker=who)

                wall, cpu = seconds(chunk)
                total = (wall + sounds["quick"][0]) / length
                print(f"ProsodyFM, {name}, {steps} steps: {wall / length:.3f} {cpu / length:.3f}; in all {total:.3f}")


if __name__ == "__main__":
    main()
