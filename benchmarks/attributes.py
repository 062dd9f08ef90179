"""Attributes asked for together, as a label or as a sum of energies: ``python -m benchmarks.attributes --out FOLDER``.

scikit-learn's digits have the attributes Even, Loop (0, 6, 8 and 9, whose lines close), Big (5 to 9) and Bold (more ink
than half of the digits). Two fifths of the images are kept for questions; of the others, those that are Bold and have a
Loop are left out of the training, so that the model never sees the two together. It is trained by
``jobs/train_digits.py`` and asked for attributes alone, for pairs, and for the pair that it has not seen, each as a
label (``--label "A & B"``) and as a sum (``--compose "A & B"``), with and without guidance. What the images show is
read off them: the digit by a convolutional network, the ink by adding it up. ``jobs/classify.py`` infers the attributes
of half of the images that were kept, with constants fitted to the other half.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.classify import ROOT
from benchmarks.digit_features import digits, train_feature_network
from benchmarks.digit_shards import write_digits
from benchmarks.results import open_results
from drl_dist.common.images import Panel
from drl_dist.common.places import path_here
from drl_dist.common.program import entry_point
from drl_dist.common.validation import refuse_broken, whole_number
from drl_dist.data.index import ATTRIBUTE_COUNTS, ATTRIBUTES
from drl_dist.evaluation.features import FeatureNetwork
from drl_dist.jobs.common.output.sheet import sheet_of
from drl_dist.library.load import load
from drl_dist.library.model import Model

NAMES = ("Even", "Loop", "Big", "Bold")
UNSEEN = ("Loop", "Bold")
ASKED = ("Even", "not Even", "Loop", "not Loop", "Big", "Bold", "not Bold")
PAIRS = ("Even & Loop", "Even & Bold", "Big & not Bold", "not Loop & Bold", "Loop & Bold")
GUIDANCES = (0.0, 1.0, 2.0)
WAYS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "one label": lambda text: {"labels": text},
    "sum of energies": lambda text: {"compose": text},
}
RESULT, TABLE, SHEET = "attributes.json", "table.md", "attributes.png"
_LOOPS = (0, 6, 8, 9)
_PERIOD = 5
_SHOWN_W = 1.0
_SHOWN, _FEWEST = 10, 16


def truth_of(images: Tensor, classes: Tensor) -> Tensor:
    """What digits show: bool (N, 4), in the order of `NAMES`.

    Args:
        images: uint8 (N, 1, 8, 8).
        classes: (N,) 0 to 9.
    """
    loop = torch.isin(classes, torch.tensor(_LOOPS))
    return torch.stack([classes % 2 == 0, loop, classes >= 5, ink_of(images) > _half_of_ink()], 1)


def ink_of(images: Tensor) -> Tensor:
    """(N,) sums of grey values."""
    return images.double().sum((1, 2, 3))


def _half_of_ink() -> float:
    return float(ink_of(digits()[0]).median())


def parts() -> dict[str, tuple[Tensor, Tensor]]:
    """Images and what they show: of the training, of the constants and of the questions."""
    images, classes = digits()
    truth = truth_of(images, classes)
    place = torch.arange(len(images)) % _PERIOD
    is_unseen = truth[:, [NAMES.index(name) for name in UNSEEN]].all(1)
    chosen = {"train": (place > 1) & ~is_unseen, "fit": place == 0, "test": place == 1}
    return {name: (images[which], truth[which]) for name, which in chosen.items()}


def write_part(folder: Path, name: str, images: NDArray[np.uint8], truth: NDArray[np.bool_]) -> None:
    """One shard with its index."""
    told = [{"attributes": [1 if holds else -1 for holds in shows]} for shows in truth]
    write_digits(folder, name, images, told, {ATTRIBUTES: list(NAMES), ATTRIBUTE_COUNTS: truth.sum(0).tolist()})


def holds(truth: Tensor, text: str) -> Tensor:
    """Which images show what was asked for, bool (N,).

    Args:
        truth: (N, 4) as of `truth_of`.
        text: attributes joined by &, some with ``not`` in front.
    """
    found = torch.ones(len(truth), dtype=torch.bool)
    for part in text.split(" & "):
        name = part.removeprefix("not ")
        found &= truth[:, NAMES.index(name)] == (name == part)
    return found


def measure(model: Model, judge: FeatureNetwork, count: int, seed: int) -> tuple[dict[str, Any], list[Panel]]:
    """For each text and way the share of images that show what was asked for; and pictures of pairs."""
    shares: dict[str, Any] = {text: {} for text in (*ASKED, *PAIRS)}
    panels: list[Panel] = []
    for way, w in product(WAYS, GUIDANCES):
        name = f"{way}, w = {w:g}"
        rows: list[Tensor] = []
        for text, row in shares.items():
            print(f"{text}, {name}", file=sys.stderr, flush=True)
            images = model.sample(count, seed=seed, batch_size=count, guidance=w, **WAYS[way](text))
            logits = judge(images).logits
            assert logits is not None
            row[name] = float(holds(truth_of(images, logits.argmax(1)), text).double().mean())
            rows.append(images[:_SHOWN])
        if w == _SHOWN_W:
            panels.append(Panel(title=name, images=torch.cat(rows), columns=_SHOWN, row_names=tuple(shares)))
    return shares, panels


def inferred(out: Path, run: Path) -> dict[str, Any]:
    """Accuracy of `jobs/classify.py` for each attribute, alone and where Even and Loop are known."""
    found: dict[str, Any] = {}
    for name, given in (("image", ""), ("image, Even and Loop", "Even,Loop")):
        report = out / f"classified-{len(given)}"
        data = ["--data", str(out / "data" / "test"), "--fit-data", str(out / "data" / "fit")]
        words = ["jobs/classify.py", "--model", str(run), *data, "--out", str(report)]
        subprocess.run([sys.executable, *words, *(["--given", given] if given else [])], cwd=ROOT, check=True)
        found[name] = json.loads((report / "classify.json").read_text())
    return found


def table(shares: Mapping[str, Mapping[str, float]], data: Tensor) -> str:
    """Shares of images that show what was asked for, as Markdown."""
    head = ("asked for", "of the training images", *next(iter(shares.values())))
    lines = [head, ("---",) * len(head)]
    lines += [
        (text, f"{float(holds(data, text).double().mean()):.2f}", *(f"{share:.2f}" for share in row.values()))
        for text, row in shares.items()
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table_of_answers(found: Mapping[str, Any]) -> str:
    """Accuracies of the attributes that are inferred, as Markdown."""
    head = ("known", *NAMES, "mean", "ECE")
    lines = [head, ("---",) * len(head)]
    for known, report in found.items():
        each = [report["per_label"].get(name) for name in NAMES]
        numbers = ["" if one is None else f"{one['accuracy']:.2f}" for one in each]
        lines.append((known, *numbers, f"{report['mean_accuracy']:.3f}", f"{report['ece']:.3f}"))
    frequent = [f"{found['image']['per_label'][name]['most_frequent']:.2f}" for name in NAMES]
    lines.append(("the more frequent answer", *frequent, "", ""))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=path_here, required=True, help="folder of the results")
    parser.add_argument("--steps", type=whole_number, default=3000, help="training steps")
    parser.add_argument("--images", type=whole_number, default=300, help="of each request")
    parser.add_argument("--seed", type=whole_number, default=0)
    options = parser.parse_args()
    refuse_broken([("--images", options.images, f"at least {_FEWEST}", options.images >= _FEWEST)])
    out = options.out.absolute()
    open_results(parser, out, [RESULT], [TABLE, SHEET])
    found = parts()
    for name, (images, truth) in found.items():
        write_part(out / "data" / name, name, images.numpy(), truth.numpy())
    name = f"seed{options.seed}-{options.steps}"
    train = ["jobs/train_digits.py", "--without-ray", "--tracking.uri", "none", "--condition.kind", "attributes"]
    length = ["--train.num-steps", str(options.steps), "--train.seed", str(options.seed)]
    where = ["--data", str(out / "data" / "train"), "--storage", str(out), "--run-name", name]
    subprocess.run([sys.executable, *train, *length, *where], cwd=ROOT, check=True)
    judge, accuracy = train_feature_network(*digits(), seed=1)
    model = load(out / name)
    shares, panels = measure(model, judge, options.images, options.seed)
    answers = inferred(out, out / name)
    text = table(shares, found["train"][1]) + "\n" + table_of_answers(answers)
    caption = f"digits, {options.steps} steps, seed {options.seed}; never trained on: {' & '.join(UNSEEN)}"
    (out / SHEET).write_bytes(sheet_of(panels, caption))
    content = {"shares": shares, "inferred": answers, "judge": accuracy, "steps": options.steps, "seed": options.seed}
    (out / RESULT).write_text(json.dumps(content, indent=2) + "\n")
    (out / TABLE).write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    entry_point(main)
