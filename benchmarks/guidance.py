"""What guidance costs and gains: FID and a classifier's accuracy of a conditional model's samples, over w.

    python -m benchmarks.guidance --model RUN --data URL --out FOLDER [--guidances 0,0.5,1,2,4 --images 500]

RUN is a checkpoint, a run or models:/NAME@latest of a model with classes; URL is a shard folder with these classes,
best one that the model was not trained on. All classes take turns, and every w starts from the same noise. Images are
scored against all of the data: FID, its mean over the classes, precision and recall by one network, and the share that
another one takes for what they were asked to be. By default both are small classifiers of digits or of Fashion-MNIST,
trained here from different seeds; --features and --classifier name others, as for jobs/evaluate.py. FID of few images
is too large, and comparable only between as many. A finished w is kept: the same command resumes, also with further
ones. Needs the extras `evaluation` and `prep`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.data import check_source, load_data
from benchmarks.quality.features import feature_network
from benchmarks.quality.record import open_folder, write_atomically, write_json
from benchmarks.quality.settings import DATA
from datasets_prep._options import DEBIAN_FOLDER
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.figures import figure_png, new_figure
from drl_dist.common.images import Panel
from drl_dist.common.program import entry_point, stop_on_signals
from drl_dist.common.validation import local_of, model_rule, place_rule, refuse_broken, whole_number
from drl_dist.config.presets import preset
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.labels import checked_names
from drl_dist.data.subset import image_batches, labels_of, spread
from drl_dist.evaluation.classes import FEWEST, class_fids, class_logits, intra_fid, load_classifier, recognition
from drl_dist.evaluation.distances import fid, precision_recall
from drl_dist.evaluation.feature_spec import parse_classifier, parse_features
from drl_dist.evaluation.features import FeatureNetwork, features_of
from drl_dist.evaluation.networks import load_network
from drl_dist.evaluation.weights import tensors_sha256
from drl_dist.jobs.common.output.sheet import sheet_of
from drl_dist.library.load import load
from drl_dist.library.model import Model

POINTS, NETWORKS = "points", "networks"
TABLE, CURVE = "table.md", "guidance.png"
CPU = torch.device("cpu")
OWN = "own"
_OWN_CLASSES = 10
_FEWEST = 20
_STRAIGHT = 0.2
_TOGETHER, _SHOWN = 500, 8
_HEAD = ("w", "FID", "mean FID of classes", "precision", "recall", "accuracy", "seconds per image")


def guidances_of(text: str) -> tuple[float, ...]:
    """The numbers of an option, ascending.

    Raises:
        UserError: some are no finite numbers of at least 0.
    """
    try:
        found = sorted({float(word) for word in text.split(",")})
    except ValueError:
        found = [math.nan]
    holds = all(math.isfinite(value) and value >= 0 for value in found)
    refuse_broken([("--guidances", text, "finite numbers of at least 0, separated by commas", holds)])
    return tuple(found)


def named_networks(given: argparse.Namespace, index: ShardIndex) -> list[FeatureNetwork | None]:
    """The network of the features and the classifier, each if an option names it.

    Raises:
        UserError: an option names none that can be used, or the data have none of their own.
    """
    texts = (given.features, given.classifier)
    if OWN in texts:
        known = index.name in DATA and index.resolution == preset(index.name).model.resolution
        if not known or len(index.classes) != _OWN_CLASSES:
            raise UserError(
                f"data {index.url}",
                got=f"images of {index.name}, {index.resolution} pixels wide, of {len(index.classes)} classes",
                expected=f"{' or '.join(DATA)} in the size of its preset, with all classes, for networks trained here",
                remedy="name networks for other images with --features and --classifier",
            )
        check_source(index.name, given.source)
    features, classifier = texts
    return [
        None if features == OWN else load_network(parse_features(features), CPU),
        None if classifier == OWN else load_classifier(parse_classifier(classifier), CPU, index, index.classes),
    ]


def own_network(given: argparse.Namespace, index: ShardIndex, seed: int, folder: Path) -> FeatureNetwork:
    """A classifier of the data's kind, which is kept in a folder if it takes longer to train than to read."""
    data = load_data(index.name, given.source)
    network, accuracy = feature_network(data, folder / f"{index.name}-{seed}.safetensors", seed=seed)
    print(f"network of seed {seed}: {accuracy:.1%} of held-out images right", file=sys.stderr, flush=True)
    return network


class Scorer:
    """Scores labelled images against all of the data, which are looked at once."""

    def __init__(self, index: ShardIndex, network: FeatureNetwork, judge: FeatureNetwork) -> None:
        self._network, self._judge, self._names = network, judge, index.classes
        count = index.num_samples
        self._labels = labels_of(index, count, "class")
        self._real = features_of(network, image_batches(index, count, _TOGETHER)).values
        logits = class_logits(features_of(judge, image_batches(index, count, _TOGETHER)))
        self.accuracy = recognition(logits, self._labels).accuracy
        """Of real images."""

    def score(self, images: Tensor, asked: Tensor) -> dict[str, Any]:
        """All scores of generated images, uint8 (N, C, H, W), asked to be of the classes (N,)."""
        values = features_of(self._network, images.split(_TOGETHER)).values
        seen = recognition(class_logits(features_of(self._judge, images.split(_TOGETHER))), asked)
        # Of as many images of either set, evenly spread: either may be ordered by class.
        count = min(len(values), len(self._real))
        precision, recall = precision_recall(*(some[spread(len(some), count)] for some in (values, self._real)))
        fids = class_fids(values, asked, self._real, self._labels, self._names)
        return {
            "fid": fid(values, self._real),
            "intra_fid": intra_fid(fids),
            "precision": precision,
            "recall": recall,
            "accuracy": seen.accuracy,
            "accuracy_of_classes": dict(zip(self._names, seen.by_class, strict=True)),
            "confusion": seen.confusion.tolist(),
        }


def measure(model: Model, names: Sequence[str], guidance: float, given: argparse.Namespace, scorer: Scorer) -> Any:
    """Samples of one w, their picture and their scores."""
    print(f"w = {guidance:g}", file=sys.stderr, flush=True)
    began = time.perf_counter()
    images = model.sample(
        given.images, labels="uniform", guidance=guidance, seed=given.seed, batch_size=min(given.images, _TOGETHER)
    )
    seconds = time.perf_counter() - began
    asked = torch.arange(given.images) % len(names)
    shown = [images[asked == label][:_SHOWN] for label in range(len(names))]
    columns = min(len(some) for some in shown)
    sheet = Panel(
        title=f"w = {guidance:g}",
        images=torch.cat([some[:columns] for some in shown]),
        columns=columns,
        row_names=tuple(names),
    )
    caption = f"{given.model}, step {model.step}, seed {given.seed}, guidance {guidance:g}"
    scores = scorer.score(images, asked) | {"guidance": guidance, "seconds_per_image": seconds / given.images}
    return scores, sheet_of([sheet], caption)


def table(points: Sequence[Mapping[str, Any]], accuracy: float) -> str:
    """A line for each w, as Markdown, and the accuracy of real images."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for point in points:
        numbers = [f"{point[name]:.3f}" for name in ("precision", "recall", "accuracy")]
        fids = [f"{point['fid']:.3f}", "" if point["intra_fid"] is None else f"{point['intra_fid']:.3f}"]
        lines.append((f"{point['guidance']:g}", *fids, *numbers, f"{point['seconds_per_image']:.3g}"))
    lines.append(("real images", "", "", "", "", f"{accuracy:.3f}", ""))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(points: Sequence[Mapping[str, Any]], accuracy: float, caption: str) -> bytes:
    """FID against accuracy, each point labelled with its w: a PNG."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    found = [(point["accuracy"], point["fid"]) for point in points]
    axes.plot(*zip(*found, strict=True), marker="o", color="C0", label="samples")
    for point, place, side in zip(points, found, _free_sides(found), strict=True):
        text, at = f"w = {point['guidance']:g}", (26 * side[0], 14 * side[1])
        # White behind it, should something else pass there.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(text, place, at, textcoords="offset points", ha="center", va="center", bbox=box)
    axes.axvline(accuracy, color="gray", linestyle=":", label="accuracy of real images")
    axes.set(xlabel="share of samples that the classifier takes for what they were asked to be", ylabel="FID")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure_png(figure, caption)


def _free_sides(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """For each point of a line a direction of length 1 away from the line to its neighbours."""
    points = np.array(places) / np.maximum(np.ptp(places, axis=0), 1e-9)
    found: list[tuple[float, float]] = []
    for at, point in enumerate(points):
        steps = [points[other] - point for other in (at - 1, at + 1) if 0 <= other < len(points)]
        steps = [step / np.linalg.norm(step) for step in steps if step.any()]
        away = -np.sum(steps, axis=0) if steps else np.array([0.0, 1.0])
        if np.linalg.norm(away) < _STRAIGHT:
            away = np.array([-steps[0][1], steps[0][0]])
        x, y = away / np.linalg.norm(away)
        found.append((float(x), float(y)))
    return found


def main(words: Sequence[str]) -> int:
    """Parse, sample and score what is missing, then table and picture; the exit status.

    Raises:
        UserError: something that the user gave cannot be used.
        Stopped: a signal ended it.
    """
    given = _parse(words)
    guidances, out = guidances_of(given.guidances), local_of(given.out, "--out")
    stop_on_signals()
    index = open_index(given.data)
    model = load(given.model)
    index.check_model(resolution=model.image_shape[-1], channels=model.image_shape[0])
    if model.experiment.condition.kind != "class":
        raise UserError(
            f"model {given.model}",
            got=f"condition.kind {model.experiment.condition.kind}",
            expected="a model of classes, of which samples can be asked to be",
            remedy="choose a model that was trained with --condition.kind class",
        )
    names = checked_names(model.experiment.condition, index.classes, f"data {index.url} ({index.name})")
    fewest = FEWEST * len(names)
    refuse_broken([("--images", given.images, f"at least {fewest}, for all classes", given.images >= fewest)])
    named = named_networks(given, index)
    identities = [OWN if network is None else network.identity for network in named]
    request = {
        "benchmark": "guidance",
        "weights": tensors_sha256(model.weights),
        "data": index.fingerprint,
        "images": given.images,
        "seed": given.seed,
        **dict(zip(("features", "classifier"), identities, strict=True)),
    }
    open_folder(out, request, (POINTS, NETWORKS))
    place = {guidance: out / POINTS / f"{guidance:g}.json" for guidance in guidances}
    reference = out / "reference.json"
    missing = [guidance for guidance in guidances if not place[guidance].exists()]
    if missing or not reference.exists():
        # From seeds of their own: the judge is no copy of the network that measures the distances.
        network, judge = (named[seed] or own_network(given, index, seed, out / NETWORKS) for seed in range(len(named)))
        scorer = Scorer(index, network, judge)
        write_json(reference, {"accuracy": scorer.accuracy})
        for guidance in missing:
            scores, sheet = measure(model, names, guidance, given, scorer)
            place[guidance].with_suffix(".png").write_bytes(sheet)
            write_json(place[guidance], scores)
    points = [json.loads(place[guidance].read_text()) for guidance in guidances]
    accuracy = json.loads(reference.read_text())["accuracy"]
    text = table(points, accuracy)
    caption = (
        f"FID against accuracy over guidance w: {given.model}, step {model.step}, seed {given.seed}, "
        f"{counted(given.images, 'image')} at each w against {index.num_samples} of {index.name} {index.split}"
    )
    write_atomically(out / TABLE, text)
    write_atomically(out / CURVE, draw(points, accuracy, caption))
    print(text, end="")
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.guidance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a checkpoint, a run, or models:/NAME@latest")
    parser.add_argument("--data", required=True, help="URL of real images with the model's classes")
    parser.add_argument("--out", required=True, help="folder of results")
    parser.add_argument("--guidances", default="0,0.5,1,2,4", help="values of w, separated by commas")
    parser.add_argument("--images", type=whole_number, default=500, help="samples at each w")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the samples")
    parser.add_argument("--features", default=OWN, help=f"feature network of jobs/evaluate.py, or {OWN}")
    parser.add_argument("--classifier", default=OWN, help=f"classifier of jobs/evaluate.py, or {OWN}")
    parser.add_argument("--source", default=DEBIAN_FOLDER, help="folder of Fashion-MNIST's files")
    given = parser.parse_args(words)
    refuse_broken(
        [
            model_rule(given.model),
            place_rule("--data", given.data),
            ("--images", given.images, f"at least {_FEWEST}", given.images >= _FEWEST),
        ]
    )
    return given


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
