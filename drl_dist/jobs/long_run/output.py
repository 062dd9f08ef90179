"""The output folder of a long-run job: images of every chain length, pictures, step sizes and diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.figures import figure_png, new_figure
from drl_dist.common.images import Panel
from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, write_index
from drl_dist.data.shards import Sample, ShardRow, encode_png, pack_shard, shard_name
from drl_dist.jobs.common.output.job_folder import JobFolder
from drl_dist.jobs.common.output.report import Column, report_bytes, table
from drl_dist.jobs.common.output.sheet import sheet_of
from drl_dist.mcmc.adaptation import StepSizes
from drl_dist.mcmc.settings import AdaptationConfig

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment

DIAGNOSTICS_NAME = "diagnostics.json"
FIGURE_NAME = "step_sizes.png"
COMPARISON_NAME = "samples.png"
SHEET_IMAGES = 64
STAGE_IMAGES = 8
_SHARD_IMAGES = 256
SPLIT = "generated"

_COLUMNS: tuple[Column, ...] = (
    ("level", 5, "{level}"),
    ("acceptance", 10, "{acceptance_rate:.3f}"),
    ("displacement", 12, "{displacement:.4g}"),
    ("energy error", 12, "{energy_error_rms:.3g}"),
    ("divergences", 11, "{num_divergences}"),
    ("leapfrogs", 9, "{leapfrogs_per_step:.1f}"),
    ("ESS/step", 8, "{ess_per_step:.2f}"),
    ("ESS min", 8, "{ess_min:.1f}"),
    ("R-hat max", 9, "{r_hat_max:.3f}"),
)


class LongRunOutput:
    """What the job writes into its folder.

    Args:
        folder: the folder, which was begun.
        experiment: of the model.
        origin: what determines the images, the chain length apart.
    """

    def __init__(self, folder: JobFolder, experiment: Experiment, origin: Mapping[str, Any]) -> None:
        self._job, self._folder, self._experiment, self._origin = folder, folder.files, experiment, origin
        self._caption = f"{origin['model']}, step {origin['step']}, seed {origin['seed']}, kernel {origin['kernel']}"
        self._panels: list[Panel] = []

    def write_step_sizes(self, schedule: StepSizes, config: AdaptationConfig) -> None:
        """Draw step size and acceptance rate over the levels (Figure 7, left and centre)."""
        self._folder.write(FIGURE_NAME, figure(schedule, config, self._caption))

    def write_run(self, length: int, images: Tensor, stages: Tensor) -> None:
        """Write the images of one chain length as image shards, a sheet of the first, and their way down the ladder.

        Args:
            length: steps per level.
            images: uint8 (B, C, H, W).
            stages: uint8 (stages, b, C, H, W) of the first batch, the noisiest first.
        """
        steps = f"{counted(length, 'step')} per level"
        panel = Panel(title=steps, images=images[:SHEET_IMAGES])
        self._panels.append(panel)
        self._folder.write(f"samples_{length}.png", sheet_of([panel], self._caption))
        shown = stages[:, :STAGE_IMAGES].transpose(0, 1).flatten(0, 1)
        title = f"{steps}; each row: down the levels from noise, left, to an image, right"
        way = Panel(title=title, images=shown, columns=len(stages))
        self._folder.write(f"stages_{length}.png", sheet_of([way], self._caption))
        self._write_shards(length, images)

    def write_comparison(self) -> None:
        """Write the sheets of all chain lengths side by side, in the order they were run (Figures 8 and 10)."""
        self._folder.write(COMPARISON_NAME, sheet_of(self._panels, self._caption))

    def write_diagnostics(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Write what the chains say about themselves as JSON, which completes the folder."""
        self._job.finish(report_bytes({**self._origin, "runs": list(runs)}))

    def _write_shards(self, length: int, images: Tensor) -> None:
        """A folder in the project's own data format, for whatever scores images."""
        model, url = self._experiment.model, joined(self._job.url, shards_folder(length))
        rows: list[ShardRow] = []
        names = shard_names(self._experiment.preset, len(images))
        for unit, (name, part) in enumerate(zip(names, images.split(_SHARD_IMAGES), strict=True)):
            first = unit * _SHARD_IMAGES
            samples = (Sample(first + i, encode_png(pixels)) for i, pixels in enumerate(part.numpy()))
            data, row = pack_shard(name, samples)
            Folder(url).write(row.name, data)
            rows.append(row)
        write_index(
            ShardIndex(
                url=url,
                name=self._experiment.preset,
                split=SPLIT,
                resolution=model.resolution,
                channels=model.channels,
                shards=tuple(rows),
                made_by={**self._origin, "steps_per_level": length},
            )
        )


def shards_folder(length: int) -> str:
    """Name of the folder of the images of one chain length."""
    return f"steps_{length}"


def shard_names(preset: str, num_images: int) -> list[str]:
    """Names of the shards of one chain length."""
    return [shard_name(preset, SPLIT, unit) for unit in range(-(-num_images // _SHARD_IMAGES))]


def figure(schedule: StepSizes, config: AdaptationConfig, caption: str) -> bytes:
    """Step size, on a logarithmic axis, and acceptance rate over the noise level, as a PNG.

    Args:
        caption: model, step and seed.
    """
    drawing = new_figure(9, 3.4)
    left, right = drawing.subplots(1, 2)
    marker = "o" if schedule.num_levels <= 50 else ""
    left.semilogy(schedule.step_size, marker=marker)
    left.set(xlabel="noise level t", ylabel="step size")
    right.plot(schedule.acceptance_rate, marker=marker)
    right.axhspan(config.lowest_rate, config.highest_rate, alpha=0.15)
    right.set(xlabel="noise level t", ylabel="acceptance rate", ylim=(0, 1))
    return figure_png(drawing, f"step sizes adapted to the levels: {caption}")


def level_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The shown levels as lines of text; what is not known is a dash."""
    return "\n".join(table(_COLUMNS, ({**row, **(row["mixing"] or {})} for row in rows if row["is_shown"])))
