"""The classification job: labels by Bayes' rule over f(y, t, c), how right they are, and other images told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from drl_dist.build import build_ladder
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.data.index import open_index
from drl_dist.data.labels import checked_names, names_of
from drl_dist.data.subset import labels_of, spread
from drl_dist.jobs.classify.judged import (
    BAYES,
    CALIBRATED,
    EQUAL,
    all_constants,
    assumption,
    by_label,
    details,
    log_z,
    scores_by_name,
)
from drl_dist.jobs.classify.options import level_number
from drl_dist.jobs.classify.output import (
    KIND,
    PICTURE_NAME,
    PREDICTIONS_NAME,
    REPORT_NAME,
    predictions_bytes,
    reliability_png,
)
from drl_dist.jobs.classify.work import DATA, FIT, OTHER, Measured, Work, record_name
from drl_dist.jobs.common.output.image_job import ImageJob, ImageSet
from drl_dist.jobs.common.output.report import table
from drl_dist.likelihood.auroc import auroc
from drl_dist.likelihood.bayes import Constants, default_level, levels_to_try
from drl_dist.likelihood.calibration import Answers, LabelScores, most_telling
from drl_dist.likelihood.questions import check_seen, questions_of
from drl_dist.likelihood.trust import model_warnings

if TYPE_CHECKING:
    from drl_dist.config.condition import ConditionConfig
    from drl_dist.jobs.classify.options import ClassifyOptions

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
    data, fit, other = _images(options.data, "data", options.num_images), None, None
    if options.fit_data:
        fit = _images(options.fit_data, "fit data", None)
    if options.other:
        other = _images(options.other, "other images", options.num_images)
    fields = {
        "num_images": data.count,
        "level": options.level,
        "constants": options.constants,
        "num_draws": options.num_draws,
        "given": list(options.given_names),
    }
    job = ImageJob(KIND, options, {DATA: data, FIT: fit, OTHER: other}, fields)
    if fit is not None and fit.index.fingerprint == data.index.fingerprint:
        raise UserError(
            "option --fit-data",
            got=f"the images of --data, {options.fit_data}",
            expected="other images: constants that were fitted to the images they are judged by look too good",
            remedy="set a part of the labelled images aside for it",
        )
    condition = job.experiment.condition
    questions = questions_of(condition, options.given_names, f"model {options.model}", "option --given")
    _check_labels(condition, data, fit)
    tried = _levels_to_try(options, job, has_fit=fit is not None)
    records = [record_name(of, t) for of in (DATA, FIT, OTHER) for t in range(job.experiment.diffusion.num_levels)]
    if job.is_complete(records):
        return 0
    if fit is not None and options.constants == "fit":
        # Read before any work: what they lack is to be told before anything is written.
        answers = questions.answers(labels_of(fit.index, fit.count, condition.kind))
        remedy = "add labelled images, or use --constants equal"
        check_seen(questions, answers, f"fit data {fit.index.url}", remedy)
    work = _Classification(Work(job, questions, options), fit)
    level, rows = work.choose(tried)
    measured = work.work.measure(data, DATA, level)
    others = None if other is None else work.work.measure(other, OTHER, level)
    judged = work.judge(measured, level)
    report = {
        "kind": condition.kind,
        "labels": questions.asked_names,
        "given": list(options.given_names),
        "level": level,
        "num_draws": options.num_draws,
        "constants": work.name,
        "assumption": assumption(work.name, work.num_fitted, options.fit_data),
        "num_images": data.count,
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
        "step": job.model.step,
        "data": data.facts(),
        "fit_data": None if fit is None else fit.facts(),
        "other": None if other is None else other.facts(),
    }
    places = spread(data.index.num_samples, data.count)
    files = {PREDICTIONS_NAME: predictions_bytes(questions, judged[work.name], measured.keys, places)}
    if judged[work.name].num_known:
        caption = (
            f"labels inferred by energies of level {level}: {data.index.name} {data.index.split}, {options.model}, "
            f"step {job.model.step}, seed {options.seed}"
        )
        files[PICTURE_NAME] = reliability_png(questions, judged, work.name, caption)
    job.finish(report, files, _lines(options, report), records, model_warnings(job.experiment))
    return 0


def _images(url: str, what: str, count: int | None) -> ImageSet:
    index = open_index(url)
    return ImageSet(index, count or index.num_samples, what)


def _check_labels(condition: ConditionConfig, *sets: ImageSet | None) -> None:
    """Return if the images have the model's labels.

    Raises:
        UserError: they have none, or others.
    """
    for given in sets:
        if given is not None:
            what = f"{given.what} {given.index.url} ({given.index.name})"
            checked_names(condition, names_of(given.index, condition.kind), what)


def _levels_to_try(options: ClassifyOptions, job: ImageJob, *, has_fit: bool) -> list[int]:
    """The level asked for, or those of which the best is to be found.

    Raises:
        UserError: there is no such level.
    """
    num_levels = job.experiment.diffusion.num_levels
    number = level_number(options.level)
    if number is not None and number >= num_levels:
        raise UserError(
            "option --level",
            got=number,
            expected=f"auto, or a number from 0 to {num_levels - 1}, the levels of the model",
            remedy="correct the option",
        )
    if number is not None:
        return [number]
    return (
        levels_to_try(num_levels)
        if has_fit
        else [default_level(build_ladder(job.experiment.diffusion), job.experiment.model.data_std)]
    )


class _Classification:
    """Levels and constants, found by the fit data where there are any.

    Args:
        work: computes energies.
        fit: the fit data.
    """

    def __init__(self, work: Work, fit: ImageSet | None) -> None:
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
        found: list[tuple[int, LabelScores | None]] = []
        ladder = self.work.ladder
        for t in tried:
            measured = self._of_fit(t)
            scores = None if measured is None else self.judge(measured, t)[self.name].scores()
            noise_to_signal = float(ladder.cumulative_std[t] / ladder.cumulative_scale[t])
            rows.append({"level": t, "noise_to_signal": noise_to_signal})
            if scores is not None:
                rows[-1] |= {"fit_accuracy": scores.accuracy, "fit_log_loss": scores.log_loss}
            found.append((t, scores))
        return most_telling(found), rows

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
            self._measured[level] = self.work.measure(self._fit, FIT, level)
        return self._measured[level]


def _scores_of(judged: dict[str, Answers], name: str) -> dict[str, Any]:
    scores = judged[name].scores()
    return dict.fromkeys(("accuracy", "ece", "brier", "log_loss")) if scores is None else scores.as_json()


def _lines(options: ClassifyOptions, report: dict[str, Any]) -> list[str]:
    """What people are told of a report."""
    rows = [{"constants": name, **(scores or {})} for name, scores in report["by_constants"].items()]
    labelled = counted(report["num_labelled"], "labelled image")
    lines = [
        *table(_COLUMNS, rows),
        f"{labelled} of {report['num_images']} of {options.data} at level {report['level']}; constants "
        f"{report['constants']}: {report['assumption']}",
    ]
    if options.constants == "fit" and not options.fit_data:
        lines.append("without --fit-data nothing could be fitted: the constants are equal")
    if apart := report["out_of_distribution"]:
        summed = f", {apart['auroc_summed']:.4f} by their sum over all classes" if "auroc_summed" in apart else ""
        lines.append(
            f"AUROC {apart['auroc_unlabelled']:.4f} against {options.other} by energies without a label{summed}"
        )
    files = [REPORT_NAME, PREDICTIONS_NAME, *([PICTURE_NAME] if report["reliability"] else [])]
    return [*lines, f"{', '.join(files)} in {options.out}"]
