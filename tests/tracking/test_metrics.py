"""The table of metrics: everything that is logged is in it, and the documentation shows all of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import torch

from drl_dist.jobs.evaluate.driver import Scores
from drl_dist.likelihood.report import level_metrics, whole_metrics
from drl_dist.tracking.metrics import METRICS, describe, find_metric, markdown_table, page_name, plain_name
from drl_dist.training.loop import StepReport
from drl_dist.training.step import StepResult
from tests.support import ROOT

OBJECTIVES = (
    ("log_density_pos", "log_density_neg", "log_density_gap", "displacement"),
    ("predicted_noise", "noise_error"),
)


def of_training(names: tuple[str, ...], num_levels: int) -> set[str]:
    """What a step logs, with samples at every level."""
    number = torch.tensor(1.0)
    result = StepResult(number, number, names, torch.ones(len(names) + 1, num_levels), learning_rate=0.1)
    report = StepReport(
        step=1,
        num_steps=2,
        result=result,
        wait_seconds=1.0,
        seconds=2.0,
        images_seen=4,
        images_per_second=2.0,
        chain_steps_per_second=8.0,
    )
    return set(report.metrics())


def of_likelihoods() -> set[str]:
    bound = SimpleNamespace(levels=[MagicMock()], log_z=0.0, limit=0.0, effective_sample_size=0.0)
    best = SimpleNamespace(lower=bound, upper=bound, annealed_bits_per_dim=0.0)
    report = cast(Any, SimpleNamespace(why_unknown=(), estimates=[best], at_data=MagicMock(), at_x_0=MagicMock()))
    return {*whole_metrics(report), *(name for name, _, _ in level_metrics(report))}


@pytest.mark.parametrize(
    ("runs", "logged"),
    [
        ("training", of_training(OBJECTIVES[0], 6)),
        ("training", of_training(OBJECTIVES[1], 1000)),
        ("training", {"score/fid", "score/kid"}),
        (
            "scores",
            set(Scores(**dict.fromkeys(Scores.__dataclass_fields__, 0.0)).metrics()),
        ),
        ("likelihood", of_likelihoods()),
    ],
)
def test_what_is_logged_is_in_the_table(runs: str, logged: set[str]) -> None:
    assert len(logged) >= 2
    for name in logged:
        metric = find_metric(name)
        assert metric is not None, name
        assert runs in metric.runs, name


def test_the_documentation_shows_the_table() -> None:
    assert markdown_table() in (ROOT / "docs" / "tracking.md").read_text()
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.runs or metric.exported for metric in METRICS)


def test_a_metric_is_described_with_its_unit() -> None:
    assert describe("log_density_gap/level_5") == "mean log-density of y_pos less that of y_neg at level t, in nats"
    assert describe("log_density_gap/level_000-062") == describe("log_density_gap/level_5")
    assert describe("likelihood/log_z_upper") == "estimate that bounds log Z on average, in nats"
    assert describe("loss") == "weighted loss of the objective"
    assert describe("energy") is None


def test_the_page_shows_loss_first_and_noise_levels_last() -> None:
    sections = sorted({metric.section for metric in METRICS if metric.section} | {"score"})
    assert (sections[0], sections[-1]) == ("main", "values_per_level")
    assert page_name("loss") == "main/loss"
    assert page_name("displacement/level_3") == "values_per_level/displacement/level_3"


def test_names_of_earlier_versions_are_the_same_metrics() -> None:
    for name in ("values_per_level/displacement/level_3", "per_level/displacement/level_3", "displacement/level_3"):
        assert plain_name(name) == "displacement/level_3" and describe(name) == describe("displacement/level_0")
    assert plain_name("main/loss") == plain_name("loss") == "loss"
    assert plain_name("score/fid") == "score/fid"
