"""The folder that a likelihood job fills: step sizes, results of finished units, weights, picture, report."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.jobs.common.job_folder import (
    RECORDS_FOLDER,
    REQUEST_NAME,
    Records,
    read_json,
    refuse_other,
    refuse_without_request,
)
from drl_dist.jobs.common.step_sizes import SCHEDULE_NAME, read_schedule, write_schedule
from drl_dist.jobs.likelihood.task import LikelihoodRequest, UnitResult
from drl_dist.likelihood.partition import LogZ
from drl_dist.likelihood.report import Report
from drl_dist.mcmc.adaptation import StepSizeSchedule

REPORT_NAME = "likelihood.json"
FIGURE_NAME = "log_z.png"
WEIGHTS_NAME = "log_weights.safetensors"
SHOWN_LEVELS = 12
"""Lines of the printed table; likelihood.json has all levels."""
# Title, width, and how a level's row fills the column.
_COLUMNS: tuple[tuple[str, int, str], ...] = (
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
        self.url, self._request, self._num_levels = url.rstrip("/") or "/", request, num_levels
        self._folder, self._records = Folder(self.url), Records(self.url)

    def finished_report(self) -> dict[str, Any] | None:
        """The report, which is written last, if it is there.

        Raises:
            UserError: the storage does not answer, or the folder holds something else.
        """
        check_reachable(self.url)
        found = read_json(self._folder, REPORT_NAME)
        if found is not None:
            self._refuse_other(found.get("request"))
            return found
        begun = read_json(self._records.folder, REQUEST_NAME)
        if begun is not None:
            self._refuse_other(begun)
        else:
            # Such as the step sizes of a long run; ours would take their place.
            own = (re.escape(name) for name in (SCHEDULE_NAME, WEIGHTS_NAME, FIGURE_NAME))
            records = {RECORDS_FOLDER: [r"\d{6,}\.safetensors"]}
            refuse_without_request(self.url, self._folder.sizes(), own, below=records)
        return None

    def begin(self) -> None:
        """Note what the folder is for; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        self._records.write({REQUEST_NAME: json.dumps(dataclasses.asdict(self._request)).encode()})

    def schedule(self) -> StepSizeSchedule | None:
        """The step sizes that an earlier start left here, None if it left none."""
        if SCHEDULE_NAME not in self._folder.sizes():
            return None
        return read_schedule(self.url, self._request.ema_sha256, self._num_levels, "marginal")

    def write_schedule(self, schedule: StepSizeSchedule) -> None:
        """Keep the step sizes."""
        write_schedule(self.url, schedule, self._request.ema_sha256)

    def finished(self) -> dict[int, UnitResult]:
        """The results of the units that earlier starts finished, by number."""
        sizes = self._records.folder.sizes()
        numbers = [unit for unit in range(len(self._request.units())) if f"{unit:06d}.safetensors" in sizes]
        texts = self._records.read(f"{number:06d}.safetensors" for number in numbers)
        results = (UnitResult.from_bytes(data, self._request) for data in texts)
        found = sorted(zip(numbers, results, strict=True), key=itemgetter(0))
        return {number: result for number, result in found if result is not None}

    def note(self, unit: int, result: UnitResult) -> None:
        """Keep the result of a finished unit, so that a later start skips it."""
        self._records.write({f"{unit:06d}.safetensors": result.to_bytes(self._request)})

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
        whole = {"request": dataclasses.asdict(self._request), **content}
        data = (json.dumps(_finite(whole), indent=2, allow_nan=False) + "\n").encode()
        self._folder.write(REPORT_NAME, data)
        if not keep_records:
            self.clean_up()
        return data

    def clean_up(self) -> None:
        """Remove the records of this request, and what a killed writer of its files left; nothing else."""
        self._folder.remove_parts([SCHEDULE_NAME, WEIGHTS_NAME, FIGURE_NAME, REPORT_NAME])
        # The request goes last: without it, nobody knows whose the others are.
        if self._records.are_of(dataclasses.asdict(self._request)):
            units = range(len(self._request.units()))
            self._records.remove([*(f"{unit:06d}.safetensors" for unit in units), REQUEST_NAME])
        # Of a clean-up that was killed.
        self._records.folder.remove_if_empty()

    def _refuse_other(self, found: Any) -> None:
        request = found if isinstance(found, dict) else {}
        refuse_other(self.url, request, dataclasses.asdict(self._request))


def figure(report: Report) -> bytes:
    """Both bounds of log Z over the number of chains, for every chain length, as a PNG (Figure 7, right)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    for place, estimate in enumerate(report.estimates):
        colour, steps = f"C{place}", _steps(estimate.steps_per_level)
        lower, upper = estimate.lower_curve, estimate.upper_curve
        axes.plot(lower.num_chains, lower.log_z, "-o", color=colour, markersize=3, label=f"{steps}, from below")
        axes.plot(upper.num_chains, upper.log_z, "--s", color=colour, markersize=3, label=f"{steps}, from above")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="number of chains", ylabel="log Z of y_0 (nats)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def table(bound: LogZ) -> str:
    """Some of the levels as lines of text, those that few chains carry marked; what is not known is a dash."""
    count = len(bound.levels)
    shown = set(np.linspace(0, count - 1, min(count, SHOWN_LEVELS)).round().astype(int).tolist())
    lines = ["  ".join(f"{title:>{width}}" for title, width, _ in _COLUMNS)]
    for row in bound.levels:
        if row.level in shown:
            values = dataclasses.asdict(row)
            mark = "  few chains" if row.is_carried_by_few else ""
            lines.append("  ".join(f"{_cell(form, values):>{width}}" for _, width, form in _COLUMNS) + mark)
    return "\n".join(lines)


def told(report: Report, num_images: int) -> Sequence[str]:
    """The report as lines of text."""
    lines: list[str] = []
    for estimate in report.estimates:
        for name, bound in (("lower", estimate.lower), ("upper", estimate.upper)):
            lines.append(
                f"{_steps(estimate.steps_per_level)}: {name} bound of log Z {bound.log_z:.3f} "
                f"(standard error {bound.standard_error:.2g}, effective {bound.effective_sample_size:.1f} of "
                f"{bound.num_chains} chains)"
            )
    best = report.estimates[-1]
    lines += ["levels, from white noise down:", table(best.lower), "levels, from images up:", table(best.upper)]
    for name, bits in (("dequantised images", report.at_data), ("x_0, with the ladder's noise", report.at_x_0)):
        lines.append(
            f"bits/dim of {num_images} {name}: from {bits.lower:.4f} (standard error "
            f"{bits.lower_standard_error:.2g}) to {bits.upper:.4f} ({bits.upper_standard_error:.2g})"
        )
    lines.append(
        f"bits/dim of x_0 under the annealed sampler, at most: {best.annealed_bits_per_dim:.4f} "
        f"({best.annealed_standard_error:.2g})"
    )
    return [*lines, *(f"warning: {text}" for text in report.warnings)]


def as_json(report: Report) -> dict[str, Any]:
    """The report as dictionaries, with the sums of equation 48."""
    content = dataclasses.asdict(report)
    for estimate, plain in zip(report.estimates, content["estimates"], strict=True):
        for name in ("lower", "upper"):
            plain[name]["sum_of_ratios"] = getattr(estimate, name).sum_of_ratios
    return content


def concatenated(results: Iterable[UnitResult]) -> dict[str, NDArray[np.float64]]:
    """The arrays of units of one kind, in the order of their numbers, side by side."""
    parts = [result.arrays for result in results]
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def _steps(length: int) -> str:
    return f"{length} step{'s' if length > 1 else ''} per level"


def _finite(value: Any) -> Any:
    """The same dictionaries and lists with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(form: str, values: Mapping[str, Any]) -> str:
    name = form[1:].partition(":")[0].partition("}")[0]
    value = values[name]
    return "-" if isinstance(value, float) and math.isnan(value) else form.format(**{name: value})
