"""The output folder of a likelihood job: step sizes, results of finished tasks, weights, picture, report."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from drl_dist.common.amounts import counted, evenly_spread
from drl_dist.common.figures import SMALLEST_POINTS, figure_png, new_figure
from drl_dist.jobs.common.output.job_folder import JobFolder, read_json
from drl_dist.jobs.common.output.report import Column, report_bytes, table
from drl_dist.jobs.common.step_sizes import STEP_SIZES_NAME, read_step_sizes, write_step_sizes
from drl_dist.jobs.likelihood.task import LikelihoodRequest, TaskResult
from drl_dist.likelihood.partition import LogZ
from drl_dist.likelihood.report import NEGATIVE, Report, summary, unknown_first
from drl_dist.likelihood.weights import MARKOV_CONFIDENCE
from drl_dist.mcmc.adaptation import StepSizes

REPORT_NAME = "likelihood.json"
FIGURE_NAME = "log_z.png"
WEIGHTS_NAME = "log_weights.safetensors"
_WRITTEN = (STEP_SIZES_NAME, WEIGHTS_NAME, FIGURE_NAME)
SHOWN_LEVELS = 12
"""Lines of the printed table; likelihood.json has all levels."""
_COLUMNS: tuple[Column, ...] = (
    ("level", 5, "{level}"),
    ("log ratio", 11, "{log_z_ratio:.3f}"),
    ("log Z", 12, "{log_z:.3f}"),
    ("ESS", 8, "{effective_sample_size:.1f}"),
    ("ESS so far", 10, "{cumulative_effective_sample_size:.1f}"),
    ("acceptance", 10, "{acceptance_rate:.3f}"),
    ("rms", 7, "{root_mean_square:.3f}"),
)


class LikelihoodOutput:
    """An output folder and the request that it is for.

    Args:
        url: the folder.
        request: what is wanted.
        num_levels: T of the model.
    """

    def __init__(self, url: str, request: LikelihoodRequest, num_levels: int) -> None:
        self._request, self._num_levels = request, num_levels
        self._job = JobFolder(
            url,
            result=REPORT_NAME,
            request_of_result=self._read_request,
            # Such as the step sizes of a long run; ours would take their place.
            written=list(map(re.escape, _WRITTEN)),
            records=[r"\d{6,}\.safetensors"],
        )
        self.url, self._folder, self._records = self._job.url, self._job.files, self._job.records
        self._fields = request.fields
        self._report: dict[str, Any] | None = None

    def finished_report(self) -> dict[str, Any] | None:
        """The report, which is written last, if it is there.

        Raises:
            UserError: the storage does not answer, or the folder holds something else.
        """
        return self._report if self._job.is_complete(self._fields) else None

    def begin(self) -> None:
        """Write what the folder is for; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        self._job.begin(self._fields)

    def schedule(self) -> StepSizes | None:
        """The step sizes that an earlier start left here, None if it left none."""
        if STEP_SIZES_NAME not in self._folder.sizes():
            return None
        return read_step_sizes(self.url, self._request.ema_sha256, self._num_levels, "marginal")

    def write_step_sizes(self, schedule: StepSizes) -> None:
        """Keep the step sizes."""
        write_step_sizes(self.url, schedule, self._request.ema_sha256)

    def finished(self) -> dict[int, TaskResult]:
        """The results of the tasks that earlier starts finished, by number."""
        tasks = {name: task for task, name in enumerate(self._record_names())}
        results = {
            tasks[name]: TaskResult.from_bytes(data, self._request) for name, data in self._records.present(tasks)
        }
        return {task: result for task, result in results.items() if result is not None}

    def keep(self, task: int, result: TaskResult) -> None:
        """Keep the result of a finished task, so that a later start skips it."""
        self._records.write({f"{task:06d}.safetensors": result.to_bytes(self._request)})

    def write_weights(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Keep all weights and log-densities, from which everything in the report follows."""
        self._folder.write(WEIGHTS_NAME, save(dict(arrays), {"request": self._request.digest}))

    def write_figure(self, picture: bytes) -> None:
        """Keep the picture, a PNG."""
        self._folder.write(FIGURE_NAME, picture)

    def finish(self, content: Mapping[str, Any], *, keep_records: bool = False) -> bytes:
        """Write the report, which completes the folder, and remove the records; the report's bytes.

        Args:
            keep_records: leave them, from which a later start logs what could not be logged.
        """
        data = report_bytes({"request": self._fields, **content})
        self._job.finish(data)
        if not keep_records:
            self.clean_up()
        return data

    def clean_up(self) -> None:
        """Remove the records of this request, and what a killed writer of its files left; nothing else."""
        self._job.clean_up(self._fields, records=self._record_names(), files=_WRITTEN)

    def _record_names(self) -> list[str]:
        return [f"{task:06d}.safetensors" for task in range(len(self._request.tasks()))]

    def _read_request(self) -> Mapping[str, Any]:
        """What a complete folder was made for."""
        self._report = read_json(self._folder, REPORT_NAME) or {}
        request = self._report.get("request")
        return request if isinstance(request, dict) else {}


def figure(report: Report, caption: str) -> bytes:
    """Both estimates of log Z over the number of chains, for every chain length, as a PNG.

    Figure 7, right, shows the lower one alone, from single steps between levels.

    Args:
        caption: data, model, step and seed.
    """
    drawing = new_figure(8, 4.8)
    axes = drawing.subplots()
    for place, estimate in enumerate(report.estimates):
        colour, steps = f"C{place}", _steps(estimate.steps_per_level)
        lower, upper = estimate.lower_curve, estimate.upper_curve
        axes.plot(lower.num_chains, lower.log_z, "-o", color=colour, markersize=3, label=f"{steps}, from below")
        axes.plot(upper.num_chains, upper.log_z, "--s", color=colour, markersize=3, label=f"{steps}, from above")
    axes.set_xscale("log", base=2)
    axes.set_title(textwrap.fill(summary(report), 100), fontsize=SMALLEST_POINTS)
    axes.set(xlabel="number of chains", ylabel="log Z of y_0 (nats)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=SMALLEST_POINTS, title="estimates that bound log Z on average", title_fontsize=SMALLEST_POINTS)
    return figure_png(drawing, caption)


def level_table(bound: LogZ) -> list[str]:
    """Some of the levels as lines of text, those that few chains carry marked; what is not known is a dash."""
    shown = set(evenly_spread(len(bound.levels), SHOWN_LEVELS))
    rows = [row for row in bound.levels if row.level in shown]
    titles, *lines = table(_COLUMNS, map(dataclasses.asdict, rows))
    marks = ("  few chains" if row.is_carried_by_few else "" for row in rows)
    return [titles, *(line + mark for line, mark in zip(lines, marks, strict=True))]


def report_lines(report: Report, num_images: int) -> Sequence[str]:
    """The report as lines of text."""
    lines = [summary(report)]
    for estimate in report.estimates:
        lower, upper = estimate.lower, estimate.upper
        lines += [
            f"{_steps(estimate.steps_per_level)}, estimates that bound log Z on average:",
            f"  from below {_estimate(lower)}, from above {_estimate(upper)}",
            f"  log Z is at least {lower.limit:.3f} with a probability of {_percent(MARKOV_CONFIDENCE)}, and if the "
            f"{_starts(report)} are draws from the model at most {upper.limit:.3f} with "
            f"{_percent(MARKOV_CONFIDENCE)}, both with {_percent(2 * MARKOV_CONFIDENCE - 1)}",
        ]
    best = report.estimates[-1]
    lines += ["levels, from white noise down:", *level_table(best.lower)]
    lines += [f"levels, from {_starts(report)} up:", *level_table(best.upper)]
    for name, bits in (("dequantised images", report.at_data), ("x_0, with the ladder's noise", report.at_x_0)):
        numbers = (
            f"on average from {bits.lower:.4f} (standard error {bits.lower_standard_error:.2g}) to {bits.upper:.4f} "
            f"({bits.upper_standard_error:.2g})"
        )
        lines.append(f"bits/dim of {num_images} {name}: {unknown_first(report, numbers)}")
    # It needs neither effective chains nor draws of the model.
    doubt = f"not known ({NEGATIVE}); " if best.annealed_bits_per_dim < 0 else ""
    lines.append(
        f"bits/dim of x_0 under the annealed sampler, on average at most: {doubt}{best.annealed_bits_per_dim:.4f} "
        f"({best.annealed_standard_error:.2g})"
    )
    return [*lines, *(f"warning: {text}" for text in report.warnings)]


def as_json(report: Report) -> dict[str, Any]:
    """The report as dictionaries, the summary first, with the sums of the levels' ratios."""
    content = {"summary": summary(report), **dataclasses.asdict(report)}
    for estimate, plain in zip(report.estimates, content["estimates"], strict=True):
        for name in ("lower", "upper"):
            plain[name]["sum_of_ratios"] = getattr(estimate, name).sum_of_ratios
    return content


def concatenated(results: Iterable[TaskResult]) -> dict[str, NDArray[np.float64]]:
    """The arrays of tasks of one kind, in the order of their numbers, side by side."""
    parts = [result.arrays for result in results]
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def _estimate(bound: LogZ) -> str:
    return (
        f"{bound.log_z:.3f} (standard error {bound.standard_error:.2g}, effective {bound.effective_sample_size:.1f} of "
        f"{counted(bound.num_chains, 'chain')})"
    )


def _starts(report: Report) -> str:
    return "images" if report.upper_from == "images" else "resampled ends"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _steps(length: int) -> str:
    return f"{length} step{'s' if length > 1 else ''} per level"
