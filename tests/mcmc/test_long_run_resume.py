"""A long run that is interrupted, however often, ends with the bytes of one that is not; its folder is its own."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder
from drl_dist.jobs.common.output import job_records
from drl_dist.jobs.long_run import driver as long_run_driver
from drl_dist.jobs.long_run import output
from drl_dist.jobs.long_run.driver import long_run
from drl_dist.jobs.long_run.options import LongRunOptions
from drl_dist.mcmc.settings import AdaptationConfig
from tests.helpers.forked import kill
from tests.support import ROOT, subprocess_environment, wait_for, write_tiny_checkpoint

JOB = """
import sys
from drl_dist.jobs.common.output import job_records
job_records.SAVE_SECONDS, job_records._COST = 0.0, 0
sys.argv = ["long_run.py", *sys.argv[1:]]
import runpy
runpy.run_path({path!r}, run_name="__main__")
"""
"""The command itself, but it keeps its chains after every step."""


class Killed(BaseException):
    """Ends a job in the middle of a write."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", width=4, num_chain_steps=2)


@pytest.fixture
def always_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_records, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(job_records, "_COST", 0)


def options(checkpoint: Path, out: Path, **changed: object) -> LongRunOptions:
    fields: dict[str, object] = {
        "model": str(checkpoint),
        "out": str(out),
        "steps_per_level": "1,9",
        "num_images": 5,
        "batch_size": 3,
        "seed": 7,
        "threads": 1,
        "max_tree_depth": 3,
        "adapt": AdaptationConfig(num_chains=12, num_steps=10, lowest_rate=0.3),
    }
    return LongRunOptions(**fields | changed)  # pyright: ignore[reportArgumentType]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.integration
@pytest.mark.usefixtures("always_saving")
@pytest.mark.parametrize(
    ("kernel", "start"), [("hmc", "normal_approximation"), ("hmc", "x_noisy"), ("nuts", "normal_approximation")]
)
def test_a_run_that_is_cut_short_at_every_kind_of_place_ends_with_the_same_bytes(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kernel: str,
    start: str,
) -> None:
    # Drawn again by every start. The killed processes below compare the picture itself.
    monkeypatch.setattr(output, "figure", lambda *given: repr(given).encode())
    write, left = Folder.write, 0

    def cut_short(self: Folder, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed(name)
        write(self, name, data)

    assert long_run(options(checkpoint, tmp_path / "straight", kernel=kernel, start=start)) == 0
    monkeypatch.setattr(Folder, "write", cut_short)
    cuts: list[str] = []
    # Further each time, and at another kind of place, since the numbers of writes have nothing in common.
    for after in (2, 5, 11, 17, 23, 31, 41, 47, 59):
        left = after
        try:
            long_run(options(checkpoint, tmp_path / "cut", kernel=kernel, start=start))
        except Killed as killed:
            cuts.append(str(killed))
        else:
            break
    left = 0
    assert long_run(options(checkpoint, tmp_path / "cut", kernel=kernel, start=start)) == 0
    assert {"adaptation.safetensors", "chains.safetensors"} <= set(cuts), cuts
    printed = capsys.readouterr().out
    assert "resumes at the step size of level" in printed
    assert "resumes at 9 steps per level, images from 0 on, level" in printed
    assert contents(tmp_path / "cut") == contents(tmp_path / "straight")


@pytest.mark.integration
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    given = ("--steps-per-level", "2,40", "--num-images", "4", "--batch-size", "2", "--seed", "3", "--threads", "1")
    adapt = ("--adapt.num-chains", "12", "--adapt.num-steps", "10", "--adapt.lowest-rate", "0.3")

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-c", JOB.format(path=str(ROOT / "jobs" / "long_run.py"))),
                *("--model", str(checkpoint), "--out", str(folder)),
                *(*given, *adapt),
            ],
            env=subprocess_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kept(name: str) -> Callable[[], bool]:
        before = (out / "_progress" / name).stat().st_mtime_ns if (out / "_progress" / name).exists() else 0
        return lambda: (out / "_progress" / name).exists() and (out / "_progress" / name).stat().st_mtime_ns != before

    for name in ("adaptation.safetensors", "chains.safetensors", "40-000000.safetensors"):
        with start(out) as job:
            wait_for(kept(name))
            kill(job)
    assert not (out / "diagnostics.json").exists()
    with start(out) as job:
        wait_for(kept("chains.safetensors"))
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=100)
    assert job.returncode == 75
    assert said.endswith("stopped by SIGTERM; the same command resumes\n")
    for folder in (out, tmp_path / "straight"):
        with start(folder) as job:
            printed, said = job.communicate(timeout=200)
        assert job.returncode == 0, said
        assert ("resumes at 40 steps per level, images from 2 on, level" in printed) == (folder == out)
    assert contents(out) == contents(tmp_path / "straight")


@pytest.fixture(scope="module")
def done(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    assert long_run(options(checkpoint, out, steps_per_level="2", num_images=2)) == 0
    return out


def again(checkpoint: Path, out: Path, **changed: object) -> int:
    return long_run(options(checkpoint, out, **{"steps_per_level": "2", "num_images": 2} | changed))


@pytest.mark.slow
def test_a_complete_folder_is_left_alone(checkpoint: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    assert again(checkpoint, done) == 0
    assert "already holds these chains, in diagnostics.json; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 8}, r"\(seed: 7 -> 8\)"),
        ({"num_images": 3}, r"\(num_images: 2 -> 3\)"),
        ({"steps_per_level": "2,4"}, r"\(chain_lengths: \[2\] -> \[2, 4\]\)"),
        ({"kernel": "nuts"}, r"\(kernel: hmc -> nuts, max_tree_depth: None -> 3\)"),
        ({"precision": "float32"}, r"\(precision: float64 -> float32\)"),
        ({"adapt": AdaptationConfig(num_chains=12, num_steps=10)}, r"\(adapt.lowest_rate: 0.3 -> 0.6\)"),
    ],
)
def test_another_request_is_refused_before_the_model_is_loaded(
    checkpoint: Path,
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, object],
    told: str,
) -> None:
    before = contents(done)
    monkeypatch.setattr(long_run_driver, "load_model", None)
    with pytest.raises(UserError, match=f"got another request {told}, expected an empty folder, or this request"):
        again(checkpoint, done, **changed)
    assert contents(done) == before


def test_another_model_is_refused(done: Path, tmp_path: Path) -> None:
    other, before = write_tiny_checkpoint(tmp_path / "other", width=2, num_chain_steps=2), contents(done)
    with pytest.raises(UserError, match=r"got another request \(.*ema_sha256: .* -> .*\)"):
        again(other, done)
    assert contents(done) == before


def test_the_same_weights_at_another_address_are_the_same_request(
    checkpoint: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(Path(f"file://{checkpoint}"), done, model=f"file://{checkpoint}", start="x_noisy") == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("diagnostics.json", b"{}", "got diagnostics.json of something else, expected an empty folder"),
        ("samples_100.png", b"", "got samples_100.png of something else"),
        ("step_sizes.json", b"{}", "got step_sizes.json of something else"),
        ("index.parquet", b"", "got index.parquet of something else"),
        ("request.json", b'{"seed": 7', "got a damaged request.json, expected JSON that says what was asked for"),
        ("request.json", b"[]", "got a damaged request.json"),
        ("request.json", b'{"format": "drl_dist.edit"}', r"got the output of another job \(drl_dist.edit\)"),
        ("_progress/request.json", b"{}", "got _progress/request.json of something else"),
        ("_progress/chains.safetensors", b"", "got _progress/chains.safetensors of something else"),
        ("_progress/2-000000.safetensors", b"", "got _progress/2-000000.safetensors of something else"),
        ("steps_2/index.parquet", b"", "got steps_2/index.parquet of something else"),
        ("steps_2/x-generated-00000.tar", b"", "got steps_2/x-generated-00000.tar of something else"),
    ],
)
def test_what_another_job_or_an_older_one_left_is_not_written_over(
    checkpoint: Path, tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        again(checkpoint, tmp_path)
    assert contents(tmp_path) == {name: content}


@pytest.mark.slow
def test_files_of_others_are_left_where_they_are(checkpoint: Path, tmp_path: Path) -> None:
    write = Folder.write

    def ended(self: Folder, name: str, data: bytes) -> None:
        write(self, name, data)
        raise Killed

    # Not before: a folder that holds something of others is refused until the job has begun there.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Folder, "write", ended)
        again(checkpoint, tmp_path)
    (tmp_path / "_progress").mkdir(exist_ok=True)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "_progress" / "notes.txt").write_text("mine too")
    assert again(checkpoint, tmp_path) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "_progress").iterdir()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.usefixtures("always_saving")
def test_a_damaged_record_is_made_again(checkpoint: Path, done: Path, tmp_path: Path) -> None:
    write = Folder.write

    def cut_short(self: Folder, name: str, data: bytes) -> None:
        write(self, name, data)
        if name.startswith("2-"):
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Folder, "write", cut_short)
        again(checkpoint, tmp_path)
    records = tmp_path / "_progress"
    for name in ("2-000000.safetensors", "chains.safetensors"):
        data = bytearray((records / name).read_bytes())
        data[-1] ^= 1
        (records / name).write_bytes(data if name.startswith("2-") else data[:-9])
    assert again(checkpoint, tmp_path) == 0
    assert contents(tmp_path) == contents(done)


def test_the_request_holds_no_option_of_the_machine(checkpoint: Path, done: Path) -> None:
    request = json.loads((done / "request.json").read_text())
    assert (request["format"], request["version"], request["start"]) == ("drl_dist.long_run", 1, "x_noisy")
    assert not {"model", "out", "tracking_uri", "use_gpu", "schedule"} & request.keys()
    left_out = {"model", "out", "steps_per_level", "schedule", "use_gpu", "tracking_uri", "allow_code"}
    names = {field.name for field in dataclasses.fields(LongRunOptions)} - left_out
    assert names <= request.keys()


@pytest.mark.slow
def test_mala_runs_on_step_sizes_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    given = options(checkpoint, tmp_path / "out", kernel="mala", steps_per_level="3", num_images=2, start="x_noisy")
    assert long_run(given) == 0
    found = json.loads((tmp_path / "out" / "step_sizes.json").read_text())["schedule"]
    assert (found["kernel"], found["num_leapfrog_steps"]) == ("mala", 1)
    content = json.loads((tmp_path / "out" / "diagnostics.json").read_text())
    assert (content["kernel"], content["num_leapfrog_steps"], content["max_tree_depth"]) == ("mala", None, None)
    assert {row["leapfrogs_per_step"] for row in content["runs"][0]["levels"]} == {1.0}
    # HMC's would be other ones.
    with pytest.raises(UserError, match="got those of mala, expected those of hmc, which nuts takes"):
        long_run(options(checkpoint, tmp_path / "nuts", kernel="nuts", schedule=str(tmp_path / "out")))
