"""Plans, trials and rows for the tests of sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drl_dist.jobs.sweep.options import SweepPlan, parse_sweep
from drl_dist.jobs.sweep.record import BAD_SCORE, OBJECTIVE, Curve, Outcome, Point, Rescore, Status, Trial
from drl_dist.jobs.sweep.table import Row

SPACE = {"model.num_res_blocks": [1, 2], "mcmc.level_scale": [1.0, {"power": 0.0}, [1, 2, 3, 4, 5, 6]]}


def plan(storage: Path, *more: str, space: dict[str, Any] | None = None) -> SweepPlan:
    """A sweep of digits with trials of 200 steps of 8 images, 20 of them warm-up."""
    words = ["--preset", "digits", "--setting", "t6", "--data", "/data", "--storage", str(storage), "--sweep-name", "s"]
    words += ["--train.num-steps", "200", "--train.batch-size", "8", "--optim.warmup-steps", "20"]
    return parse_sweep([*words, "--space", json.dumps(SPACE if space is None else space), *more])[0]


def curve(*scores: float) -> Curve:
    """A score every 20 steps of 8 images."""
    points = tuple(
        Point(step=20 * place, images_seen=160 * place, scores={OBJECTIVE: score, "score/fid": 10 * score})
        for place, score in enumerate(scores, 1)
    )
    return Curve(points=points)


def row(
    number: int, values: dict[str, Any], status: Status | None, *scores: float, final: tuple[float, ...] = ()
) -> Row:
    """A trial's row; `final` are its final scores by seed."""
    points = curve(*scores)
    last = points.points[-1] if points.points else None
    is_scored = last is not None and status != "diverged"
    outcome = status and Outcome(
        status=status,
        reason="gap" if status == "diverged" else "",
        score=last.score if is_scored and last else BAD_SCORE,
        step=last.step if last else 3,
        images_seen=last.images_seen if last else 24,
    )
    return Row(
        trial=Trial(number=number, values=values),
        run_name=f"s-{number:04d}",
        run_url=f"/s/s-{number:04d}",
        run_id=f"id{number}",
        curve=points,
        outcome=outcome or None,
        rescores=tuple(
            Rescore(
                seed=seed,
                num_images=100,
                step=200,
                features="pixels",
                data_fingerprint="f",
                scores={OBJECTIVE: score, "score/fid": 2 * score},
            )
            for seed, score in enumerate(final)
        ),
    )


def rows() -> list[Row]:
    """Two finished, one stopped, one diverged."""
    one, two, three = SPACE["mcmc.level_scale"]
    return [
        row(0, {"model.num_res_blocks": 1, "mcmc.level_scale": one}, "finished", 3.0, 1.0, final=(0.9, 1.1)),
        row(1, {"model.num_res_blocks": 2, "mcmc.level_scale": two}, "finished", 2.0, 0.8, final=(1.2, 1.4)),
        row(2, {"model.num_res_blocks": 1, "mcmc.level_scale": three}, "stopped", 4.0),
        row(3, {"model.num_res_blocks": 2, "mcmc.level_scale": one}, "diverged"),
    ]
