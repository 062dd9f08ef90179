"""What guidance costs and gains: FID and a classifier's accuracy of a conditional model's samples, over w.

    python -m benchmarks.guidance --model RUN --data URL --out FOLDER [--guidances 0,0.5,1,2,4 --images 500]

RUN is a checkpoint, a run or models:/NAME@latest of a model with classes; URL is a shard folder with these classes,
best one that the model was not trained on. All classes take turns, and every w starts from the same noise. Images are
scored against all of the data: FID, its mean over the classes, precision and recall by one network, and the share that
another one takes for what they were asked to be, or at least for one of its kind: --kinds "cat,lynx;dog,wolf" counts
the classes between two semicolons as one. As many images of f(y, t), drawn without a label, are scored as well: how
frequent each class is among them, next to its share of the data. By default both networks are small classifiers of
digits or of Fashion-MNIST, trained here from different seeds (--judge-seed is the second); --features and --classifier
name others, as for jobs/evaluate.py. FID of few images is too large, and comparable only between as many. A finished w
is kept: the same command resumes, also with further ones. Needs the extras `evaluation` and `prep`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.guidance_report import KINDS, draw, kinds_of, shares, table
from benchmarks.quality.data import check_source, load_data
from benchmarks.quality.features import feature_network
from benchmarks.quality.record import open_folder, write_atomically, write_json
from benchmarks.quality.settings import DATA
from datasets_prep._options import DEBIAN_FOLDER
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
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

POINTS, NETWORKS, UNLABELLED = "points", "networks", "unlabelled.json"
TABLE, CURVE = "table.md", "guidance.png"
CPU = torch.device("cpu")
OWN = "own"
_OWN_CLASSES = 10
_FEWEST = 20
_TOGETHER, _SHOWN = 500, 8


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
        known = self._labels[self._labels >= 0]
        self.reference = {
            "confusion": recognition(logits, self._labels).confusion.tolist(),
            "counts": torch.bincount(known, minlength=len(self._names)).tolist(),
        }
        """What the judge takes real images for, and how many there are of each class."""

    def score(self, images: Tensor, asked: Tensor) -> dict[str, Any]:
        """All scores of generated images, uint8 (N, C, H, W), asked to be of the classes (N,)."""
        values = features_of(self._network, images.split(_TOGETHER)).values
        seen = recognition(self._seen(images), asked)
        fids = class_fids(values, asked, self._real, self._labels, self._names)
        return {
            **self._distances(values),
            "intra_fid": intra_fid(fids),
            "accuracy_of_classes": dict(zip(self._names, seen.by_class, strict=True)),
            "confusion": seen.confusion.tolist(),
        }

    def score_unlabelled(self, images: Tensor) -> dict[str, Any]:
        """All scores of images that were drawn without a label, uint8 (N, C, H, W)."""
        taken = self._seen(images).argmax(1)
        return {
            **self._distances(features_of(self._network, images.split(_TOGETHER)).values),
            "counts": torch.bincount(taken, minlength=len(self._names)).tolist(),
        }

    def _seen(self, images: Tensor) -> Tensor:
        return class_logits(features_of(self._judge, images.split(_TOGETHER)))

    def _distances(self, values: Tensor) -> dict[str, float]:
        # Of as many images of either set, evenly spread: either may be ordered by class.
        count = min(len(values), len(self._real))
        precision, recall = precision_recall(*(some[spread(len(some), count)] for some in (values, self._real)))
        return {"fid": fid(values, self._real), "precision": precision, "recall": recall}


def measure_unlabelled(model: Model, given: argparse.Namespace, scorer: Scorer) -> Any:
    """Samples of f(y, t), their picture and their scores."""
    print("no label", file=sys.stderr, flush=True)
    began = time.perf_counter()
    images = model.sample(given.images, seed=given.seed, batch_size=min(given.images, _TOGETHER))
    seconds = time.perf_counter() - began
    sheet = Panel(title="no label", images=images[: _SHOWN * len(scorer.reference["counts"])], columns=_SHOWN)
    caption = f"{given.model}, step {model.step}, seed {given.seed}, no label"
    scores = scorer.score_unlabelled(images) | {"seconds_per_image": seconds / given.images}
    return scores, sheet_of([sheet], caption)


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
    kinds = kinds_of(KINDS.get(index.name, "") if given.kinds is None else given.kinds, names)
    named = named_networks(given, index)
    identities = [OWN if network is None else network.identity for network in named]
    request = {
        "benchmark": "guidance",
        "weights": tensors_sha256(model.weights),
        "data": index.fingerprint,
        "images": given.images,
        "seed": given.seed,
        **dict(zip(("features", "classifier"), identities, strict=True)),
        "judge_seed": given.judge_seed if named[1] is None else None,
    }
    open_folder(out, request, (POINTS, NETWORKS))
    place = {guidance: out / POINTS / f"{guidance:g}.json" for guidance in guidances}
    unlabelled, reference = out / POINTS / UNLABELLED, out / "reference.json"
    missing = [guidance for guidance in guidances if not place[guidance].exists()]
    if missing or not unlabelled.exists() or not reference.exists():
        # From seeds of their own: the judge is no copy of the network that measures the distances.
        seeds = (0, given.judge_seed)
        network, judge = (
            some or own_network(given, index, seed, out / NETWORKS) for some, seed in zip(named, seeds, strict=True)
        )
        scorer = Scorer(index, network, judge)
        write_json(reference, scorer.reference)
        for guidance in missing:
            scores, sheet = measure(model, names, guidance, given, scorer)
            place[guidance].with_suffix(".png").write_bytes(sheet)
            write_json(place[guidance], scores)
        if not unlabelled.exists():
            scores, sheet = measure_unlabelled(model, given, scorer)
            unlabelled.with_suffix(".png").write_bytes(sheet)
            write_json(unlabelled, scores)
    points = [json.loads(place[guidance].read_text()) for guidance in guidances]
    free, real = json.loads(unlabelled.read_text()), json.loads(reference.read_text())
    text = table(points, free, real, kinds) + "\n" + shares(names, free["counts"], real["counts"])
    caption = (
        f"FID against accuracy over guidance w: {given.model}, step {model.step}, seed {given.seed}, "
        f"{counted(given.images, 'image')} at each w against {index.num_samples} of {index.name} {index.split}"
    )
    write_atomically(out / TABLE, text)
    write_atomically(out / CURVE, draw(points, real, caption))
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
    parser.add_argument("--judge-seed", type=whole_number, default=1, help=f"of the classifier, where it is {OWN}")
    parser.add_argument("--kinds", help='classes that count as one, "a,b;c,d"; of Fashion-MNIST by default its four')
    parser.add_argument("--source", default=DEBIAN_FOLDER, help="folder of Fashion-MNIST's files")
    given = parser.parse_args(words)
    refuse_broken(
        [
            model_rule(given.model),
            place_rule("--data", given.data),
            ("--images", given.images, f"at least {_FEWEST}", given.images >= _FEWEST),
            ("--judge-seed", given.judge_seed, "another than 0, that of the features", given.judge_seed > 0),
        ]
    )
    return given


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
