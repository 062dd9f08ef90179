"""Scores as a curve: the callback's images, when it draws them, and its numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drl_dist.build import build_sampler
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.data.index import open_index
from drl_dist.data.subset import image_batches
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.evaluation.distances import fid, kid
from drl_dist.evaluation.feature_spec import parse_features
from drl_dist.evaluation.features import features_of
from drl_dist.evaluation.networks import load_network
from drl_dist.evaluation.scores import image_scorer, score_images
from drl_dist.jobs.train.options import parse_train
from drl_dist.training.callbacks import Scores
from drl_dist.training.chain import GradientEngine
from drl_dist.training.ema import load_averaged
from drl_dist.training.loop import train
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.data.sets import write_set
from tests.helpers.steps import batch, tiny, waken
from tests.scores.tiny import tiny_network
from tests.worlds import run_world

NUM_IMAGES, EVERY, STEPS = 11, 2, 3
ENGINE = EngineConfig(compile="never", cuda_graph=False)


def experiment() -> Experiment:
    return tiny(num_steps=STEPS)


class Recorder:
    """Stands where the scores and the tracker do."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.logged: list[tuple[int, dict[str, float]]] = []

    def score(self, images: Tensor) -> dict[str, float]:
        self.images.append(images)
        return {"score/fid": float(images.double().mean())}

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.logged.append((step, numbers))


def one_rank(rank: int, world_size: int, folder: Path) -> None:
    """Train three steps on one rank of a world, and keep what was scored."""
    state, recorder = TrainState.create(experiment()), Recorder()
    waken(state)
    share = [
        dataclasses.replace(one, images=one.images[rank::world_size], positions=one.positions[rank::world_size])
        for one in (batch(12 * number) for number in range(STEPS))
    ]
    score, log = (recorder.score, recorder.log) if rank == 0 else (None, None)
    callback = Scores(experiment(), ENGINE, EVERY, NUM_IMAGES, rank, world_size, score, log)
    train(TrainStep(state, experiment(), ENGINE), state, experiment(), share, [callback])
    if rank == 0:
        # Every second step, and the last.
        assert [step for step, _ in recorder.logged] == [2, 3]
        tensors = {f"images-{place}": images.contiguous() for place, images in enumerate(recorder.images)}
        save_file(tensors, folder / f"{world_size}.safetensors")
        ema = {name: value.contiguous() for name, value in state.ema.shadow.items()}
        save_file(ema, folder / f"ema-{world_size}.safetensors")


@pytest.mark.slow
def test_all_ranks_draw_a_share_and_the_first_scores_them_all(tmp_path: Path) -> None:
    for world_size in (1, 2):
        run_world(one_rank, world_size, tmp_path)
    alone, together = (load_file(tmp_path / f"{world_size}.safetensors") for world_size in (1, 2))
    assert alone.keys() == together.keys() == {"images-0", "images-1"}
    for name, images in alone.items():
        assert images.shape == (NUM_IMAGES, 1, 8, 8) and images.dtype == torch.uint8
        # Sums over ranks are rounded in another order, which a pixel may show.
        assert float((images.float() - together[name].float()).abs().mean()) < 0.1
    assert not torch.equal(alone["images-0"], alone["images-1"]), "weights changed between the two"

    # The images are Algorithm 2's from the averaged weights.
    state = TrainState.create(experiment())
    engine = GradientEngine(load_averaged(state.network, load_file(tmp_path / "ema-1.safetensors")), ENGINE)
    drawn = build_sampler(experiment()).sample(engine.raw_at, PhiloxNoise(0), torch.arange(NUM_IMAGES), (1, 8, 8))
    difference = to_uint8(drawn).float() - alone["images-1"].float()
    assert float(difference.abs().mean()) < 0.1


def test_scores_are_fid_and_kid_of_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_set(str(tmp_path / "data"))
    index, option = open_index(str(tmp_path / "data")), tiny_network(tmp_path)
    generated = torch.randint(0, 200, (30, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    numbers = image_scorer(option, index, 40, torch.device("cpu"))(generated)

    network = load_network(parse_features(option), torch.device("cpu"))
    real = torch.cat(list(image_batches(index, 40, 7)))
    values, others = features_of(network, [generated]).values, features_of(network, [real]).values
    assert numbers == {
        "score/fid": pytest.approx(fid(values, others), rel=1e-6),
        "score/kid": pytest.approx(kid(values, others, subset_size=30, num_subsets=1)[0], rel=1e-6),
    }
    assert numbers["score/fid"] > 0.001
    assert score_images(generated, real, network) == pytest.approx(numbers, rel=1e-6)
    # The images of the data set itself are better than those that lack the brightest pixels.
    assert score_images(real, real, network)["score/fid"] < 0.1 * numbers["score/fid"]

    with pytest.raises(UserError, match="got 53 images, expected at least 54"):
        image_scorer(option, index, 54, torch.device("cpu"))


def test_scores_are_off_unless_asked_for() -> None:
    complete = ["--data", "/data", "--storage", "/runs", "--run-name", "a"]
    run, _ = parse_train("digits", complete)
    assert run.tracking.score_every_steps is None
    more = ["--tracking.score-every-steps", "500", "--tracking.score-features", "timm:resnet18=/weights.safetensors"]
    run, _ = parse_train("digits", [*complete, *more, "--tracking.score-num-images", "2000"])
    tracking = run.tracking
    assert (tracking.score_every_steps, tracking.score_num_images) == (500, 2000)
    assert parse_features(tracking.score_features).name == "resnet18"
    for name, value in (("score-every-steps", "0"), ("score-num-images", "9")):
        with pytest.raises(UserError, match=f"tracking.{name.replace('-', '_')}: got {value}, expected"):
            parse_train("digits", [*complete, f"--tracking.{name}", value])
