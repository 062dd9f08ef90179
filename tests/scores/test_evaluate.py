"""The scoring job: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from drl_dist.common.errors import UserError
from drl_dist.data.index import open_index
from drl_dist.data.manifest import MANIFEST_FORMAT, MANIFEST_NAME, MANIFEST_VERSION, Origin, read_origin
from drl_dist.data.subset import image_batches
from drl_dist.evaluation.feature_spec import parse_features
from drl_dist.evaluation.features import features_of
from drl_dist.evaluation.networks import load_network
from drl_dist.jobs.evaluate import driver as evaluate_driver
from drl_dist.jobs.evaluate.driver import evaluate_run, score
from drl_dist.jobs.evaluate.options import EvaluateOptions, check_evaluate
from tests.data.sets import write_set
from tests.scores.tiny import NoLogits, script, tiny_network
from tests.support import ROOT, subprocess_environment

COUNT = 45


def options(folder: Path, **changed: object) -> EvaluateOptions:
    fields: dict[str, object] = {
        "samples": str(folder / "samples"),
        "data": str(folder / "data"),
        "features": tiny_network(folder),
        "num_images": COUNT,
        "batch_size": 16,
        "cache_dir": str(folder / "cache"),
        "json": str(folder / "scores.json"),
    }
    return EvaluateOptions(**fields | changed)  # pyright: ignore[reportArgumentType]


def write_manifest(folder: Path, **changed: object) -> None:
    facts = {
        "format": MANIFEST_FORMAT,
        "version": MANIFEST_VERSION,
        "model": "models:/tiny/4",
        "model_name": "tiny",
        "model_version": 4,
        "step": 120,
    }
    schema = pa.schema([("image_id", pa.int64())], metadata={b"drl_dist": json.dumps(facts | changed).encode()})
    pq.write_table(schema.empty_table(), folder / MANIFEST_NAME)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Grey samples and data of 8x8 pixels."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_set(str(tmp_path / "samples"), (16, 16, 13))
    write_set(str(tmp_path / "data"))
    return tmp_path


@pytest.mark.slow
def test_the_door_scores_and_writes(folder: Path) -> None:
    write_manifest(folder / "samples")
    given = options(folder)
    arguments = [
        f"--{name.replace('_', '-')}={value}" for name, value in vars(given).items() if value not in (None, False)
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "evaluate.py"), *arguments],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"features of samples: {COUNT}/{COUNT} images" in done.stderr
    assert f"features of data: {COUNT}/{COUNT} images" in done.stderr
    report = json.loads((folder / "scores.json").read_text())

    network = load_network(parse_features(given.features), torch.device("cpu"))
    sets = [open_index(str(folder / name)) for name in ("samples", "data")]
    expected = score(*(features_of(network, image_batches(index, COUNT, 16)) for index in sets))
    assert report["fid"] == pytest.approx(expected.fid, rel=1e-6) and expected.fid > 0.001
    assert report["kid"] == pytest.approx(expected.kid, rel=1e-6)
    assert report["inception_score"] == pytest.approx(expected.inception_score, rel=1e-6)
    assert f"FID {report['fid']:.4f}\nKID {report['kid']:.6f} (one subset: no std)\n" in done.stdout
    assert f"inception score {report['inception_score']:.4f}" in done.stdout
    assert (report["num_images"], report["features"]) == (COUNT, given.features)
    assert report["samples"]["fingerprint"] == sets[0].fingerprint
    assert report["data"]["fingerprint"] == sets[1].fingerprint
    # The manifest does not say by which weights: null, like any fact that is not known.
    assert report["model"] == {
        "model": "models:/tiny/4",
        "step": 120,
        "name": "tiny",
        "version": 4,
        "ema_sha256": None,
    }


def test_images_against_themselves_have_fid_zero(folder: Path) -> None:
    assert evaluate_run(options(folder, data=str(folder / "samples"))) == 0
    report = json.loads((folder / "scores.json").read_text())
    assert report["fid"] == pytest.approx(0, abs=1e-6)
    assert report["kid"] < 0
    # One file for both: the same images, whatever they are called.
    assert len(list((folder / "cache").iterdir())) == 1


def test_without_logits_the_inception_score_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = script(NoLogits(), folder / "plain.pt")
    assert evaluate_run(options(folder, features=features)) == 0
    assert f"inception score: left out, since {features} gives no logits" in capsys.readouterr().out
    report = json.loads((folder / "scores.json").read_text())
    assert report["inception_score"] is None and report["fid"] >= 0


@pytest.mark.parametrize("lacking", ["samples", "data"])
def test_fewer_images_than_asked_for_are_an_error(folder: Path, lacking: str) -> None:
    write_set(str(folder / "half"), (16, 6))
    with pytest.raises(UserError, match=rf"^{lacking} .*/half: got 22 images, expected at least 45; ") as caught:
        evaluate_run(options(folder, **{lacking: str(folder / "half")}))
    assert "\n" not in str(caught.value)
    assert not (folder / "scores.json").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"resolution": 16}, "got 8x8 pixels, 1 channels against 16x16 pixels, 1 channels"),
        ({"channels": 3}, "got 8x8 pixels, 1 channels against 8x8 pixels, 3 channels"),
    ],
)
def test_images_of_another_kind_are_an_error(folder: Path, other: dict[str, int], message: str) -> None:
    write_set(str(folder / "other"), **other)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=message):
        evaluate_run(options(folder, data=str(folder / "other")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": ""}, "got no --samples, expected --samples, --data"),
        ({"samples": "", "data": ""}, "got no --samples, --data"),
        ({"data": "shards"}, "--data: got shards, expected a URL or an absolute path"),
        ({"num_images": 9}, "--num-images: got 9, expected at least 10"),
        ({"batch_size": 0}, "--batch-size: got 0"),
        ({"json": "scores.json"}, "--json: got scores.json"),
        ({"cache_dir": "gs://bucket/cache"}, "--cache-dir: got gs://bucket/cache, expected a folder of this machine"),
        ({"features": "resnet18"}, "feature network: got 'resnet18', expected inception, "),
    ],
)
def test_impossible_options_are_refused(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    check_evaluate(options(tmp_path))
    with pytest.raises(UserError, match=message):
        check_evaluate(options(tmp_path, **changed))


def test_more_images_than_there_are_name_the_option(folder: Path) -> None:
    for changed in ({"num_images": 1000}, {"num_images": 1000, "data": str(folder / "samples")}):
        with pytest.raises(UserError, match=r"; add images, or give a smaller --num-images, the same one wherever res"):
            evaluate_run(options(folder, **changed))


def test_a_gpu_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--use-gpu: got no GPU"):
        evaluate_run(options(folder, use_gpu=True))


def test_a_server_that_is_away_keeps_no_scores_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = "http://127.0.0.1:9"
    assert evaluate_run(options(folder, tracking_uri=away)) == 0
    shown = capsys.readouterr()
    assert "not logged to MLflow" in shown.out and not shown.err.count("warning"), "plain shards name no model"
    alone = json.loads((folder / "scores.json").read_text())

    write_manifest(folder / "samples")
    (folder / "scores.json").unlink()
    assert evaluate_run(options(folder, tracking_uri=away)) == 0
    told = f"warning: the scores are not logged to MLflow: MLflow server {away}: got no answer"
    warning = capsys.readouterr().err
    assert warning.index(told) < warning.index("features of samples"), "told before the work, not after it"
    report = json.loads((folder / "scores.json").read_text())
    assert report.pop("model")["name"] == "tiny"
    assert alone.pop("model") is None and report == alone


def test_a_server_that_does_not_know_the_model_keeps_no_scores_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(folder / "samples")

    def unknown(*_: object) -> None:
        raise UserError("model tiny", got="no version 4", expected="one that is registered", remedy="use its server")

    monkeypatch.setattr(evaluate_driver, "find_version", unknown)
    assert evaluate_run(options(folder, tracking_uri="http://127.0.0.1:1")) == 0
    assert "warning: the scores are not logged to MLflow: model tiny: got no version 4" in capsys.readouterr().err
    assert json.loads((folder / "scores.json").read_text())["fid"] > 0


def test_origin_of_samples(tmp_path: Path) -> None:
    assert read_origin(str(tmp_path)) is None
    write_manifest(tmp_path)
    assert read_origin(str(tmp_path)) == Origin(model="models:/tiny/4", step=120, name="tiny", version=4)
    write_manifest(tmp_path, model="/runs/a", model_name=None, model_version=None)
    assert read_origin(str(tmp_path)) == Origin(model="/runs/a", step=120, name=None, version=None)
    write_manifest(tmp_path, format="another")
    with pytest.raises(UserError, match=f"manifest .*{MANIFEST_NAME}: got ValueError: format 'another'"):
        read_origin(str(tmp_path))
    (tmp_path / MANIFEST_NAME).write_bytes(os.urandom(100))
    with pytest.raises(UserError, match=f"manifest .*{MANIFEST_NAME}: got ArrowInvalid"):
        read_origin(str(tmp_path))


def test_scores_of_another_comparison_are_not_written_over(folder: Path) -> None:
    assert evaluate_run(options(folder)) == 0
    report = folder / "scores.json"
    before = report.read_bytes()
    write_set(str(folder / "others"), (20, 31))
    for changed, told in (
        ({"num_images": 20}, r"num_images: 45 -> 20"),
        ({"samples": str(folder / "others")}, r"samples.fingerprint: [0-9a-f]+ -> [0-9a-f]+"),
        ({"features": script(NoLogits(), folder / "plain.pt")}, r"feature_network: .* -> .*"),
    ):
        with pytest.raises(
            UserError, match=rf"^file .*/scores.json: got the scores of another comparison \({told}\), expected no such"
        ):
            evaluate_run(options(folder, **changed))
        assert report.read_bytes() == before
    # The same comparison writes its own.
    report.write_bytes(before.rstrip())
    assert evaluate_run(options(folder, batch_size=9)) == 0
    assert json.loads(report.read_bytes()) == json.loads(before)
    for content, told in ((b"my notes", "got a damaged scores.json"), (b'{"a": 1}', "got JSON of something else, exp")):
        report.write_bytes(content)
        with pytest.raises(UserError, match=rf"^file .*/scores.json: {told}"):
            evaluate_run(options(folder))
        assert report.read_bytes() == content
