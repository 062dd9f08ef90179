"""The classification job: labels by Bayes' rule over f(y, t, c), how right they are, and other images told apart."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from drl_dist.build import build_ladder
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.labels import checked_names, names_of
from drl_dist.data.subset import check_count, labelled_batches, spread
from drl_dist.jobs.classify.judged import (
    BAYES,
    CALIBRATED,
    EQUAL,
    Answers,
    all_constants,
    assumption,
    by_label,
    check_seen,
    default_level,
    details,
    log_z,
    scores_by_name,
)
from drl_dist.jobs.classify.options import ClassifyOptions, level_number
from drl_dist.jobs.classify.output import (
    PICTURE_NAME,
    PREDICTIONS_NAME,
    REPORT_NAME,
    predictions_bytes,
    reliability_png,
)
from drl_dist.jobs.classify.questions import questions_of
from drl_dist.jobs.classify.work import SETS, Measured, Work, record_name
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.common.output.job_folder import JobFolder
from drl_dist.jobs.common.output.report import evenly_spread, report_bytes, table
from drl_dist.library.engine import averaged_network
from drl_dist.library.stored import TrainedModel, load_model
from drl_dist.likelihood.auroc import auroc
from drl_dist.likelihood.bayes import Constants
from drl_dist.likelihood.trust import model_warnings

JOB = "drl_dist.classify"
MAX_LEVELS_TRIED = 20
_FILES = (PREDICTIONS_NAME, PICTURE_NAME)
_COLUMNS = [
    ("constants", 12, "{constants}"),
    ("accuracy", 9, "{accuracy:.4f}"),
    ("ECE", 7, "{ece:.4f}"),
    ("Brier", 7, "{brier:.4f}"),
    ("log loss", 9, "{log_loss:.4f}"),
]


def classify_run(options: ClassifyOptions) -> int:
    """Infer the labels of images, or what an earlier start has left of it; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.classify.options.check_classify`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    device = prepare_device(device_name(options.use_gpu))
    data = open_index(options.data)
    fit = open_index(options.fit_data) if options.fit_data else None
    other = open_index(options.other) if options.other else None
    count = options.num_images or data.num_samples
    request: dict[str, Any] = {
        "data_fingerprint": data.fingerprint,
        "fit_fingerprint": None if fit is None else fit.fingerprint,
        "other_fingerprint": None if other is None else other.fingerprint,
        "num_images": count,
        "level": options.level,
        "constants": options.constants,
        "num_draws": options.num_draws,
        "given": list(options.given_names),
        "batch_size": options.batch_size,
        "seed": options.seed,
        "device": device.type,
    }
    folder = JobFolder(
        options.out,
        job=JOB,
        result=REPORT_NAME,
        written=list(map(re.escape, _FILES)),
        records=[rf"({'|'.join(SETS)})-\d+\.safetensors"],
    )
    folder.check(request)
    check_count(data, count, what="data", option="--num-images")
    other_count = 0 if other is None else options.num_images or other.num_samples
    if other is not None:
        check_count(other, other_count, what="other images", option="--num-images")
    if fit is not None and fit.fingerprint == data.fingerprint:
        raise UserError(
            "option --fit-data",
            got=f"the images of --data, {options.fit_data}",
            expected="other images: constants that were fitted to the images they are judged by look too good",
            remedy="set a part of the labelled images aside for it",
        )
    model = load_model(options.model, options.tracking_uri, options.allow_code)
    questions = questions_of(model.experiment.condition, options.given_names, options.model)
    _check_data(model, data, fit, other)
    tried = _levels_to_try(options, model, has_fit=fit is not None)
    request |= {
        "preset": model.experiment.preset,
        "step": model.step,
        "ema_sha256": model.ema_sha256,
        "config_sha256": model.config_sha256,
    }
    records = [record_name(of, t) for of in SETS for t in range(model.experiment.diffusion.num_levels)]
    if folder.is_complete(request):
        folder.clean_up(request, records=records, files=_FILES)
        print(f"{options.out} already holds this classification, in {REPORT_NAME}; nothing to do", flush=True)
        return 0
    if fit is not None and options.constants == "fit":
        check_seen(questions, questions.answers(_labels_of(fit, model, options.batch_size)), fit.url)
    network = averaged_network(model.experiment, model.ema, device)
    work = _Classification(Work(folder, request, network, model.experiment, questions, options), fit)
    level, rows = work.choose(tried)
    measured = work.work.measure(data, count, "data", level)
    others = None if other is None else work.work.measure(other, other_count, "other", level)
    judged = work.judge(measured, level)
    warnings = model_warnings(model.experiment)
    report = {
        "kind": model.experiment.condition.kind,
        "labels": questions.asked_names,
        "given": list(options.given_names),
        "level": level,
        "num_draws": options.num_draws,
        "constants": work.name,
        "assumption": assumption(work.name, work.num_fitted, options.fit_data),
        "num_images": count,
        "num_labelled": int((judged[work.name].answers >= 0).any(1).sum()),
        **_scores_of(judged, work.name),
        "by_constants": scores_by_name(judged),
        **details(questions, judged[work.name]),
        "inverse_temperature": work.inverse_temperature(level),
        "offsets": by_label(questions, work.constants(level)[work.name].offset),
        "log_z": work.log_z(level),
        "levels": rows,
        "out_of_distribution": None if others is None else work.apart(measured, others, level),
        "seed": options.seed,
        "model": options.model,
        "step": model.step,
        "data": _facts(data),
        "fit_data": None if fit is None else _facts(fit),
        "other": None if other is None else _facts(other),
        "warnings": list(warnings),
    }
    places = spread(data.num_samples, count)
    folder.files.write(PREDICTIONS_NAME, predictions_bytes(questions, judged[work.name], measured.keys, places))
    if judged[work.name].num_known:
        caption = (
            f"labels inferred by energies of level {level}: {data.name} {data.split}, {options.model}, step "
            f"{model.step}, seed {options.seed}"
        )
        folder.files.write(PICTURE_NAME, reliability_png(questions, judged, work.name, caption))
    folder.finish(report_bytes(report))
    folder.clean_up(request, records=records, files=_FILES)
    _print(options, report)
    return 0


def _check_data(model: TrainedModel, data: ShardIndex, fit: ShardIndex | None, other: ShardIndex | None) -> None:
    """Return if the model can be asked about the images.

    Raises:
        UserError: they have another shape or other labels.
    """
    condition: ConditionConfig = model.experiment.condition
    for index, what in ((data, "data"), (fit, "fit data"), (other, "other images")):
        if index is None:
            continue
        index.check_model(resolution=model.experiment.model.resolution, channels=model.experiment.model.channels)
        if index is not other:
            checked_names(condition, names_of(index, condition.kind), f"{what} {index.url} ({index.name})")


def _labels_of(index: ShardIndex, model: TrainedModel, batch_size: int) -> Tensor:
    """The labels of all images, read before any work: what they lack is to be told before anything is written."""
    batches = labelled_batches(index, index.num_samples, batch_size, model.experiment.condition.kind)
    return torch.cat([batch.labels for batch in batches])


def _levels_to_try(options: ClassifyOptions, model: TrainedModel, *, has_fit: bool) -> list[int]:
    """The level asked for, or those of which the best is to be found.

    Raises:
        UserError: there is no such level.
    """
    diffusion = model.experiment.diffusion
    number = level_number(options.level)
    if number is not None and number >= diffusion.num_levels:
        raise UserError(
            "option --level",
            got=number,
            expected=f"auto, or a number from 0 to {diffusion.num_levels - 1}, the levels of the model",
            remedy="correct the option",
        )
    if number is not None:
        return [number]
    if has_fit:
        return evenly_spread(diffusion.num_levels, MAX_LEVELS_TRIED)
    return [default_level(build_ladder(diffusion), model.experiment.model.data_std)]


class _Classification:
    """Levels and constants, found by the fit data where there are any.

    Args:
        work: computes energies.
        fit: the fit data.
    """

    def __init__(self, work: Work, fit: ShardIndex | None) -> None:
        self.work, self._fit, self._questions = work, fit, work.questions
        self.is_fitted = fit is not None and work.options.constants == "fit"
        self.name = CALIBRATED if self.is_fitted else EQUAL
        """Of the constants that labels are inferred with."""
        self._measured: dict[int, Measured] = {}
        self._constants: dict[int, dict[str, Constants]] = {}

    def constants(self, level: int) -> dict[str, Constants]:
        """Those of a level, by name."""
        if level not in self._constants:
            measured = self._of_fit(level)
            if measured is None or not self.is_fitted:
                self._constants[level] = {EQUAL: Constants.equal(*self._questions.shape)}
            else:
                answers = self._questions.answers(measured.labels)
                self._constants[level] = all_constants(self._questions.energies(measured.energies), answers)
        return self._constants[level]

    def choose(self, tried: list[int]) -> tuple[int, list[dict[str, Any]]]:
        """The most accurate level on the fit data, of equal ones that of the smaller log loss; and each one's worth."""
        rows: list[dict[str, Any]] = []
        ladder = build_ladder(self.work.experiment.diffusion)
        for t in tried:
            row: dict[str, Any] = {
                "level": t,
                "noise_to_signal": float(ladder.cumulative_std[t] / ladder.cumulative_scale[t]),
            }
            measured = self._of_fit(t)
            if measured is not None and (scores := self.judge(measured, t)[self.name].scores()) is not None:
                row |= {"fit_accuracy": scores.accuracy, "fit_log_loss": scores.log_loss}
            rows.append(row)
        best = max(rows, key=lambda row: (row.get("fit_accuracy", 0.0), -row.get("fit_log_loss", math.inf)))
        return best["level"], rows

    def judge(self, measured: Measured, level: int) -> dict[str, Answers]:
        """Answers under each set of constants."""
        energies, answers = self._questions.energies(measured.energies), self._questions.answers(measured.labels)
        return {
            name: Answers(constants.log_posterior(energies), answers)
            for name, constants in self.constants(level).items()
        }

    @property
    def num_fitted(self) -> int:
        """Images that the constants were fitted to."""
        if not self.is_fitted:
            return 0
        measured = next(iter(self._measured.values()))
        return int((self._questions.answers(measured.labels) >= 0).any(1).sum())

    def inverse_temperature(self, level: int) -> Any:
        """Of the class, or of each attribute by name."""
        beta = self.constants(level)[self.name].beta.tolist()
        return beta[0] if self._questions.is_class else dict(zip(self._questions.asked_names, beta, strict=True))

    def log_z(self, level: int) -> dict[str, Any] | None:
        """log Z of the labels up to a constant, None where it was not fitted."""
        measured = self._of_fit(level)
        if measured is None or not self.is_fitted:
            return None
        return log_z(self._questions, self.constants(level)[BAYES], self._questions.answers(measured.labels))

    def apart(self, data: Measured, others: Measured, level: int) -> dict[str, Any]:
        """How well log-densities tell the data from other images: those without a label, and those summed over classes.

        The offsets are those of Bayes' rule, at inverse temperature 1: log p(y), were the energies log-densities.
        """
        unlabelled = (measured.energies[:, -1].contiguous() for measured in (data, others))
        found: dict[str, Any] = {"auroc_unlabelled": auroc(*unlabelled)}
        if self._questions.is_class:
            constants = self.constants(level)[BAYES if self.is_fitted else EQUAL]

            def evidence(measured: Measured) -> Tensor:
                return constants.log_evidence(self._questions.energies(measured.energies))[:, 0].contiguous()

            found["auroc_summed"] = auroc(evidence(data), evidence(others))
        return found | {"num_other": len(others.energies)}

    def _of_fit(self, level: int) -> Measured | None:
        if self._fit is None:
            return None
        if level not in self._measured:
            self._measured[level] = self.work.measure(self._fit, self._fit.num_samples, "fit", level)
        return self._measured[level]


def _scores_of(judged: dict[str, Answers], name: str) -> dict[str, Any]:
    scores = judged[name].scores()
    return dict.fromkeys(("accuracy", "ece", "brier", "log_loss")) if scores is None else scores.as_json()


def _facts(index: ShardIndex) -> dict[str, Any]:
    return {"url": index.url, "fingerprint": index.fingerprint}


def _print(options: ClassifyOptions, report: dict[str, Any]) -> None:
    rows = [{"constants": name, **(scores or {})} for name, scores in report["by_constants"].items()]
    print("\n".join(table(_COLUMNS, rows)))
    labelled = counted(report["num_labelled"], "labelled image")
    print(f"{labelled} of {report['num_images']} of {options.data} at level {report['level']}; constants ", end="")
    print(f"{report['constants']}: {report['assumption']}")
    if options.constants == "fit" and not options.fit_data:
        print("without --fit-data nothing could be fitted: the constants are equal")
    if apart := report["out_of_distribution"]:
        summed = f", {apart['auroc_summed']:.4f} by their sum over all classes" if "auroc_summed" in apart else ""
        print(
            f"AUROC {apart['auroc_unlabelled']:.4f} against {options.other} by energies without a label{summed}",
        )
    files = [REPORT_NAME, PREDICTIONS_NAME, *([PICTURE_NAME] if report["reliability"] else [])]
    print(f"{', '.join(files)} in {options.out}", flush=True)
    for text in report["warnings"]:
        print(f"warning: {text}", flush=True)
