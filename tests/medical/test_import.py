"""What ``import longtake.medical`` costs."""

import subprocess
import sys


def test_import_loads_no_reader_and_no_model_library():
    code = (
        "import sys, time; import torch; begun = time.monotonic(); import longtake.medical; "
        "took = time.monotonic() - begun; "
        "print([n for n in ('monai', 'transformers', 'nibabel', 'pydicom', 'diffusers') if n in sys.modules], took < 1)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["[]", "True"]
