"""Back to the newest checkpoint and on with other noise, a limited number of times, each one told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.checkpoints.rollbacks import ROLLBACKS, Rollback, add_rollback, noise_seed, read_rollbacks
from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.common.errors import UserError
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train.faults.rollback import TAG, fit_with_rollbacks
from drl_dist.jobs.train.stop import KeyInStore, StopFlag
from drl_dist.jobs.train.task import WorkerTask
from drl_dist.localhost import MlflowServer
from drl_dist.training.guard import DivergedError
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch, tiny, waken
from tests.jobs.training_jobs import run, tracked, words


def task(folder: Path, *, at_most: int) -> WorkerTask:
    config = RunConfig(experiment=tiny(), run_name="a", storage=str(folder), max_rollbacks=at_most)
    return WorkerTask(
        arrival=KeyInStore("arrival"),
        run=config,
        fingerprint="",
        tracking_run="id",
        model_name="tiny",
        started=0.0,
        first_step=0,
        stop_flag=None,
    )


class Note(StopFlag):
    """One that somebody has written."""

    def is_there(self) -> bool:
        return True


@pytest.fixture
def tags(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    written: list[dict[str, str]] = []
    monkeypatch.setattr("drl_dist.tracking.runs.set_tags", lambda _uri, _run, tags: written.append(tags))
    return written


def checkpoint(folder: Path, step: int) -> None:
    state = CheckpointState(step=step, images_seen=step, next_position=step, seed=0, data_fingerprint="", world_size=1)
    write_checkpoint(folder / "a" / checkpoint_name(step), TrainState.create(tiny()).tensors(), state, tiny())


def test_a_run_that_is_asked_to_stop_is_not_started_again(tmp_path: Path, tags: list[dict[str, str]]) -> None:
    checkpoint(tmp_path, 4)

    def fit(given: WorkerTask) -> None:
        raise DivergedError(5, float("nan"), 1.0)

    with pytest.raises(DivergedError):
        fit_with_rollbacks(dataclasses.replace(task(tmp_path, at_most=2), stop_flag=Note()), fit)
    assert (read_rollbacks(str(tmp_path / "a")), tags) == ([], [])


def test_it_goes_on_with_other_noise_until_the_limit(tmp_path: Path, tags: list[dict[str, str]]) -> None:
    seen: list[int] = []

    def fit(given: WorkerTask) -> None:
        seen.append(given.num_rollbacks)
        if len(seen) == 2:
            checkpoint(tmp_path, 40)
        raise DivergedError(10 * len(seen), float("nan"), 1.0)

    with pytest.raises(DivergedError, match="at step 30"):
        fit_with_rollbacks(task(tmp_path, at_most=2), fit)
    assert seen == [0, 1, 2]
    known = read_rollbacks(str(tmp_path / "a"))
    assert [(one.diverged_at, one.back_to) for one in known] == [(10, 0), (20, 40)]
    assert "loss nan" in known[0].reason
    assert [TAG in written for written in tags] == [True, True]
    assert tags[-1][TAG].count("training diverged") == 2

    # The next start counts on.
    again = dataclasses.replace(task(tmp_path, at_most=2), num_rollbacks=len(known))
    with pytest.raises(DivergedError):
        fit_with_rollbacks(again, fit)
    assert seen == [0, 1, 2, 2]


def test_a_run_that_recovers_ends_well(tmp_path: Path, tags: list[dict[str, str]]) -> None:
    seen: list[int] = []

    def fit(given: WorkerTask) -> None:
        seen.append(given.num_rollbacks)
        if given.num_rollbacks == 0:
            raise DivergedError(3, float("inf"), 1.0)

    fit_with_rollbacks(task(tmp_path, at_most=1), fit)
    assert seen == [0, 1]


def test_a_server_that_is_away_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: Any) -> None:
        raise UserError("MLflow server", got="no answer", expected="one", remedy="start it")

    monkeypatch.setattr("drl_dist.tracking.runs.set_tags", away)
    test_a_run_that_recovers_ends_well(tmp_path, [])
    assert f"the tag {TAG} could not be written: MLflow server" in capsys.readouterr().err


def test_other_errors_are_not_touched(tmp_path: Path, tags: list[dict[str, str]]) -> None:
    def fit(_given: WorkerTask) -> None:
        raise UserError("shard", got="1 byte", expected="2", remedy="prepare it again")

    with pytest.raises(UserError, match="1 byte"):
        fit_with_rollbacks(task(tmp_path, at_most=5), fit)
    assert not (tmp_path / "a" / ROLLBACKS).exists()


def test_seeds_are_the_runs_own_at_first_and_differ_from_then_on() -> None:
    assert noise_seed(7, 0) == 7
    seeds = {noise_seed(seed, count) for seed in (7, 8) for count in range(50)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_levels_pairs_and_chains_follow_the_seed() -> None:
    def step(seed: int | None) -> tuple[torch.Tensor, ...]:
        state = TrainState.create(tiny(), dtype=torch.float64)
        waken(state)
        made = TrainStep(state, tiny(), EAGER, noise_seed=seed)
        given = batch(0)
        pairs = made.draw(given.images, given.positions)
        return pairs.level, pairs.x_noisy, made.run_chain(pairs, given.positions)

    first, own, other = step(None), step(tiny().train.seed), step(noise_seed(tiny().train.seed, 1))
    for one, same, different in zip(first, own, other, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


@pytest.mark.parametrize("text", ["[]", "{}", '{"rollbacks": [{"diverged_at": 3}]}', '{"rollbacks": 3}', "nothing"])
def test_a_damaged_file_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / ROLLBACKS).write_text(text)
    with pytest.raises(UserError, match=ROLLBACKS):
        read_rollbacks(str(tmp_path))


def test_what_is_added_is_read(tmp_path: Path) -> None:
    one, other = (Rollback(diverged_at=step, back_to=1, reason="x") for step in (3, 4))
    add_rollback(str(tmp_path), one)
    assert add_rollback(str(tmp_path), other) == [one, other] == read_rollbacks(str(tmp_path))
    assert json.loads((tmp_path / ROLLBACKS).read_text())["rollbacks"][1]["diverged_at"] == 4


@pytest.mark.integration
def test_a_job_that_diverges_rolls_back(
    mlflow_server: MlflowServer, digits: Path, tmp_path: Path, server_environment: dict[str, str]
) -> None:
    options = words(digits, tmp_path, "diverging", "--train.num-steps=150", "--checkpoint.every-steps=2")
    # Warm-up lets it make its first steps; then it is far too large.
    options += ["--optim.learning-rate=3", "--optim.warmup-steps=100", "--tracking.sample-every-steps=1000"]
    job = run(server_environment, [*options, "--max-rollbacks=1"])
    # It goes back to the newest checkpoint that was in storage by then, and from some of them, with other noise, the
    # network dies instead: its energies are flat, and no chain runs away.
    assert job.status in (0, 1), job.output
    (known,) = read_rollbacks(str(tmp_path / "diverging"))
    assert (job.status == 1) == (job.output.count("training diverged at step") == 2), job.output
    assert 0 < known.back_to <= known.diverged_at
    assert (
        f"rolled back to step {known.back_to}, from which it continues with other noise (roll-back 1 of" in job.output
    )
    assert f"resuming after step {known.back_to} from" in job.output
    found = tracked(mlflow_server, "diverging")
    assert found.info.status == ("FAILED" if job.status else "FINISHED")
    assert found.data.metrics["reliability/rollbacks"] == 1
    assert found.data.tags[TAG].startswith(f"{known.diverged_at} to {known.back_to}: training diverged")
