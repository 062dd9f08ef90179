"""What a run will take, in sentences: its size, its steps, its memory, and its hours at a given rate."""

from __future__ import annotations

from dataclasses import dataclass

from drl_dist.common.amounts import counted, mebibytes, short
from drl_dist.common.durations import duration
from drl_dist.config.tree import RunConfig
from drl_dist.training.cost import StepCost, phases, step_cost
from drl_dist.training.memory import fit_memory


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps of one objective."""

    objective: str
    steps: int
    cost: StepCost


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run costs; made by `estimate`."""

    phases: tuple[Phase, ...]
    """One, or two where a run begins with another objective."""
    num_workers: int
    batch_size: int
    """Images per step over all workers."""
    memory: str = ""
    """How a step fits into memory, if that was to be chosen."""

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return sum(phase.steps for phase in self.phases)

    @property
    def flop(self) -> float:
        """Floating-point operations of the whole run on all workers."""
        return float(sum(phase.steps * phase.cost.flop for phase in self.phases)) * self.num_workers

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained."""
        return self.phases[0].cost.num_parameters

    def seconds(self, tflops: float) -> float:
        """Duration of all steps where each worker makes `tflops` * 10**12 operations a second."""
        return self.flop / self.num_workers / (tflops * 1e12)

    def lines(self, *, tflops: float | None = None, num_images: int | None = None) -> list[str]:
        """The estimate as sentences, one a line.

        Args:
            tflops: operations that a worker makes in a second, in 10**12.
            num_images: images of the data set, if known.
        """
        found = [f"network: {short(self.num_parameters)} parameters"]
        for phase in self.phases:
            cost, named = phase.cost, f"{phase.objective} step" if len(self.phases) > 1 else "step"
            where = f"{named} of {counted(cost.images_per_worker, 'image')} on {self._each()}: "
            if cost.chain_gradients:
                found.append(
                    f"{where}{counted(cost.chain_gradients, 'gradient')} of the chain and 1 forward of the update, "
                    f"{short(cost.chain_flop, 'FLOP')} + {short(cost.update_flop, 'FLOP')} = {short(cost.flop, 'FLOP')}"
                )
            else:
                found.append(f"{where}1 forward of the update, no chain, {short(cost.flop, 'FLOP')}")
            peaks = f"{mebibytes(cost.update_bytes)} in the update"
            if cost.chain_gradients:
                peaks = f"{mebibytes(cost.chain_bytes)} in the chain and {peaks}"
            found.append(f"memory of a worker's tensors: {mebibytes(cost.state_bytes)} all the time, at most {peaks}")
        if self.memory:
            found.append(self.memory)
        if num_images is not None:
            epochs = self.num_steps * self.batch_size / num_images
            found.append(
                f"data: {counted(num_images, 'image')}, {num_images / self.batch_size:.4g} steps an epoch, "
                f"{epochs:.3g} epochs in {counted(self.num_steps, 'step')}"
            )
        total = f"run: {counted(self.num_steps, 'step')}, {short(self.flop, 'FLOP')}"
        if tflops is not None:
            total += f", {duration(self.seconds(tflops))} at {tflops:g} TFLOP/s on {self._each()}"
        return [*found, total]

    def _each(self) -> str:
        return "each worker" if self.num_workers > 1 else "one worker"


def estimate(run: RunConfig) -> Estimate:
    """What a run costs; errors as `step_cost` and `fit_memory`, and it takes as long."""
    experiment = run.experiment
    fit = fit_memory(experiment, run.engine, num_workers=run.num_workers, has_graphs=run.use_gpu)
    memory = fit.why
    if run.use_gpu and run.engine.memory == "auto" and run.engine.memory_gib is None:
        memory = "memory: chosen by what the GPU has; --engine.memory-gib tells here how a step fits into so much"
    return Estimate(
        phases=tuple(
            Phase(
                objective=alone.optim.objective,
                steps=steps,
                cost=step_cost(alone, num_workers=run.num_workers, engine=fit.engine),
            )
            for steps, alone in phases(experiment)
        ),
        num_workers=run.num_workers,
        batch_size=experiment.train.batch_size,
        memory=memory,
    )
