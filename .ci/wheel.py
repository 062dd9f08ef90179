"""Try a wheel of the package: what it holds is what the checkout has, and it works where no checkout is near.

    python .ci/wheel.py FOLDER

FOLDER holds the only wheel. Prints its name; ends with status 1 and a sentence if something is missing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("drl_dist", "datasets_prep")
PAGE = ROOT / "drl_dist/jobs/serve/web/page"
SAMPLES = """
import numpy, drl_dist
images = numpy.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), "uint8")
model = drl_dist.train(images, "digits", num_steps=5, show_progress=False)
assert model.sample(2, seed=0).shape == (2, 1, 8, 8), "other images than asked for"
print(drl_dist.__file__)
"""


def main(folder: str) -> int:
    """Check the wheel; the exit status."""
    (wheel,) = Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
        files += [path for path in PAGE.rglob("*") if path.is_file()]
        wanted = {path.relative_to(ROOT).as_posix() for path in files} | {"drl_dist/py.typed"}
        modules = {name for name in held if name.partition("/")[0] in PACKAGES}
        if modules != wanted:
            print(
                f"{wheel.name}: got no {sorted(wanted - modules)} and besides {sorted(modules - wanted)}, expected the "
                "modules and the page of the checkout",
                file=sys.stderr,
            )
            return 1
        with tempfile.TemporaryDirectory() as place:
            archive.extractall(place)
            # Isolated from the checkout, which the environment has installed in place.
            code = f"import sys; sys.path.insert(0, {place!r})\n{SAMPLES}"
            done = subprocess.run(
                [sys.executable, "-P", "-c", code], cwd=place, capture_output=True, text=True, check=False
            )
            if done.returncode or not done.stdout.splitlines()[-1].startswith(place):
                print(f"{wheel.name}: does not work by itself\n{done.stdout}{done.stderr}", file=sys.stderr)
                return 1
    print(wheel.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
