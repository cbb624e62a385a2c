"""Audio files written block by block: WAV (RF64 where it grows past 4 GB), FLAC, Ogg Vorbis, Opus, MP3.

with AudioWriter(Path("take.opus"), 22_050) as file:
    for block in blocks: file.write(block)

The file stands under a temporary name until it is whole. The same samples give the same bytes: an Ogg file's serial
number, which libsndfile draws by chance, is set to one of ours.
"""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager
from math import gcd
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from longtake.errors import UserError, shorten
from longtake.journal import atomic_path

# suffix -> (soundfile's format, subtype)
FORMATS = {
    ".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
WAV_BYTES = 4_000_000_000
_SERIAL = b"long"
_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Resampler:
    """Samples at one rate to another, block by block, the same as all at once: polyphase (Kaiser 8.0, 64 zeros)."""

    def __init__(self, source: int, target: int) -> None:
        from scipy.signal import firwin

        common = gcd(source, target)
        self.up, self.down = target // common, source // common
        half = -(-32 * max(self.up, self.down) // self.down) * self.down
        self._filter = firwin(2 * half + 1, 1 / max(self.up, self.down), window=("kaiser", 8.0)) * self.up
        self._margin = -(-(half // self.up + 1) // self.down) * self.down  # input samples on each side, whole periods
        self._buffer = np.zeros(self._margin, np.float32)
        self._taken = self._given = 0

    def add(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """The samples that are final now. last: no more come."""
        from scipy.signal import upfirdn

        if self.up == self.down:
            return samples
        self._taken += len(samples)
        tail = np.zeros(self._margin + self.down, np.float32) if last else np.zeros(0, np.float32)
        self._buffer = np.concatenate([self._buffer, samples, tail])
        ready = (len(self._buffer) - 2 * self._margin) // self.down * self.down
        if ready <= 0:
            return np.zeros(0, np.float32)
        window = self._buffer[: ready + 2 * self._margin]
        made = upfirdn(self._filter, window, self.up, self.down)
        skip = (len(self._filter) // 2 + self._margin * self.up) // self.down
        self._buffer = self._buffer[ready:]
        made = made[skip : skip + ready * self.up // self.down].astype(np.float32)
        if last:
            made = made[: -(-self._taken * self.up // self.down) - self._given]
        self._given += len(made)
        return made


class AudioWriter:
    """A mono sound file in the making. gain: factor of every sample. clipped: samples that were too loud."""

    def __init__(self, path: Path, rate: int, *, gain: float = 1.0, samples: int = 0) -> None:
        suffix = path.suffix.lower()
        if suffix not in FORMATS:
            raise UserError(f"cannot write {path}: sound is one of {', '.join(FORMATS)}")
        self.path, self.gain, self.clipped, self.written = path, gain, 0, 0
        kind, subtype = FORMATS[suffix]
        self.rate = rate
        if suffix == ".opus":
            self.rate = next(one for one in OPUS_RATES if one >= min(rate, OPUS_RATES[-1]))
        elif suffix == ".mp3" and rate not in MP3_RATES:
            self.rate = next((one for one in MP3_RATES if one >= rate), MP3_RATES[-1])
        if kind == "WAV" and samples * 2 > WAV_BYTES:
            kind = "RF64"
        self._kind, self._subtype = kind, subtype
        self._resampler = Resampler(rate, self.rate) if self.rate != rate else None
        self._buffer = np.zeros(0, np.float32)
        self._held: AbstractContextManager[Path] = atomic_path(path)
        self._partial: Path | None = None
        self._file: Any = None

    def __enter__(self) -> AudioWriter:
        import soundfile

        self._partial = self._held.__enter__()
        try:
            open(self._partial, "wb").close()
        except OSError as error:
            self._held.__exit__(type(error), error, None)  # says what is wrong with the disk
            raise
        try:
            self._file = soundfile.SoundFile(self._partial, "w", self.rate, 1, format=self._kind, subtype=self._subtype)
        except (soundfile.LibsndfileError, OSError) as error:
            self._held.__exit__(type(error), error, None)
            raise UserError(f"cannot write {self.path}: {shorten(str(error))}") from None
        return self

    def write(self, samples: np.ndarray) -> None:
        """More samples (n,) float32."""
        block = np.asarray(samples, np.float32)
        self._put(block if self._resampler is None else self._resampler.add(block))

    def _put(self, block: np.ndarray) -> None:
        scaled = block * np.float32(self.gain)
        self.clipped += int((np.abs(scaled) > 1).sum())
        np.clip(scaled, -1, 1, out=scaled)
        self._buffer = np.concatenate([self._buffer, scaled])
        self._flush(self.rate)

    def _flush(self, block: int) -> None:
        """Give the encoder blocks of a second: what it makes depends on them, and of long ones libsndfile's Ogg
        encoders overflow the stack."""
        while len(self._buffer) >= block > 0:
            part = self._buffer[:block]
            # each encoder rounds to 16 bits in its own way
            self._file.write(np.rint(part * 32767).astype(np.int16) if self._subtype == "PCM_16" else part)
            self.written += block
            self._buffer = self._buffer[block:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import soundfile

        assert self._partial is not None
        try:
            if error is None and self._resampler is not None:
                self._put(self._resampler.add(np.zeros(0, np.float32), last=True))
            if error is None:
                self._flush(len(self._buffer))
            self._file.close()
            if error is None and self._kind == "OGG":
                fix_serial(self._partial)
        except soundfile.LibsndfileError as late:
            if error is None:
                error = UserError(f"cannot write {self.path}: {shorten(str(late))}")
                kind = type(error)
                self._held.__exit__(kind, error, trace)
                raise error from None
        self._held.__exit__(kind, error, trace)


def fix_serial(path: Path) -> None:
    """Give every page of an Ogg file our serial number, and the checksum that goes with it."""
    with open(path, "r+b") as file:
        while (head := file.read(27)) and len(head) == 27 and head[:4] == b"OggS":
            table = file.read(head[26])
            body = file.read(sum(table))
            page = head[:14] + _SERIAL + head[18:22] + bytes(4) + head[26:27] + table + body
            check = zlib.crc32(page.translate(_MIRROR), 0xFFFFFFFF) ^ 0xFFFFFFFF
            mirrored = int(f"{check:032b}"[::-1], 2).to_bytes(4, "little")
            file.seek(-len(page), 1)
            file.write(page[:22] + mirrored + page[26:])


def check_sound(path: Path) -> None:
    """Raise UserError unless a sound file is there and whole: every sample that it promises can be read."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            frames, read = file.frames, 0
            while len(block := file.read(1 << 18, dtype="int16")):
                read += len(block)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UserError(f"{path} is no whole sound file: {shorten(str(error))}") from None
    if read == 0 or (frames > 0 and read < frames) or not _has_its_end(path):
        raise UserError(f"{path} is cut off: {read} of {frames} samples")


def _has_its_end(path: Path) -> bool:
    """Whether a file is as long as its head says (RIFF) and closes with its last page (Ogg)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(28)
        if head[:4] == b"RIFF":
            return size >= int.from_bytes(head[4:8], "little") + 8
        if head[:4] == b"RF64":
            return size >= int.from_bytes(head[20:28], "little") + 8
        if head[:4] == b"OggS":
            file.seek(max(0, size - 66_000))
            tail = file.read()
            place = tail.rfind(b"OggS")
            return place >= 0 and len(tail) > place + 5 and bool(tail[place + 5] & 4)
    return True
