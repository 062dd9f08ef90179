"""The sweep's folder and its result: records, table, plots, the winner's command."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH
from drl_dist.config.presets import preset
from drl_dist.config.tree import Experiment
from drl_dist.jobs.sweep.options import parse_sweep, plan_sweep
from drl_dist.jobs.sweep.plots import label, make_plots, places
from drl_dist.jobs.sweep.record import BAD_SCORE, CURVE, OUTCOME, Curve, Outcome, SweepFolder, continued, read, write
from drl_dist.jobs.sweep.result import RESULTS
from drl_dist.jobs.sweep.space import apply, parse_space
from drl_dist.jobs.sweep.table import as_csv, as_parquet, as_text, best, make_table, ranked
from drl_dist.jobs.sweep.winner import COMMANDS, submitted, train_words
from drl_dist.jobs.train.options import parse_train
from tests.sweeps.makers import SPACE, curve, plan, row, rows


@pytest.mark.slow
def test_a_name_cannot_come_to_mean_another_sweep(tmp_path: Path) -> None:
    first = SweepFolder(plan(tmp_path), "f")
    first.check()
    first.begin()
    SweepFolder(plan(tmp_path, "--num-samples", "40", "--max-concurrent", "1", "--rescore-trials", "1"), "f").check()
    for words, told in (
        (("--search-seed", "1"), "options.search_seed: 0 -> 1"),
        (("--optim.beta1", "0.8"), "experiment.optim.beta1: 0.9 -> 0.8"),
        (("--tracking.score-features", "pixels"), "score.score_features: inception -> pixels"),
    ):
        with pytest.raises(UserError, match=told):
            SweepFolder(plan(tmp_path, *words), "f").check()
    with pytest.raises(UserError, match=r"space.model.num_res_blocks: \[1, 2\] -> \[1, 3\]"):
        SweepFolder(plan(tmp_path, space=SPACE | {"model.num_res_blocks": [1, 3]}), "f").check()
    with pytest.raises(UserError, match=r"data_fingerprint: f -> g"):
        SweepFolder(plan(tmp_path), "g").check()


@pytest.mark.parametrize("name", ["table.csv", "learning_curves.png", "s-0000/experiment.json", "s-0000/trial.json"])
def test_a_folder_of_something_else_is_no_sweep(name: str, tmp_path: Path) -> None:
    folder = SweepFolder(plan(tmp_path), "f")
    path = tmp_path / folder.url / name.replace("s-0000", folder.run_name(0))
    path.parent.mkdir(parents=True)
    (path.parent / "notes.txt").write_text("mine")
    folder.check(RESULTS)
    path.write_text("mine")
    with pytest.raises(UserError, match=rf"got .*{path.name} of something else, without sweep.json"):
        folder.check(RESULTS)
    folder.begin()
    folder.check(RESULTS)


def test_records_come_back_and_damaged_ones_are_told(tmp_path: Path) -> None:
    folder = SweepFolder(plan(tmp_path), "f")
    assert folder.trials() == [] and folder.outcome(0) is None and folder.curve(0) == Curve()
    for number, values in enumerate(({"a": 1}, {"a": {"power": 0.5}})):
        folder.propose(number, values)
    assert [trial.values for trial in folder.trials()] == [{"a": 1}, {"a": {"power": 0.5}}]
    write(folder.trial_url(1), CURVE, curve(3.0, 2.0, 1.0))
    assert folder.curve(1) == curve(3.0, 2.0, 1.0)
    assert folder.curve(1).before(40) == curve(3.0, 2.0)
    outcome = Outcome(status="failed", reason="disk", score=BAD_SCORE, step=0, images_seen=0)
    write(folder.trial_url(0), OUTCOME, outcome)
    assert read(folder.trial_url(0), OUTCOME, Outcome) == outcome
    assert folder.outcome(0) is None, "a failed trial is tried again"
    write(folder.trial_url(0), OUTCOME, dataclasses.replace(outcome, status="diverged"))
    found = folder.outcome(0)
    assert found is not None and found.status == "diverged" and math.isfinite(found.score)
    (tmp_path / "s" / "s-0000" / OUTCOME).write_text('{"status": "fine"}')
    with pytest.raises(UserError, match=r"record .*s-0000/outcome.json, field status: got fine"):
        folder.outcome(0)
    (tmp_path / "s" / "s-0000" / OUTCOME).write_text('{"stat')
    with pytest.raises(UserError, match=r"record .*s-0000/outcome.json"):
        folder.outcome(0)


def test_the_final_score_ranks_before_the_last_and_only_finished_trials_win() -> None:
    made = rows()
    assert [one.trial.number for one in ranked(made)] == [0, 1, 2, 3]
    winner = best(made)
    assert winner is not None and winner.trial.number == 0, "0.8 was luck: the final scores say otherwise"
    without = [dataclasses.replace(one, rescores=()) for one in made]
    assert [one.trial.number for one in ranked(without)] == [1, 0, 2, 3]
    good = row(4, made[0].trial.values, "stopped", 0.001)
    assert best([good, made[3]]) is None
    assert [one.trial.number for one in ranked([made[0], made[3], good])] == [0, 4, 3]
    assert best([row(5, {}, "finished", BAD_SCORE)]) is None


def test_the_table_is_the_same_in_every_form() -> None:
    table = make_table(rows())
    assert table["trial"].to_pylist() == [0, 1, 2, 3]
    assert table["status"].to_pylist() == ["finished", "finished", "stopped", "diverged"]
    assert table["model.num_res_blocks"].to_pylist() == [1, 2, 1, 2]
    assert table["mcmc.level_scale"].to_pylist() == ["1.0", '{"power": 0.0}', "[1, 2, 3, 4, 5, 6]", "1.0"]
    assert table["score"].to_pylist() == [1.0, 0.8, 4.0, None]
    assert table["final_score"].to_pylist() == [pytest.approx(1.0), pytest.approx(1.3), None, None]
    assert table["final_score_std"].to_pylist()[0] == pytest.approx(0.02**0.5)
    assert table["final_fid"].to_pylist()[:2] == [pytest.approx(2.0), pytest.approx(2.6)]
    assert table["reason"].to_pylist()[3] == "gap"
    assert pyarrow.parquet.read_table(io.BytesIO(as_parquet(table))).equals(table)
    again = pyarrow.csv.read_csv(io.BytesIO(as_csv(table)))
    assert again["score"].to_pylist() == table["score"].to_pylist()
    assert again["mcmc.level_scale"].to_pylist() == table["mcmc.level_scale"].to_pylist()
    lines = as_text(table).splitlines()
    assert len(lines) == 5 and lines[0].split()[:2] == ["trial", "status"] and "run_url" not in lines[0]
    assert make_table([]).num_rows == 0


def test_values_lie_on_axes_where_they_should(tmp_path: Path) -> None:
    base = plan(tmp_path)
    at, ticks, labels = places("mcmc.level_scale", base.space, [{"power": 0.0}, [1, 2, 3, 4, 5, 6], 1.0])
    assert at.tolist() == [1, 2, 0] and ticks == [0, 1, 2]
    assert labels == ["1", "power 0", "[1, 2, 3, 4, 5, 6]"]
    assert label({"power": 1.0, "multiplier": 3}) == "3·power 1"
    space = parse_space({"optim.learning_rate": {"loguniform": [1e-4, 1e-1]}}, base.base)
    at, ticks, labels = places("optim.learning_rate", space, [1e-3])
    assert at.tolist() == pytest.approx([-3]) and ticks == pytest.approx([-4, -3, -2, -1])
    assert labels[0] == "0.0001"


@pytest.mark.slow
def test_plots_show_every_trial(tmp_path: Path) -> None:
    base = plan(tmp_path)
    full = make_plots(rows(), base.space, "sweep s of tiny")
    assert sorted(full) == ["learning_curves.png", "parallel_coordinates.png", "score_against_hyperparameters.png"]
    for name, data in full.items():
        for left_out in (0, 2, 3):
            some = make_plots([one for one in rows() if one.trial.number != left_out], base.space, "sweep s of tiny")
            assert some[name] != data, f"trial {left_out} leaves no trace in {name}"
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert pixels.shape[0] > 200 and pixels.shape[1] >= MIN_WIDTH and pixels.std() > 5
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.info["Description"].endswith(": sweep s of tiny")
    # A sweep of which nothing has come yet still has pictures.
    assert make_plots([], base.space, "sweep s of tiny").keys() == full.keys()
    assert make_plots([rows()[3]], base.space, "sweep s of tiny").keys() == full.keys()


@pytest.mark.parametrize("name", ["digits", "cifar10", "lsun_bedroom64"])
def test_the_winners_command_trains_the_winner_at_full_length(name: str, tmp_path: Path) -> None:
    words = ["--preset", name, "--data", "/data", "--storage", str(tmp_path), "--sweep-name", "s", "--setting", "t6"]
    words += ["--train.num-steps", "4000", "--num-workers", "2", "--train.no-horizontal-flip", "--engine.precision"]
    made, _ = parse_sweep([*words, "bfloat16", "--space", '{"optim.half_life_steps": [null, 7]}'])
    values = {"model.num_res_blocks": 3, "mcmc.level_scale": [1, 2, 3, 4, 5, 6.5], "optim.half_life_steps": None}
    values["mcmc.level_chain_steps"] = [9, 5, 4, 3, 2, 1]
    run = apply(values, made.base)
    line = submitted(train_words(run, name, "t6", "s-0003-full"))
    prefix, command, *options = shlex.split(line.partition(" -- ")[2])
    assert prefix == "python" and Path(command).exists()
    category, rest = (options[1], options[2:]) if options[0] == "--category" else (None, options)
    lsun = {"church_outdoor": name, "bedroom": name} if category else None
    trained, _ = parse_train(name, [*(["--category", category] if category else []), *rest], lsun)
    whole = dataclasses.replace(run.experiment.train, num_steps=preset(name).train.num_steps)
    assert trained.experiment == dataclasses.replace(run.experiment, train=whole)
    assert (trained.run_name, trained.num_workers, trained.engine.precision) == ("s-0003-full", 2, "bfloat16")
    assert (trained.data, trained.storage) == ("/data", str(tmp_path))
    assert trained.tracking.score_every_steps is None
    assert isinstance(trained.experiment, Experiment)


@pytest.mark.parametrize(("given", "wanted"), [(156, 780), (100, 500), (199, 995), (1, 5)])
def test_the_winners_first_objective_keeps_its_share(given: int, wanted: int, tmp_path: Path) -> None:
    words = ["--preset", "digits", "--data", "/data", "--storage", str(tmp_path), "--sweep-name", "s"]
    words += ["--train.num-steps", "200", "--optim.first-objective-steps", str(given)]
    made, _ = parse_sweep([*words, "--optim.warmup-steps", "9", "--space", '{"optim.beta1": [0.5, 0.9]}'])
    run = apply({"optim.beta1": 0.5}, made.base)
    assert run.experiment.optim.first_objective_steps == given
    line = train_words(run, "digits", "unet", "s-0003-full")
    trained = parse_train("digits", line[2:])[0].experiment
    assert (trained.optim.first_objective_steps, trained.train.num_steps) == (wanted, 1000)


def test_short_trials_keep_the_share_of_their_first_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--preset", "digits", "--data", "/data", "--storage", str(tmp_path), "--sweep-name", "s"]
    made, _ = parse_sweep([*words, "--train.num-steps", "200"])
    assert made.base.experiment.optim.first_objective_steps == 156
    said = "optim.first_objective_steps: 156, the share of 200 steps that 780 of 1000 are\n"
    assert capsys.readouterr().err == said
    with pytest.raises(UserError, match=r"got 200 of the 200 steps .* set optim.first_objective_steps to 150 \(three"):
        parse_sweep([*words, "--train.num-steps", "200", "--optim.first-objective-steps", "200"])


def test_doors_are_where_the_command_says() -> None:
    for name, (command, *category) in COMMANDS.items():
        text = Path(command).read_text()
        assert f'"{name}"' in text, command
        assert not category or f'"{category[1]}": "{name}"' in text


def test_early_stopping_waits_for_the_warm_up(tmp_path: Path) -> None:
    made = plan(tmp_path)
    # 20 steps of warm-up and a tenth of 200 steps, of 8 images each.
    assert (made.grace_images, made.max_images) == (8 * 40, 8 * 200)
    longer = plan(tmp_path, space={"optim.warmup_steps": [10, 50], "train.batch_size": [8, 16]})
    assert (longer.grace_images, longer.max_images) == (16 * 50 + 16 * 20, 16 * 200)
    assert plan(tmp_path, "--grace-images", "160").grace_images == 160
    with pytest.raises(UserError, match=r"--grace-images: got 159, expected 160 \(the images of the warm-up\)"):
        plan(tmp_path, "--grace-images", "159")
    assert plan(tmp_path, "--grace-images", "159", "--no-early-stopping").grace_images == 159


def test_trials_shorter_than_the_warm_up_are_not_stopped_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ((), ("--grace-images", "7")):
        made = plan(tmp_path, "--optim.warmup-steps", "300", *more)
        assert made.grace_images == made.max_images == 8 * 200
        said = "no trial is stopped early: the warm-up takes 2400 images, the longest trial sees 1600; "
        assert said in capsys.readouterr().err
    plan(tmp_path, "--optim.warmup-steps", "300", "--no-early-stopping")
    assert capsys.readouterr().err == ""


def test_a_plan_has_scores_and_a_checkpoint_at_each(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert (made.base.tracking.score_every_steps, made.base.checkpoint.every_steps) == (20, 20)
    made = plan(tmp_path, "--tracking.score-every-steps", "50", "--checkpoint.every-steps", "30")
    assert (made.base.tracking.score_every_steps, made.base.checkpoint.every_steps) == (50, 30)
    assert made.model_name == "digits-s"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--sweep-name", "a b"), "--sweep-name: got a b"),
        (("--num-samples", "0"), "--num-samples: got 0"),
        (("--search", "grid", "--num-samples", "5"), "--num-samples: got 5 for a grid of 6, expected all 6 points"),
        (("--rescore-seeds", "1", "1"), r"--rescore-seeds: got \(1, 1\)"),
        (("--space-file", "/nowhere.yaml"), "expected one of them"),
        (("--start-from", "/runs/a"), "--start-from: got /runs/a"),
        (("--reduction-factor", "1"), "--reduction-factor: got 1"),
        (("--space", "{"), "--space: got no JSON"),
    ],
)
def test_options_that_no_sweep_can_have(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        plan(tmp_path, *words)


def test_a_space_from_a_file_is_the_same(tmp_path: Path) -> None:
    made = plan(tmp_path)
    (tmp_path / "space.yaml").write_text(
        "model.num_res_blocks: [1, 2]\nmcmc.level_scale:\n  - 1.0\n  - {power: 0.0}\n  - [1, 2, 3, 4, 5, 6]\n"
    )
    options = dataclasses.replace(made.options, space=None, space_file=str(tmp_path / "space.yaml"))
    assert plan_sweep(made.base, options, preset="digits", setting="t6").space == made.space
    (tmp_path / "space.yaml").write_text("{")
    with pytest.raises(UserError, match=r"--space-file: got .*space.yaml"):
        plan_sweep(made.base, options, preset="digits", setting="t6")


def test_a_sweep_of_before_a_field_was_chosen_continues_as_it_began(tmp_path: Path) -> None:
    new = plan(tmp_path, "--setting", "t1k", space={"optim.beta1": [0.8, 0.9]})
    mcmc = dataclasses.replace(new.base.experiment.mcmc, normal_spread="transition")
    base = dataclasses.replace(new.base, experiment=dataclasses.replace(new.base.experiment, mcmc=mcmc))
    old = dataclasses.replace(new, base=base)
    SweepFolder(old, "f").begin()
    record = tmp_path / "s" / "sweep.json"
    stored = json.loads(record.read_text())
    del stored["experiment"]["mcmc"]["normal_spread"]
    record.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"mcmc\.normal_spread: transition -> posterior"):
        SweepFolder(new, "f").check()
    for _ in range(2):
        found = continued(new)
        assert found == old
        SweepFolder(found, "f").check()
        SweepFolder(found, "f").begin()
    other = dataclasses.replace(new, options=dataclasses.replace(new.options, sweep_name="other"))
    assert continued(other) == other
