"""Learn a two-dimensional density and draw it: ``python -m drl_dist.toy checkerboard``.

Needs only torch, numpy and matplotlib, none of the project's extras; options are therefore parsed by argparse.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from drl_dist.common.errors import UserError
from drl_dist.common.program import entry_point
from drl_dist.common.validation import local_of, whole_number

MAX_STEPS = 1_000_000
MAX_LENGTHEN = 1000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            "command line", got=message, expected="options as --help lists them", remedy="correct the options"
        )


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status.

    Args:
        argv: arguments of the command.

    Raises:
        UserError: an option is invalid, matplotlib is missing, or a training diverged or was killed. Nothing is written
            then.
    """
    began = time.monotonic()
    options = _options(argv)
    # Heavy imports come after the options have been checked.
    from drl_dist.common.durations import duration
    from drl_dist.common.progress import progress
    from drl_dist.toy.density import Grid
    from drl_dist.toy.distributions import distribution
    from drl_dist.toy.pictures import comparison_picture, levels_picture
    from drl_dist.toy.side_by_side import fit_all
    from drl_dist.toy.study import data_points, num_chain_steps, report
    from drl_dist.toy.training import drl_experiment, short_run_experiment

    name: str = options.name
    data_distribution = distribution(name)
    folder = _folder(options.out)
    request = {name: getattr(options, name) for name in ("name", "seed", "steps", "lengthen")}
    names = [f"{name}_{kind}.png" for kind in ("levels", "comparison")]
    _refuse_other(folder, f"{name}.json", request, names)

    grid = Grid()
    experiments = {
        way: make(seed=options.seed, num_steps=options.steps)
        for way, make in (("recovery", drl_experiment), ("short-run", short_run_experiment))
    }
    total = sum(num_chain_steps(experiment, options.lengthen) for experiment in experiments.values())
    with progress("both methods", total, 0, "chain steps") as advance:
        fits = fit_all(experiments, name, grid, lengthen=options.lengthen, on_progress=advance)
    drl, short_run = fits["recovery"], fits["short-run"]
    data = data_points(data_distribution)
    made = f"step {options.steps}, seed {options.seed}"
    captions = {
        "levels": f"{name}: from noise to data by diffusion recovery likelihood, {made}",
        "comparison": f"{name}: recovery beside short-run likelihood, {made}",
    }
    pictures = {
        "levels": levels_picture(drl, grid, captions["levels"]),
        "comparison": comparison_picture(drl, short_run, data, grid, captions["comparison"]),
    }
    print("\n".join(report(drl, short_run, data, grid)))
    # Written first, so that pictures never exist without it.
    _write(folder / f"{name}.json", (json.dumps(request, indent=2) + "\n").encode())
    for kind, what in (("levels", "from noise to data"), ("comparison", "recovery beside short-run likelihood")):
        path = folder / f"{name}_{kind}.png"
        _write(path, pictures[kind])
        print(f"{what}: {path}")
    print(f"took {duration(time.monotonic() - began)}", flush=True)
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m drl_dist.toy",
        description="Learn a two-dimensional density by diffusion recovery likelihood and by short-run maximum "
        "likelihood, and draw both.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "name", nargs="?", default="checkerboard", help="the data: checkerboard, rings, mixture or spirals"
    )
    parser.add_argument("--out", default="var/toy", help="folder of the pictures")
    parser.add_argument("--seed", type=whole_number, default=0, help="keys the initial weights, the data and all noise")
    parser.add_argument("--steps", type=whole_number, default=700, help="training steps of each of the two methods")
    parser.add_argument(
        "--lengthen",
        type=whole_number,
        default=100,
        help="long runs have chains this many times as long as in training",
    )
    options = parser.parse_args(list(argv))
    for option, got, expected, holds in (
        ("--steps", options.steps, f"1 to {MAX_STEPS}", 1 <= options.steps <= MAX_STEPS),
        ("--lengthen", options.lengthen, f"1 to {MAX_LENGTHEN}", 1 <= options.lengthen <= MAX_LENGTHEN),
        ("--seed", options.seed, "a number in [0, 2**63)", 0 <= options.seed < 2**63),
    ):
        if not holds:
            raise UserError(f"option {option}", got=got, expected=expected, remedy="correct the option")
    if find_spec("matplotlib") is None:
        raise UserError(
            "matplotlib", got="no such package", expected="it beside torch and numpy", remedy="pip install matplotlib"
        )
    return options


def _folder(out: str) -> Path:
    """The folder, created if needed and tested by writing a temporary file."""
    folder = local_of(out, "option --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            "option --out",
            got=f"{out} ({error.strerror})",
            expected="a folder that can be written",
            remedy="name another folder",
        ) from error
    return folder


def _refuse_other(folder: Path, record: str, request: dict[str, object], pictures: Sequence[str]) -> None:
    """Return if the folder has no pictures, or pictures of the same request, according to its record."""
    if not any((folder / name).exists() for name in (record, *pictures)):
        return
    try:
        found = json.loads((folder / record).read_text())
    except (OSError, ValueError):
        found = None
    if found != request:
        known = found if isinstance(found, dict) else {}
        other = [f"{name}: {known.get(name, 'unknown')} -> {value}" for name, value in request.items()]
        different = [text for text, name in zip(other, request, strict=True) if known.get(name) != request[name]]
        raise UserError(
            "option --out",
            got=f"{folder}, with pictures of other options ({', '.join(different) or 'more than these'})",
            expected="a folder without them, or with those of the same options",
            remedy="name another folder",
        )


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"picture {path}", got=error.strerror, expected="room to write it", remedy="name another folder with --out"
        ) from error


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
