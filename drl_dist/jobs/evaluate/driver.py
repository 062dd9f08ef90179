"""The scoring job: generated images against real ones, in this process alone."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten
from drl_dist.common.validation import file_of
from drl_dist.common.waiting import Waiting
from drl_dist.data.filesystem import Folder, check_writable_file
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.manifest import Origin, read_origin
from drl_dist.data.subset import check_count, spread
from drl_dist.evaluation.classes import intra_fid, load_classifier
from drl_dist.evaluation.distances import KID_SUBSET_SIZE, fid, inception_score, kid, precision_recall
from drl_dist.evaluation.feature_cache import cached_features
from drl_dist.evaluation.feature_spec import default_cache_dir
from drl_dist.evaluation.features import FeatureNetwork, Features
from drl_dist.evaluation.networks import load_network
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.common.output.job_folder import read_json, refuse_other
from drl_dist.jobs.common.output.report import report_bytes
from drl_dist.jobs.evaluate.labelled import class_fids, judged_by, read_labels, told_by_class
from drl_dist.jobs.evaluate.options import EvaluateOptions, check_evaluate
from drl_dist.tracking.job_runs import JobRun, RegisteredVersion, find_version, job_run_name, log_or_warn, warn_unlogged

PRC_IMAGES = 10_000
"""Largest number of images of each set of a precision and a recall, evenly spread: distances go with its square."""
_WHAT, _LATER = "the scores are", "The same command logs them later, from kept features."


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one set of generated images."""

    fid: float
    kid: float
    """Mean over subsets; about 0, and then also below it, for images of the same law."""
    kid_std: float
    inception_score: float | None
    """None if the feature network gives no logits."""
    inception_score_std: float | None
    precision: float
    """Share of generated images within the manifold of the real ones, of at most `PRC_IMAGES`."""
    recall: float
    """Share of real images within that of the generated ones."""
    intra_fid: float | None = None
    """Mean FID of the classes; None if it was not asked for."""
    accuracy: float | None = None
    """Share of generated images that the classifier takes for what was asked; None without a classifier."""

    def metrics(self) -> dict[str, float]:
        """Those that there are, by metric name."""
        return {f"score/{name}": value for name, value in dataclasses.asdict(self).items() if value is not None}


def evaluate_run(options: EvaluateOptions) -> int:
    """Score images; the exit status.

    Raises:
        UserError: something that the user gave cannot be used; nothing was written but features.
    """
    spec, classifier = check_evaluate(options)
    if options.json:
        check_writable_file(options.json, "option --json")
    _check_uri(options.tracking_uri)
    device = prepare_device(device_name(options.use_gpu))
    samples, data = open_index(options.samples), open_index(options.data)
    check_alike(samples, data)
    check_count(samples, options.num_images, what="samples", option="--num-images")
    check_count(data, options.num_images, what="data", option="--num-images")
    compared = _compared(options, samples, data)
    _check_report(options, compared)
    labels = read_labels(options, samples, data)
    origin = read_origin(options.samples)
    # Before the work, so that a mistake in the tracking shows early; it keeps the scores from nobody.
    tracked = _tracked_model(options, origin)
    network = load_network(spec, device)
    judge = None
    if classifier is not None and labels is not None:
        judge = load_classifier(classifier, device, samples, labels.names)
    extras = {"per_class": options.per_class, "classifier": None if judge is None else judge.identity}
    _check_report(options, compared | {"feature_network": network.identity, "extras": extras})

    def features(by: FeatureNetwork, index: ShardIndex, what: str) -> Features:
        cache_dir = Path(options.cache_dir) if options.cache_dir else default_cache_dir()
        count, size = options.num_images, options.batch_size
        return cached_features(index, count, by, cache_dir=cache_dir, batch_size=size, what=what)

    generated, real = features(network, samples, "samples"), features(network, data, "data")
    judged = None
    if judge is not None and labels is not None:
        seen = features(judge, samples, "samples by the classifier")
        of_data = features(judge, data, "data by the classifier") if labels.known is not None else None
        judged = judged_by(judge, seen, of_data, labels)
    with Waiting("scores", stream=sys.stderr) as waiting:
        waiting.begin("computing them from the features", is_told=False)
        scores = score(generated, real)
        by_class = class_fids(generated, real, labels) if options.per_class and labels is not None else None
    scores = dataclasses.replace(
        scores,
        intra_fid=None if by_class is None else intra_fid(by_class),
        accuracy=None if judged is None else judged.samples.accuracy,
    )
    _print(scores, network, options)
    report = _report(scores, network, options, samples, data, origin) | {"extras": extras}
    report |= told_by_class(by_class, judged, labels)
    if options.json:
        folder, name = file_of(options.json, "option --json")
        Folder(folder).write(name, report_bytes(report))
    if tracked is not None:
        log_or_warn(options.tracking_uri, _job_run(options, tracked, scores, report), what=_WHAT, later=_LATER)
    return 0


def _compared(options: EvaluateOptions, samples: ShardIndex, data: ShardIndex) -> dict[str, Any]:
    """What a report is of, the feature network apart, as it stands in the report."""
    return {
        "num_images": options.num_images,
        "samples": {"fingerprint": samples.fingerprint},
        "data": {"fingerprint": data.fingerprint},
    }


def _check_report(options: EvaluateOptions, compared: Mapping[str, Any]) -> None:
    """Return if a report of something else would not be written over.

    Raises:
        UserError: the file of ``--json`` is there, and is no report of this comparison.
    """
    if not options.json:
        return
    folder, name = file_of(options.json, "option --json")
    found = read_json(Folder(folder), name, what=f"file {options.json}", option="--json")
    if found is None:
        return
    known, wanted = flatten(found), flatten(dict(compared))
    expected, remedy = "no such file, or scores of this comparison", "choose another --json"
    if not {"fid", "num_images", "samples.fingerprint", "data.fingerprint"} <= known.keys():
        raise UserError(f"file {options.json}", got="JSON of something else", expected=expected, remedy=remedy)
    # What the file lacks may be added to it, but nothing that it has goes.
    wanted = {field: value for field, value in wanted.items() if not field.startswith("extras.") or known.get(field)}
    refuse_other(
        f"file {options.json}",
        {field: known.get(field, "absent") for field in wanted},
        wanted,
        noun="the scores of another comparison",
        expected=expected,
        remedy=remedy,
    )


def score(generated: Features, real: Features) -> Scores:
    """All scores of generated images against real ones."""
    some = [values[spread(len(values), min(len(values), PRC_IMAGES))] for values in (generated.values, real.values)]
    precision, recall = precision_recall(*some)
    kid_mean, kid_std = kid(generated.values, real.values)
    isc_mean, isc_std = (None, None) if generated.logits is None else inception_score(generated.logits)
    return Scores(
        fid=fid(generated.values, real.values),
        kid=kid_mean,
        kid_std=kid_std,
        inception_score=isc_mean,
        inception_score_std=isc_std,
        precision=precision,
        recall=recall,
    )


def check_alike(one: ShardIndex, other: ShardIndex) -> None:
    """Return if the images of two data sets have the same size and colours.

    Raises:
        UserError: they do not.
    """
    if (one.resolution, one.channels) != (other.resolution, other.channels):
        found = [f"{index.resolution}x{index.resolution} pixels, {index.channels} channels" for index in (one, other)]
        raise UserError(
            f"images of {one.url} and {other.url}",
            got=" against ".join(found),
            expected="images of one size and as many channels",
            remedy="prepare the data again at the resolution of the samples",
        )


def _print(scores: Scores, network: FeatureNetwork, options: EvaluateOptions) -> None:
    print(f"FID {scores.fid:.4f}")
    subsets = f"std over subsets {scores.kid_std:.6f}" if options.num_images > KID_SUBSET_SIZE else "one subset: no std"
    print(f"KID {scores.kid:.6f} ({subsets})")
    most = f", of {PRC_IMAGES} of them" if options.num_images > PRC_IMAGES else ""
    print(f"precision {scores.precision:.4f}, recall {scores.recall:.4f} (third neighbours{most})")
    if scores.inception_score is None:
        print(f"inception score: left out, since {network.name} gives no logits")
    else:
        print(f"inception score {scores.inception_score:.4f} (std over splits {scores.inception_score_std:.4f})")
    print(
        f"of {counted(options.num_images, 'image')} of {options.samples} "
        f"against as many of {options.data}, by {network.name}"
    )


def _report(
    scores: Scores,
    network: FeatureNetwork,
    options: EvaluateOptions,
    samples: ShardIndex,
    data: ShardIndex,
    origin: Origin | None,
) -> dict[str, Any]:
    return {
        **dataclasses.asdict(scores),
        "num_images": options.num_images,
        "features": network.name,
        "feature_network": network.identity,
        "samples": {"url": samples.url, "fingerprint": samples.fingerprint, "num_images": samples.num_samples},
        "data": {"url": data.url, "fingerprint": data.fingerprint, "num_images": data.num_samples},
        "model": None if origin is None else dataclasses.asdict(origin),
        "versions": {name: version(name) for name in ("torch", "torch-fidelity")},
    }


def _tracked_model(options: EvaluateOptions, origin: Origin | None) -> RegisteredVersion | None:
    uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    if origin is None or origin.name is None or origin.version is None:
        print(f"not logged to MLflow: {options.samples} names no registered model as its origin", flush=True)
        return None
    try:
        return find_version(uri, origin.name, origin.version, origin.ema_sha256)
    except UserError as error:
        warn_unlogged(error, what=_WHAT, later=_LATER)
        return None


def _check_uri(uri: str | None) -> None:
    """Refuse an option that no server can have; what the environment says may be meant for other programs."""
    if uri is not None:
        from drl_dist.tracking.server.client import server_uri

        server_uri(uri)


def _job_run(options: EvaluateOptions, model: RegisteredVersion, scores: Scores, report: Mapping[str, Any]) -> JobRun:
    """What is logged: one run for each comparison, whatever the number of starts."""
    compared = [report["samples"]["fingerprint"], report["data"]["fingerprint"], report["feature_network"]]
    # Runs without them keep the names that earlier versions gave them.
    extras = [report["extras"]] if any(report["extras"].values()) else []
    metrics = scores.metrics()
    return JobRun(
        kind="scores",
        version=model,
        name=job_run_name("scores", model.name, json.dumps([*compared, options.num_images, *extras])),
        params={
            "features": report["features"],
            "feature_network": report["feature_network"],
            "num_images": options.num_images,
            "samples_fingerprint": compared[0],
            "data_fingerprint": compared[1],
        },
        tags={"samples_url": options.samples, "data_url": options.data},
        metrics=[(name, value, model.step) for name, value in metrics.items()],
        # A metric's name may hold a slash, which a tag's may not everywhere.
        version_tags={name.rsplit("/", 1)[-1]: repr(value) for name, value in metrics.items()},
    )
