"""Labels by energies against a plain classifier of the same size: ``python -m benchmarks.classify --out FOLDER``.

scikit-learn's digits in three parts: seven tenths train, a tenth is what constants and temperatures are fitted to, two
tenths are judged. The energies are those of ``jobs/train_digits.py`` with classes, judged by ``jobs/classify.py``; the
classifier is a convolutional network of as many parameters, trained on the same images for as many steps of as many
images. Digits turned upside down are what both are to tell from digits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.digit_shards import write_digits
from benchmarks.results import open_results
from datasets_prep.sources.digits import load_images
from drl_dist.common.images import to_unit_range
from drl_dist.common.places import path_here
from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number
from drl_dist.data.index import CLASS_COUNTS, CLASSES
from drl_dist.likelihood.auroc import auroc
from drl_dist.likelihood.bayes import Constants, fit_constants
from drl_dist.likelihood.calibration import label_scores

ROOT = Path(__file__).resolve().parents[1]
NAMES = [str(digit) for digit in range(10)]
RESULT, TABLE = "classify.json", "table.md"
_BATCH = 32
_PARTS = {3: "fit", 4: "test", 9: "test"}
"""By the last figure of an image's place; the others train."""

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def parts() -> dict[str, Part]:
    """Images (N, 1, 8, 8) and labels (N,) of each part, and of the upside-down digits."""
    pixels, labels = load_images()
    of = np.array([_PARTS.get(place % 10, "train") for place in range(len(labels))])
    found = {name: (pixels[of == name][:, None], labels[of == name]) for name in ("train", "fit", "test")}
    images, labels = found["test"]
    return found | {"flipped": (np.ascontiguousarray(images[:, :, ::-1]), labels)}


def write_part(folder: Path, name: str, part: Part) -> None:
    """One shard with its index."""
    images, labels = part
    counts = np.bincount(labels, minlength=len(NAMES)).tolist()
    told = [{"label": int(label)} for label in labels]
    write_digits(folder, name, images, told, {CLASSES: NAMES, CLASS_COUNTS: counts})


def classifier() -> nn.Sequential:
    """603,978 parameters; the U-Net of the preset digits with ten classes has 607,617."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.SiLU(),
        nn.Conv2d(64, 128, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(128, 128, 3, padding=1), nn.SiLU(),
        nn.Conv2d(128, 128, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 448), nn.SiLU(), nn.Linear(448, len(NAMES)),
    )  # fmt: skip


def plain(found: dict[str, Part], steps: int, seed: int) -> dict[str, Any]:
    """Scores of the classifier, as it is and with the constants and the temperature that the fit part asks for."""
    torch.manual_seed(seed)
    network = classifier()
    tensors = {name: (to_unit_range(torch.from_numpy(x)), torch.from_numpy(y)) for name, (x, y) in found.items()}
    x, labels = tensors["train"]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (_BATCH,))
        optimizer.zero_grad()
        functional.cross_entropy(network(x[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()

    def logits(name: str) -> Tensor:
        with torch.no_grad():
            return network(tensors[name][0]).double()[:, None]

    fitted = fit_constants(logits("fit"), tensors["fit"][1][:, None], with_temperature=True)
    test, answers = logits("test"), tensors["test"][1]
    by_constants = {
        name: label_scores(constants.log_posterior(test)[:, 0], answers).as_json()
        for name, constants in (("none", Constants.equal(1, len(NAMES))), ("calibrated", fitted))
    }
    flipped = logits("flipped")
    return {
        "parameters": sum(value.numel() for value in network.parameters()),
        "by_constants": by_constants,
        # What a classifier has in place of a density: its largest logits, summed.
        "auroc_summed": auroc(test.logsumexp(2)[:, 0], flipped.logsumexp(2)[:, 0]),
    }


def energies(out: Path, found: dict[str, Part], steps: int, seed: int) -> dict[str, Any]:
    """The report of ``jobs/classify.py`` on energies of the digits, which are trained unless they are there."""
    for name, part in found.items():
        write_part(out / "data" / name, name, part)
    data = out / "data"
    train = ["jobs/train_digits.py", "--without-ray", "--condition.kind", "class", "--train.num-steps", str(steps)]
    run = ["--train.seed", str(seed), "--data", str(data / "train"), "--storage", str(out), "--run-name", f"seed{seed}"]
    judge = ["jobs/classify.py", "--model", str(out / f"seed{seed}"), "--data", str(data / "test")]
    report = out / f"classified{seed}"
    where = ["--fit-data", str(data / "fit"), "--other", str(data / "flipped"), "--out", str(report)]
    for words in ([*train, *run], [*judge, *where]):
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    return json.loads((report / "classify.json").read_text())


def table(plain_scores: dict[str, Any], report: dict[str, Any]) -> str:
    """Both, as Markdown."""
    lines = ["| | constants | accuracy | ECE | Brier | log loss |", "|---|---|---|---|---|---|"]
    for what, rows in (
        (f"energies, level {report['level']}", report["by_constants"]),
        ("plain classifier", plain_scores["by_constants"]),
    ):
        for name, row in rows.items():
            scores = [f"{row[score]:.4f}" for score in ("accuracy", "ece", "brier", "log_loss")]
            lines.append(f"| {' | '.join([what, name, *scores])} |")
    apart = report["out_of_distribution"]
    lines += [
        "",
        f"AUROC against digits upside down: {apart['auroc_unlabelled']:.3f} by energies without a label, "
        f"{apart['auroc_summed']:.3f} by their sum over classes, {plain_scores['auroc_summed']:.3f} by the classifier.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=path_here, required=True, help="folder of the results")
    parser.add_argument("--steps", type=whole_number, default=1500, help="training steps of either")
    parser.add_argument("--seed", type=whole_number, default=0)
    options = parser.parse_args()
    out = options.out.absolute()
    open_results(parser, out, [RESULT], [TABLE])
    found = parts()
    report = energies(out, found, options.steps, options.seed)
    plain_scores = plain(found, options.steps, options.seed)
    content = {"energies": report, "plain": plain_scores, "steps": options.steps, "seed": options.seed}
    (out / RESULT).write_text(json.dumps(content, indent=2) + "\n")
    text = table(plain_scores, report)
    (out / TABLE).write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    entry_point(main)
