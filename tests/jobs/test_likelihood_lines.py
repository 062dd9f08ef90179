"""What the likelihood job prints, draws and logs: `not known` before any number where the numbers cannot be right."""

from __future__ import annotations

import dataclasses
import math
from unittest.mock import MagicMock

import pytest
import torch

from drl_dist.jobs.likelihood import driver, output
from drl_dist.jobs.likelihood.output import as_json, figure, report_lines
from drl_dist.likelihood.report import Report, report, summary, whole_metrics, why_unknown
from drl_dist.tracking.job_runs import JobRun
from tests.likelihood.oracle import Oracle, gaussian

DIMS, CHAINS = 4, 400
ORACLE = Oracle.of(gaussian(), DIMS, "t6")
TRUTH = ORACLE.log_z()
FEW, CONTRADICTION, NEGATIVE = (
    "fewer than 10 effective chains",
    "the two estimates contradict each other",
    "negative bits/dim",
)


def made(*, down: float = 0.0, up: float = 0.0, one: float = 0.0, density: float = 0.0) -> Report:
    """A report of normal log weights around the truth.

    Args:
        down: nats added to log Z from downward chains.
        up: nats added to log Z from upward chains.
        one: nats that one downward chain has more than the others.
        density: nats added to the log-density of each image.
    """
    x_0 = ORACLE.draws(0, CHAINS)
    values = ORACLE.y_distribution(0).log_density(float(ORACLE.levels.transition_scale[0]) * x_0) + density
    noise = 0.01 * torch.randn(6, CHAINS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # What the levels contribute to log Z of y_0, all of it at level 0.
    known = DIMS * (0.5 * math.log(2 * math.pi) + float(ORACLE.levels.transition_scale[0].log()))
    weights = noise.clone(), noise.clone()
    weights[0][0] += TRUTH - known + down
    weights[1][0] -= TRUTH - known + up
    weights[0][0, 0] += one
    ones = torch.ones_like(noise)
    ways = [
        {"log_weight": weight, "acceptance_rate": ones, "root_mean_square": ones, "at_x_0": values}
        for weight in weights
    ]
    return report(values, values, {2: (ways[0], ways[1], None)}, ORACLE.levels, ORACLE.ladder, DIMS)


BAD = {
    "few": (made(one=30.0, up=35.0), (FEW,)),
    "contradiction": (made(down=1.0), (CONTRADICTION,)),
    "negative": (made(density=60.0), (NEGATIVE,)),
    "all": (made(one=60.0, density=200.0), (FEW, CONTRADICTION, NEGATIVE)),
}


def test_numbers_that_can_be_right_stand_alone() -> None:
    good = made()
    assert good.why_unknown == ()
    lines = report_lines(good, 7)
    assert "not known" not in "\n".join([*lines, summary(good)])
    assert lines[0] == summary(good)
    bits = good.at_data
    assert lines[0].endswith(f"estimates that bound it on average: {bits.lower:.4f} and {bits.upper:.4f}")
    assert whole_metrics(good)["likelihood/is_unknown"] == 0


@pytest.mark.parametrize("name", BAD)
def test_not_known_comes_before_every_number(name: str) -> None:
    bad, reasons = BAD[name]
    assert bad.why_unknown == reasons
    head = f"not known ({', '.join(reasons)}); "
    lines = report_lines(bad, 7)
    assert lines[0] == summary(bad)
    of_bits = [line for line in lines if line.startswith("bits/dim of") and "annealed" not in line]
    assert len(of_bits) == 3
    assert all(line.partition(": ")[2].startswith(head) for line in of_bits)
    [annealed] = [line for line in lines if "annealed" in line]
    assert ("at most: not known (negative bits/dim); -" in annealed) == (NEGATIVE in reasons)
    assert next(iter(as_json(bad))) == "summary"
    assert whole_metrics(bad)["likelihood/is_unknown"] == 1


def test_chains_that_weigh_alike_are_enough_from_ten_on() -> None:
    good = made()
    [estimate] = good.estimates
    for size, reasons in ((9.9, (FEW,)), (10.0, ())):
        for side in ("lower", "upper"):
            bound = dataclasses.replace(getattr(estimate, side), effective_sample_size=size)
            changed = dataclasses.replace(estimate, **{side: bound})
            assert why_unknown((good.at_data, good.at_x_0), changed, DIMS) == reasons


def test_the_limits_stand_beside_the_estimates() -> None:
    lines = "\n".join(report_lines(made(), 7))
    [estimate] = as_json(made())["estimates"]
    assert "2 steps per level, estimates that bound log Z on average:" in lines
    assert (
        f"log Z is at least {estimate['lower']['limit']:.3f} with a probability of 95 %, and if the images are draws "
        f"from the model at most {estimate['upper']['limit']:.3f} with 95 %, both with 90 %"
    ) in lines
    assert estimate["lower"]["limit"] == pytest.approx(TRUTH - math.log(20), abs=0.01)
    assert estimate["upper"]["limit"] == pytest.approx(TRUTH + math.log(20), abs=0.01)


def test_the_pictures_caption_leads_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def png(drawing: object, caption: str) -> bytes:
        [axes] = drawing.axes  # pyright: ignore
        assert caption == "log Z of a model"
        drawn.append(axes.get_title().replace("\n", " "))  # pyright: ignore
        return b""

    monkeypatch.setattr(output, "figure_png", png)
    bad, _ = BAD["all"]
    figure(bad, "log Z of a model")
    assert drawn == [summary(bad)]


def test_mlflow_is_told_so_first(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[JobRun] = []
    monkeypatch.setattr(driver, "log_or_warn", lambda _, run, **__: logged.append(run))
    monkeypatch.setattr(driver.dataclasses, "asdict", lambda _: {})
    monkeypatch.setattr(driver, "as_json", lambda _: {})
    bad, _ = BAD["few"]
    driver._log(MagicMock(), MagicMock(), MagicMock(), MagicMock(), bad, b"")  # pyright: ignore
    [run] = logged
    assert run.description == summary(bad)
    assert run.version_tags["bits_per_dim_lower"] == f"not known ({FEW}); {bad.at_data.lower!r}"
    assert run.version_tags["bits_per_dim_upper"] == f"not known ({FEW}); {bad.at_data.upper!r}"
