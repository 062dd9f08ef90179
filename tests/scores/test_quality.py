"""``python -m benchmarks.quality``: scores and counts of known answer, and the command end to end in a tiny size."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks import digit_features
from benchmarks.quality import calibration, runs
from benchmarks.quality.__main__ import main
from benchmarks.quality.calibration import Ratio, calibration_table, directions, draw_normal, ratios
from benchmarks.quality.data import Data
from benchmarks.quality.ddpm import Ddpm, kept_signal
from benchmarks.quality.options import parse
from benchmarks.quality.record import Record
from benchmarks.quality.schedule import Schedule
from benchmarks.quality.scores import classes, compared, nearest
from benchmarks.quality.settings import DATA, SETTINGS, Phase, Setting, applied
from benchmarks.quality.trainees import EnergyTrainee, start, step_flop
from benchmarks.quality.unet import NoiseUNet
from drl_dist.build import build_ladder, build_levels
from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH
from drl_dist.common.program import Stopped
from drl_dist.config.presets import preset
from drl_dist.config.tree import ModelConfig
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.evaluation.distances import precision_recall
from drl_dist.evaluation.features import Features
from drl_dist.training import ema
from drl_dist.training.cost import count_flop

TINY: dict[str, dict[str, Any]] = {
    "model": {"width": 4, "width_multipliers": (1, 2), "time_embedding_dim": 8, "time_hidden_dim": 8},
    "mcmc": {"num_chain_steps": 2},
    "train": {"batch_size": 8},
    "optim": {"warmup_steps": 2},
}
ENERGY = Setting(
    label="tiny",
    overrides=TINY,
    phases=(Phase(share=0.6), Phase(share=0.4, overrides={"mcmc": {"num_chain_steps": 4}})),
    draws={"own": {}, "one step": {"mcmc": {"num_chain_steps": 1}}},
)
BASELINE = Setting(label="tiny DDPM", method="ddpm", overrides=TINY, draws={"three": 3, "five": 5})
NUM_STEPS, NUM_TRAIN = 20, 1437


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command changes two things of its process."""
    monkeypatch.setattr("benchmarks.quality.__main__.stop_on_signals", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_of_known_answer() -> None:
    some = normals(80, 5, seed=0)
    same = compared(Features(some, None), Features(some.clone(), None))
    assert same["fid"] == pytest.approx(0, abs=1e-6) and same["kid"] <= 0
    assert (same["precision"], same["recall"]) == (1, 1)
    assert precision_recall(some, some + 100) == (0, 0)
    # One of two clusters: all that is generated is real, and half of what is real is generated.
    clusters = torch.cat([some, some + 100])
    assert precision_recall(some, clusters) == (1, 0.5)
    assert precision_recall(clusters, some) == (0.5, 1)


def test_classes_are_counted_and_confidence_is_measured() -> None:
    sure, unsure = [20.0, 0.0, 0.0], [0.0, 0.1, 0.0]
    found = classes(Features(torch.zeros(4, 1), torch.tensor([sure, sure, sure, unsure])))
    assert found == {"class_shares": [0.75, 0.25, 0.0], "recognised": 0.75}


def test_a_memory_of_training_images_is_noticed() -> None:
    pixels = (normals(300, 1, 4, 4, seed=1) * 40 + 128).clamp(0, 255).to(torch.uint8)
    train, held_out, unseen = pixels[:200], pixels[200:250], pixels[250:]
    data = Data("some", train, torch.zeros(200), held_out, torch.zeros(50))
    assert nearest(train[:100], data)["nearest_ratio"] < 0.85
    # In its own group at distance 0, in the three others as far as any.
    assert nearest(train[:50], data)["nearest_ratio"] == pytest.approx(0.75, abs=0.05)
    assert nearest(unseen, data)["nearest_ratio"] == pytest.approx(1, abs=0.06)


def test_operations_of_a_known_convolution() -> None:
    x, weight = torch.zeros(3, 4, 6, 6, requires_grad=True), torch.zeros(5, 4, 3, 3, requires_grad=True)
    forward = 2 * 3 * 6 * 6 * 4 * 5 * 9
    assert count_flop(lambda: functional.conv2d(x, weight, padding=1)) == forward
    # A gradient with respect to the input costs another forward, one with respect to the weight a third.
    assert count_flop(lambda: functional.conv2d(x, weight, padding=1).sum().backward()) == 3 * forward


def test_a_step_costs_2k_and_6_forwards() -> None:
    def step(num_chain_steps: int) -> float:
        setting = Setting(label="", overrides=TINY | {"mcmc": {"num_chain_steps": num_chain_steps}})
        return step_flop(setting, setting.experiments("digits", 0)[0])

    (experiment,) = Setting(label="", overrides=TINY).experiments("digits", 0)
    network = EnergyTrainee(experiment).state.network
    prepared = network.prepare(torch.tensor([0]))
    with torch.no_grad():
        forward = count_flop(lambda: network.evaluate(prepared, torch.zeros(1, 1, 8, 8)))
    assert step(7) - step(3) == 4 * 2 * forward
    # The stem's gradient with respect to the images is not formed in the update; time embeddings come on top.
    assert step(3) == pytest.approx((2 * 3 + 6) * forward, rel=0.1)


@pytest.mark.parametrize("num_steps", [250, 1000])
def test_the_baseline_draws_what_an_exact_network_knows(num_steps: int) -> None:
    std = 0.25

    def exact(y: Tensor, level: Tensor) -> Tensor:
        kept = kept_signal()[level].reshape(-1, 1, 1, 1)
        return ((1 - kept).sqrt() * y / (kept * std**2 + 1 - kept)).float()

    drawn = Ddpm(exact, seed=0).draw(torch.arange(100), (1, 4, 4), num_steps)
    assert float(drawn.std()) == pytest.approx(std, rel=0.06) and abs(float(drawn.mean())) < 0.03
    alone = Ddpm(exact, seed=0).draw(torch.tensor([3, 4]), (1, 4, 4), num_steps)
    assert torch.allclose(drawn[3:5], alone, atol=1e-4)
    x = std * normals(4000, 1, 4, 4, seed=2)
    ids = torch.arange(len(x))
    best = float(Ddpm(exact, seed=0).loss(x, ids))
    for factor in (0.9, 1.1):
        assert float(Ddpm(lambda y, level, by=factor: by * exact(y, level), seed=0).loss(x, ids)) > best


def test_the_unet_begins_at_zero_and_sees_image_and_level() -> None:
    model = ModelConfig(resolution=8, channels=1, width=8, width_multipliers=(1, 2), num_res_blocks=1)
    network, y, level = NoiseUNet(model, 0), normals(2, 1, 8, 8, seed=3), torch.tensor([20, 600])
    assert network(y, level).shape == y.shape and not network(y, level).any()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    out = network(y, level)
    assert not torch.allclose(out, network(y, level + 100)) and not torch.allclose(out, network(y + 1, level))
    assert torch.allclose(out[1:], network(y[1:], level[1:]), atol=1e-5)


def test_a_schedule_shares_the_budget_out() -> None:
    first = applied(preset("digits"), {"train": {"batch_size": 10}})
    second = applied(first, {"mcmc": {"num_chain_steps": 3}})
    plan = Schedule.within(1e6, [first, second], [0.6, 0.4], [100.0, 400.0])
    assert [(stage.first_step, stage.num_steps) for stage in plan.stages] == [(0, 600), (600, 100)]
    assert all(stage.experiment.train.num_steps == 700 for stage in plan.stages)
    assert plan.flop_after(700) == 1e6 and plan.flop_after(650) == 8e5
    assert [plan.step_at(share) for share in (1e-9, 0.1, 0.6, 0.8, 1.0)] == [1, 100, 600, 650, 700]
    assert plan.stage_of(599).experiment.mcmc == first.mcmc and plan.stage_of(600).experiment.mcmc == second.mcmc
    assert plan.stage_of(700) is plan.stages[1]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_row_is_an_experiment(name: str, data: str) -> None:
    setting = SETTINGS[name]
    assert sum(phase.share for phase in setting.phases) == pytest.approx(1)
    for experiment in setting.experiments(data, 5):
        assert experiment.train.seed == 5 and not experiment.train.horizontal_flip
        for how in setting.draws.values():
            assert isinstance(how, int) == (setting.method == "ddpm")
            if not isinstance(how, int):
                applied(experiment, how)
    # The record of a row survives JSON, or every start would refuse the results of the one before.
    assert json.loads(json.dumps(setting.as_record())) == setting.as_record()


def test_calibration_of_an_exact_density_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (experiment,) = Setting(label="", overrides=TINY).experiments("digits", 0, calibration.SMALL_IMAGES)
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    basis, variances = directions()
    assert torch.allclose(basis @ basis.T, torch.eye(64, dtype=torch.float64))
    # Half as wide as the truth along flat directions.
    narrow = torch.where(variances == variances[0], 1.0, 0.5)

    class Exact:
        def __init__(self, *_: object, **__: object) -> None: ...

        def raw_at(self, level: Tensor) -> LogDensityAndGrad:
            t = int(level[0])
            of_x = ladder.cumulative_scale[t] ** 2 * variances + ladder.cumulative_std[t] ** 2
            precision = 1 / (narrow * levels.transition_scale[t] ** 2 * of_x * levels.energy_scale[t])

            def raw(y: Tensor) -> tuple[Tensor, Tensor]:
                along = y.double().flatten(1) @ basis.T
                return torch.zeros(len(y)), (-(along * precision) @ basis).float().reshape(y.shape)

            return raw

    monkeypatch.setattr(calibration, "GradientEngine", Exact)
    monkeypatch.setattr(calibration, "NUM_DRAWS", 512)
    found = ratios(EnergyTrainee(experiment), experiment, 0)
    assert [one.level for one in found] == list(range(6))
    for one in found:
        assert one.learned_flat == pytest.approx(0.5, rel=1e-3) and one.learned_large == pytest.approx(1, rel=1e-3)
    text = calibration_table({"a": [dataclasses.replace(found[0], learned_flat=math.inf)], "b": []})
    assert "| a | 0 | inf | 1 |" in text and "| b | diverged |" in text


def test_gaussian_images_have_the_variances_asked_for() -> None:
    basis, variances = directions()
    along = draw_normal(variances, 4000, torch.Generator().manual_seed(0)).double().flatten(1) @ basis.T
    assert torch.allclose(along.var(0), variances, rtol=0.15)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """Tiny settings in place of the real ones; their budget."""
    for name, setting in (("preset", ENERGY), ("ddpm", BASELINE)):
        monkeypatch.setitem(SETTINGS, name, setting)
    monkeypatch.setattr(digit_features, "_STEPS", 5)
    yield step_flop(ENERGY, ENERGY.experiments("digits", 0)[0]) * 8 * NUM_STEPS / NUM_TRAIN / 1e9


def words(out: Path, budget: float, *more: str) -> list[str]:
    named = [] if "--calibration" in more else ["--settings", "preset,ddpm"]
    return ["--out", str(out), "--seeds", "1", "--budget", str(budget), "--images", "64", *named, *more]


def without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: without_times(value) for name, value in found.items() if name != "seconds"}
    return [without_times(value) for value in found] if isinstance(found, list) else found


@pytest.mark.slow
def test_a_comparison_stops_resumes_and_reports(tiny: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each way of drawing is also counted, operation by operation, and a hundred of these take longer than the chain.
    monkeypatch.setattr(ema, "SETTLING_ITERATIONS", 3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(words(whole, tiny)) == 0
    told = json.loads((whole / "scores.json").read_text())
    assert [(one["setting"], one["point"]) for one in told["points"]] == [
        (name, point) for name in ("preset", "ddpm") for point in range(4)
    ]
    end = told["points"][3]
    assert end["step"] == end["num_steps"] and list(end["draws"]) == ["own", "one step"]
    assert end["flop_per_training_image"] == pytest.approx(tiny * 1e9, rel=0.1)
    assert end["draws"]["own"]["flop_per_image"] > 2 * end["draws"]["one step"]["flop_per_image"]
    costs = [one["flop_per_training_image"] for one in told["points"][:4]]
    assert costs[0] / costs[3] == pytest.approx(0.1, abs=0.03)
    table = (whole / "table.md").read_text()
    assert "| tiny | own |" in table and "| tiny DDPM | five |" in table and "held-out images" in table
    for name in ("curves.png", "sheets/preset-0.png", "sheets/held-out.png"):
        with Image.open(whole / name) as picture:
            assert picture.width >= MIN_WIDTH and picture.info["Description"]
    assert sorted(path.name for path in (whole / "sheets").iterdir()) == [
        "ddpm-0-1.png", "ddpm-0.png", "held-out.png", "preset-0-1.png", "preset-0.png",
    ]  # fmt: skip
    assert not list(whole.glob("points/*.safetensors"))

    # Ended while samples are drawn at the third point, and again in the middle of the steps.
    def stop(*_: object, **__: object) -> None:
        raise Stopped("SIGTERM")

    add, save = Record.add_point, runs._SAVE_SECONDS
    monkeypatch.setattr(Record, "add_point", lambda *given: stop() if given[4] == 2 else add(*given))
    with pytest.raises(Stopped):
        main(words(broken, tiny, "--settings", "preset"))
    monkeypatch.setattr(Record, "add_point", add)
    monkeypatch.setattr(runs, "_SAVE_SECONDS", 0.0)
    step = EnergyTrainee.step
    monkeypatch.setattr(
        EnergyTrainee, "step", lambda self, batch: stop() if self.state.step == 14 else step(self, batch)
    )
    with pytest.raises(Stopped):
        main(words(broken, tiny, "--settings", "preset"))
    monkeypatch.setattr(EnergyTrainee, "step", step)
    monkeypatch.setattr(runs, "_SAVE_SECONDS", save)
    assert main(words(broken, tiny, "--settings", "preset")) == 0
    again = json.loads((broken / "scores.json").read_text())
    assert without_times(again["points"]) == without_times(told["points"][:4])
    assert again["reference"] == told["reference"]

    # Nothing is left to do, and nothing else is let into the folder.
    monkeypatch.setattr(runs, "start", stop)
    assert main(words(whole, tiny)) == 0
    for more in (["--images", "65"], ["--budget", "1"], ["--calibration"]):
        with pytest.raises(UserError, match="another request"):
            main(words(whole, tiny, *more))
    monkeypatch.setitem(SETTINGS, "preset", dataclasses.replace(ENERGY, draws={"own": {}}))
    with pytest.raises(UserError, match="results of another definition of it"):
        main(words(whole, tiny))


@pytest.mark.slow
def test_a_divergence_is_told_and_does_not_end_the_others(
    tiny: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = dataclasses.replace(ENERGY, overrides=TINY | {"optim": {"learning_rate": 1e30, "warmup_steps": 0}})
    monkeypatch.setitem(SETTINGS, "preset", wild)
    assert main(words(tmp_path / "out", tiny)) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| tiny | diverged: seed 0 after" in table and "| tiny DDPM | three |" in table


@pytest.mark.slow
def test_calibration_runs(tiny: float, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(out, tiny, "--calibration", "--settings", "preset")) == 0
    table = (out / "calibration.md").read_text()
    assert table.count("| tiny, seed 0 |") == 6 and "DDPM" not in table
    assert main(words(out, tiny, "--calibration", "--settings", "preset")) == 0
    assert (out / "calibration.md").read_text() == table
    (point,) = (out / "points").iterdir()
    assert Ratio(**json.loads(point.read_text())["levels"][5]).level == 5
    assert main(words(out, tiny, "--calibration", "--settings", "preset", "--first-seed", "3")) == 0
    other = (out / "calibration.md").read_text()
    assert other.count("| tiny, seed 3 |") == 6 and "seed 0" not in other


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--settings", "nonsense"], "--settings: got nonsense, expected some of preset, unet, unet_matching, ddpm"),
        (["--settings", ","], "--settings"),
        (["--settings", "ddpm", "--calibration"], "--settings: got ddpm, expected some of preset"),
        (["--seeds", "0"], "--seeds: got 0, expected at least 1"),
        (["--first-seed", "-1"], "--first-seed: got -1, expected at least 0"),
        (["--data", "mnist"], "--data: got mnist"),
        (["--budget", "0"], "--budget"),
        (["--budget", "nan"], "--budget"),
        (["--images", "3"], "--images"),
        (["--threads", "0"], "--threads"),
        (["--out", "gs://bucket/x"], "--out"),
        (["--data", "fashion_mnist", "--source", "/nowhere"], "--source: got /nowhere, expected a folder"),
    ],
)
def test_mistakes_are_refused(more: list[str], match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        main(words(tmp_path / "new", 1, *more))


def test_samples_on_the_way_can_be_left_out() -> None:
    assert parse(["--out", "x"], "").points == (0.1, 1 / 6, 1 / 3, 1)
    assert parse(["--out", "x", "--only-at-the-end"], "").points == (1,)


@pytest.mark.parametrize("name", ["table.md", "request.json"])
def test_folders_of_others_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="something else"):
        main(words(tmp_path, 1))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(UserError, match="got the file"):
        main(words(tmp_path / name, 1))


def test_a_word_too_many_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words(tmp_path, 1, "--seeds", "many"))
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err == "command line: argument --seeds: invalid whole_number value: 'many'; see --help.\n"
    )


def test_an_objective_that_changes_within_a_phase_is_refused() -> None:
    # Its steps would all be charged at the price of the first.
    change = {"optim": {"first_objective": "score_matching", "first_objective_steps": 2}}
    with pytest.raises(ValueError, match="an objective changes with a phase"):
        Setting(label="", overrides=TINY | change).experiments("digits", 0)


def test_the_baseline_learns() -> None:
    (experiment,) = dataclasses.replace(BASELINE, overrides=TINY | {"optim": {"learning_rate": 1e-2}}).experiments(
        "digits", 0
    )
    trainee = start(BASELINE, experiment)
    images = torch.full((8, 1, 8, 8), 200, dtype=torch.uint8)
    ids = torch.arange(8)
    network: Any = trainee.state.network

    def loss() -> float:
        with torch.no_grad():
            return float(Ddpm(network, 0).loss(images / 127.5 - 1, ids))

    before = loss()
    for _ in range(60):
        trainee.step(Batch(images, ids))
    assert trainee.state.step == 60 and loss() < 0.7 * before
