"""What speech needs of an installation (E1)."""

import subprocess
import sys

CODE = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchaudio", "espeak_english", "parselmouth", "librosa"):
            raise OSError("libcudart.so.13: cannot open shared object file")
sys.meta_path.insert(0, Broken())
import longtake.speech
from longtake.speech.longform.engine import LongForm
from longtake.speech.text.script import Writer
sys.path.insert(0, {tests!r})
from speech_voice import Toy
packets = list(LongForm(Toy(), Writer("words")).stream("Good evening. [[həlˈoʊ]] there.", 1))
assert sum(len(packet.samples) for packet in packets) > 1000
print("spoken")
"""


def test_speech_needs_no_torchaudio(tmp_path) -> None:
    """E1: a torchaudio that raises OSError on import is not met."""
    from pathlib import Path

    code = CODE.format(tests=str(Path(__file__).parents[1]))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "spoken", run.stderr[-2000:]


def test_importing_the_domain_takes_no_torch() -> None:
    code = (
        "import sys; from longtake.domain import domain_of; domain_of('speech').ABOUT\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'scipy', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
