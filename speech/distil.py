"""A quicker vocoder: a HiFi-GAN generator with fewer channels inside its residual pairs, that learns to sound alike.

Between the two convolutions of a pair some channels say little that the others do not. They are found by block-wise
optimal brain surgery (Hassibi et al., 1993; for the channels of a layer, Kurtic et al., arXiv 2203.07259): the error of
the pair's output, when a channel goes and all weights after it are solved anew by least squares, is known in closed
form. All pairs share one budget of products: the next channel goes where it costs least. The second convolutions are
then solved once more on what the smaller generator hears, so that each mends what those before it lost (He et al.,
arXiv 1707.06168). Training brings the rest: on mels alone, the generator's own sound and what its stages say are what
the student's are compared with. No discriminator is needed, for the phases are the teacher's.
Shape legend: B crops, T frames, N = T * 256 samples, C channels of a stage, H between a pair's two convolutions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from longtake.journal import write_tensors
from longtake.speech import mel as front
from longtake.speech.vocoder import SLOPE, Config, Vocoder, from_state, load

if TYPE_CHECKING:
    from longtake.speech.data import Corpus
    from longtake.train import Settings

SHARE = 0.4  # of the products inside residual pairs that stay
GRAIN = 8  # channels stay in groups that the arithmetic of a CPU likes
FRAMES = 48  # of a crop
EDGE = 2  # frames at both ends of a crop that are not compared
SEEN = 32  # crops that channels are chosen by
RIDGE = 1e-4  # of the mean power of a channel
LOUDER = (-2.0, 0.7)  # half of the crops are told so much louder, log
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))  # window and step, samples


# ------------------------------------------------------------------------------------------------ choosing channels


@dataclass(frozen=True)
class Cut:
    """In which order a pair's channels go. order: the first to go first. loss: (H + 1,) the squared error of the pair's
    output, as a share of its stage's power, when n are gone. cost: products a frame for each channel."""

    order: list[int]
    loss: list[float]
    cost: float


def _rows(z: torch.Tensor, kernel: int) -> torch.Tensor:
    """What a convolution sees of z (B, C, n): (samples, C * kernel + 1) float64, the last column ones."""
    wide = F.pad(z, (kernel // 2, kernel // 2)).unfold(2, kernel, 1)  # (B, C, n, kernel)
    flat = wide.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1)


def _products(z: torch.Tensor, kernel: int, target: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Sums over all samples of row by row, and of target (B, C', n) by row; float64."""
    size = z.shape[1] * kernel + 1
    gram, cross = torch.zeros(size, size, dtype=torch.float64), None
    if target is not None:
        cross = torch.zeros(target.shape[1], size, dtype=torch.float64)
    for row in range(len(z)):
        seen = _rows(z[row : row + 1], kernel)
        gram += (seen.T @ seen).double()
        if target is not None and cross is not None:
            cross += (target[row] @ seen).double()
    power = gram.diagonal()[:-1].mean().clamp_min(1e-12)
    gram.diagonal()[:-1].add_(RIDGE * power)
    return (gram,) if cross is None else (gram, cross)


def surgery(gram: torch.Tensor, weight: torch.Tensor, kernel: int) -> tuple[list[int], list[float]]:
    """The order in which the channels of ``weight`` (C', C * kernel) go, and the squared error summed over all samples
    after each. gram: (C * kernel + 1, C * kernel + 1) of what it sees, ones last."""
    count = (len(gram) - 1) // kernel
    most = max(1, count // 64)  # of wide layers a few go together
    inverse = torch.linalg.inv(gram)
    weights = torch.cat([weight.double(), torch.zeros(len(weight), 1, dtype=torch.float64)], 1)
    here, order, errors = torch.arange(count), [], [0.0]
    while len(here):
        place = torch.arange(len(here) * kernel).view(-1, kernel)
        told = weights[:, place].permute(1, 0, 2)  # (h, C', kernel)
        blocks = inverse[place[:, :, None], place[:, None, :]]
        lost = ((told @ torch.linalg.inv(blocks)) * told).sum((1, 2))
        least = lost.argsort()[:most]
        chosen = place[least].flatten()
        between = torch.linalg.inv(inverse[chosen][:, chosen])
        error = float(((weights[:, chosen] @ between) * weights[:, chosen]).sum())
        errors += [errors[-1] + error * (n + 1) / len(least) for n in range(len(least))]
        order += here[least].tolist()
        stay = torch.ones(len(inverse), dtype=torch.bool)
        stay[chosen] = False
        step = between @ inverse[chosen][:, stay]  # (gone, rest)
        weights = weights[:, stay] - weights[:, chosen] @ step
        inverse = inverse[stay][:, stay].addmm_(inverse[stay][:, chosen], step, alpha=-1)
        here = here[[n for n in range(len(here)) if n not in set(least.tolist())]]
    return order, errors


def share_out(cuts: Sequence[Cut], share: float, grain: int = GRAIN) -> list[int]:
    """How many channels each pair keeps, so that about ``share`` of all products stay at the least loss in all."""
    sizes = [len(cut.order) for cut in cuts]
    whole = sum(size * cut.cost for size, cut in zip(sizes, cuts, strict=True))

    def kept(price: float) -> list[int]:
        found = []
        for size, cut in zip(sizes, cuts, strict=True):
            choices = [*range(grain, size, grain), size] if size > grain else [size]
            found.append(min(choices, key=lambda keep: cut.loss[size - keep] + price * keep * cut.cost))
        return found

    low, high = 0.0, 1.0
    while sum(n * cut.cost for n, cut in zip(kept(high), cuts, strict=True)) > share * whole and high < 1e12:
        high *= 8
    for _ in range(60):
        middle = (low + high) / 2
        over = sum(n * cut.cost for n, cut in zip(kept(middle), cuts, strict=True)) > share * whole
        low, high = (middle, high) if over else (low, middle)
    return kept(high)


def _stages(net: Vocoder) -> Iterator[tuple[int, list[Any]]]:
    count = len(net.config.blocks)
    for stage in range(len(net.config.rates)):
        yield stage, list(net.resblocks[stage * count : (stage + 1) * count])


def _pair(block: Any, pair: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the second convolution of a pair sees of x, and x after the pair."""
    z = F.leaky_relu(block.convs1[pair](F.leaky_relu(x, SLOPE)), SLOPE)
    return z, x + block.convs2[pair](z)


def _each(net: Any, x: torch.Tensor) -> torch.Tensor:
    """A network's answers to x (B, ...), crop by crop: less memory."""
    return torch.cat([net(x[row : row + 1]) for row in range(len(x))])


@torch.no_grad()
def cuts(teacher: Vocoder, mel: torch.Tensor) -> list[Cut]:
    """In which order the channels of each pair go, by what the generator says of log mels (B, 80, T)."""
    x, found, rate = _each(teacher.conv_pre, mel), [], 1
    for stage, blocks in _stages(teacher):
        rate *= teacher.config.rates[stage]
        x = _each(teacher.ups[stage], F.leaky_relu(x, SLOPE))
        total, seen = torch.zeros_like(x), []
        for block, kernel in zip(blocks, teacher.config.blocks, strict=True):
            y = x
            for pair in range(len(teacher.config.dilations)):
                z, y = _pair(block, pair, y)
                (gram,) = _products(z, kernel)
                order, errors = surgery(gram, block.convs2[pair].weight.flatten(1), kernel)
                seen.append((order, errors, 2.0 * x.shape[1] * kernel * rate))
            total += y
        x = total / len(blocks)
        power = float(x.double().square().sum()) * len(blocks) ** 2
        found += [Cut(order, [error / power for error in errors], cost) for order, errors, cost in seen]
    return found


@torch.no_grad()
def slimmed(teacher: Vocoder, mel: torch.Tensor, share: float = SHARE) -> Vocoder:
    """The generator with ``share`` of the products inside its pairs, its second convolutions solved anew on log mels
    (B, 80, T) so that each stage says as nearly as it can what the whole one says. A generator with every channel at
    ``share`` 1."""
    found = cuts(teacher, mel)
    kept = share_out(found, share)
    config: Config = replace(teacher.config, hidden=tuple(kept))
    stays = [sorted(cut.order[len(cut.order) - keep :]) for cut, keep in zip(found, kept, strict=True)]
    pairs, count = len(config.dilations), len(config.blocks)
    state = {key: value.clone() for key, value in teacher.state_dict().items()}
    for number, channels in enumerate(stays):
        one, two = (f"resblocks.{number // pairs}.convs{n}.{number % pairs}" for n in (1, 2))
        state[f"{one}.weight"], state[f"{one}.bias"] = (state[f"{one}.{n}"][channels] for n in ("weight", "bias"))
        state[f"{two}.weight"] = state[f"{two}.weight"][:, channels]
    student = from_state(state, config)
    true, own = (_each(net.conv_pre, mel) for net in (teacher, student))
    for stage, blocks in _stages(teacher):
        true, own = (_each(net.ups[stage], F.leaky_relu(x, SLOPE)) for net, x in ((teacher, true), (student, own)))
        sums = [torch.zeros_like(true), torch.zeros_like(own)]
        for place, (block, kernel) in enumerate(zip(blocks, config.blocks, strict=True)):
            mine = student.resblocks[stage * count + place]
            x, y = true, own
            for pair in range(pairs):
                _, x = _pair(block, pair, x)
                z, _ = _pair(mine, pair, y)
                gram, cross = _products(z, kernel, x - y)
                solved = torch.linalg.solve(gram, cross.T).T
                second: Any = mine.convs2[pair]  # type: ignore[index]
                second.weight.copy_(solved[:, :-1].reshape(second.weight.shape))
                second.bias.copy_(solved[:, -1])
                y = y + second(z)
            sums[0] += x
            sums[1] += y
        true, own = (total / count for total in sums)
    return student.train().requires_grad_(True)


# --------------------------------------------------------------------------------------------------------- training


def gap(wave: torch.Tensor, target: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """How far sounds (B, N) are from their targets: samples, spectra and log mels (of ``bank``), a scalar."""
    with torch.autocast(wave.device.type, enabled=False):
        wave, target = wave.float(), target.float()
        level = target.square().mean(-1, keepdim=True).sqrt() + 0.01
        total = ((wave - target).abs() / level).mean()
        for size, step in RESOLUTIONS:
            window = torch.hann_window(size, device=wave.device)
            one, two = (torch.stft(x, size, step, size, window, return_complex=True) for x in (wave, target))
            a, b = ((x.real.square() + x.imag.square() + 1e-7).sqrt() for x in (one, two))
            total = (
                total + (a.log() - b.log()).abs().mean() / 3 + ((a - b).square().sum() / b.square().sum()).sqrt() / 3
            )
        return total + 2 * (front.log_mel(wave, bank) - front.log_mel(target, bank)).abs().mean()


def apart(said: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far the stages of two generators are from each other: root mean squares in units of the wanted, a scalar."""
    one = [
        (a - b).float().square().mean().sqrt() / b.float().square().mean().sqrt()
        for a, b in zip(said, wanted, strict=True)
    ]
    return torch.stack(one).mean()


class Pupil(torch.nn.Module):
    """A student under the name that training calls: stages and sound of log mels."""

    def __init__(self, net: Vocoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, mel: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """As ``Vocoder.streams``."""
        return self.net.streams(mel)


def crops(source: Corpus, seed: int, step: int, rows: int) -> torch.Tensor:
    """Log mels (B, 80, T) of a step, where the corpus is."""
    from longtake.speech.data import MEL_DEVIATION, MEL_MEAN
    from longtake.train import Dice

    drawn = source.crops(Dice(seed, step, source.mels.device), rows, FRAMES)
    return front.denormalise(drawn.mel, MEL_MEAN, MEL_DEVIATION).transpose(1, 2)


def begin(corpus: Corpus, teacher: Vocoder, folder: Path, *, seed: int, share: float = SHARE) -> Vocoder:
    """The generator that training begins with, on the CPU. It takes a minute to find: a resumed training finds it in
    ``folder``/begun.safetensors."""
    begun = folder / "begun.safetensors"
    if not begun.is_file():
        student = slimmed(teacher.cpu(), crops(corpus, seed, 2_000_000, SEEN).cpu(), share)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(begun, student.state_dict())
    return load(begun).train().requires_grad_(True)


def train_vocoder(
    corpus: Corpus,
    held_out: Corpus,
    teacher: Vocoder,
    student: Vocoder,
    folder: Path,
    settings: Settings,
    *,
    batch: int,
    seed: int,
) -> Vocoder:
    """Train (or resume) the student on ``batch`` crops a step; the record has its distance on held-out mels."""
    from longtake.graphs import Split
    from longtake.train import Dice, fit, training_device

    torch.manual_seed(seed)
    device = training_device()
    model = Pupil(student).to(device)
    teacher, bank = teacher.to(device), front.filter_bank().to(device)
    inner = slice(EDGE * teacher.hop, (FRAMES - EDGE) * teacher.hop)

    def value(network: Any, mel: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted, target = teacher.streams(mel)
        said, wave = network(mel)
        return gap(wave[:, inner], target[:, inner], bank) + apart(said, wanted)

    def judge(network: Any, step: int) -> dict[str, float]:
        mel = crops(held_out, seed, 1_000_000, 16)
        (said, wave), (wanted, target) = network(mel), teacher.streams(mel)
        noise = (wave - target)[:, inner].square().sum() / target[:, inner].square().sum()
        mels = [front.log_mel(x[:, inner], bank) for x in (wave, target)]
        return {
            "gap_held_out": round(float(gap(wave[:, inner], target[:, inner], bank)), 4),
            "decibels": round(-10 * float(noise.log10()), 2),
            "mel": round(float((mels[0] - mels[1]).abs().mean()), 4),
            "stages": round(float(apart(said, wanted)), 4),
        }

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        mel = crops(corpus, seed, step, batch)
        dice = Dice(seed + 1, step, device)
        low, high = LOUDER
        louder = torch.where(dice.uniform(batch) < 0.5, low + (high - low) * dice.uniform(batch), 0.0)
        return (mel + louder[:, None, None],)

    fit(model, Split(draw, value), settings, folder, name="vocoder", on_checkpoint=judge)
    return model.net.eval().requires_grad_(False)


def report(model: Vocoder, teacher: Vocoder, corpus: Corpus, out: Path, sentences: int = 8) -> dict[str, float]:
    """Print and write to ``out``/vocoder.json how far the mels of student and teacher are from those they were made
    of, in log mels, on held-out sentences."""
    from longtake.speech.data import MEL_DEVIATION, MEL_MEAN

    found: dict[str, list[float]] = {"student": [], "teacher": [], "apart": []}
    with torch.inference_mode():
        for row in range(0, len(corpus.frames), max(1, len(corpus.frames) // sentences)):
            first, count = int(corpus.first_frame[row]), int(corpus.frames[row])
            real = front.denormalise(corpus.mels[first : first + count].float(), MEL_MEAN, MEL_DEVIATION).T
            one, two = (front.log_mel(net(real[None]))[0] for net in (model.eval(), teacher))
            found["student"].append(float((one - real).abs().mean()))
            found["teacher"].append(float((two - real).abs().mean()))
            found["apart"].append(float((one - two).abs().mean()))
    told = {name: round(sum(values) / len(values), 4) for name, values in found.items()}
    (out / "vocoder.json").write_text(json.dumps(told) + "\n")
    print("stop figures of the vocoder: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    return told
