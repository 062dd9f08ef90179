"""Costs that must not grow with the number of workers, counted in operations; and the benchmark that shows them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.scale import __main__ as command
from benchmarks.scale import jobs, reading
from benchmarks.scale.growth import Cost, table
from benchmarks.scale.storage import BUCKET, Bucket, counted_storage, data_set
from drl_dist.checkpoints.format import CHECKSUMS
from drl_dist.checkpoints.retention import remove_orphaned
from drl_dist.checkpoints.storage import StoredCheckpoint, checkpoint_name
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.data import cache as cache_module
from drl_dist.data.cache import ShardCache
from drl_dist.data.index import open_index
from drl_dist.jobs.common.output.job_records import Records
from drl_dist.jobs.sample.output import SampleOutput
from drl_dist.jobs.sample.task import SampleRequest, TaskRecord

URL = f"{BUCKET}/data"


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with counted_storage() as bucket:
        yield bucket


@pytest.mark.integration
def test_the_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "TRACKED_SECONDS", 0.2)
    words = ["--workers", "1,4", "--shards", "24", "--samples", "8", "--units", "16", "--out", str(tmp_path / "out")]
    # Times of so few workers say nothing of their growth: the status may be either.
    assert command.main(words) in (0, 1)
    found = json.loads((tmp_path / "out/scale.json").read_text())
    costs = {key: cost["amounts"] for key, cost in found["costs"].items()}
    assert costs.keys() == (reading.new_costs() | jobs.new_costs()).keys()
    # Is the bucket there, how large is its index, and the index.
    assert costs["start_requests"] == {"1": 3, "4": 12}
    assert costs["newest_requests"] == {"1": 3, "4": 3}
    assert found["tracking"]["calls_per_second"] > 0
    assert (tmp_path / "out/table.md").read_text().count("\n") == 2 + len(costs)
    assert (tmp_path / "out/scale.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "changed", [["--workers", "4"], ["--workers", "4,1"], ["--workers", "1,x"], ["--shards", "1"], ["--units", "2"]]
)
def test_the_benchmark_refuses_before_it_writes(changed: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=changed[0]):
        command.main(["--out", str(tmp_path / "out"), *changed])
    assert not list(tmp_path.iterdir())


def test_growth_is_told() -> None:
    numbers = (1, 4, 16, 64, 256)
    costs = {
        "linear": Cost("linear", "", amounts={number: 3.0 * number for number in numbers}),
        "square": Cost("square", "", amounts={number: 0.1 * number**2 for number in numbers}),
    }
    assert costs["linear"].exponent == pytest.approx(1) and costs["linear"].is_fine
    assert costs["square"].exponent == pytest.approx(2) and not costs["square"].is_fine
    assert [line.endswith("faster than n log n |") for line in table(costs).splitlines()] == [False] * 3 + [True]


def test_a_rank_of_many_opens_the_shards_of_its_own_share(bucket: Bucket, tmp_path: Path) -> None:
    # 64 shards of 8 images in windows of 4 shards; a batch is 8 windows, and a rank's share a quarter of one.
    index = data_set(bucket, URL, 64, 8)
    fleet = reading.Fleet(32, index)
    assert fleet.batch_size == 256
    with reading.counting_opens() as opened, ExitStack() as stack:
        stream = stack.enter_context(fleet.stream(13, cache_dir=str(tmp_path)))
        for _ in islice(stream, 4):
            pass
        stream.close()
    # Four steps were taken, and up to two more are fetched ahead.
    assert 4 * 4 <= opened.total <= 6 * 4
    assert opened.most <= 3 * 4


def test_opening_an_index_lists_nothing_and_holds_its_numbers_once(bucket: Bucket) -> None:
    data_set(bucket, URL, 1500, 4)
    bucket.taken()
    index = open_index(URL, check_shards=False)
    assert dict(bucket.requests) == {"head": 2, "get": 1}
    assert index.num_samples == 6000 and "fingerprint" in vars(index)
    assert all(row.offsets.base is index.shards[0].offsets.base is not None for row in index.shards)
    bucket.taken()
    open_index(URL)
    assert bucket.requests["list"] == 2
    with pytest.raises(UserError, match=r"no index.parquet"):
        bucket.folders[URL.removeprefix("gs://")].pop("index.parquet")
        open_index(URL, check_shards=False)


def test_a_cache_adds_up_its_shards_only_when_it_is_full(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, evict = list[int](), ShardCache._evict

    def counted(self: ShardCache, target: int, *, keep: Path) -> int:
        looks.append(len(list(self._dir.glob("*.tar"))))
        return evict(self, target, keep=keep)

    monkeypatch.setattr(ShardCache, "_evict", counted)
    rows = data_set(bucket, URL, 200, 1).shards
    cache = ShardCache(URL, cache_dir=str(tmp_path), max_bytes=100 * rows[0].size)
    for row in rows[:100]:
        cache.open(row).close()
    assert looks == [0]
    # Of a hundred, three more than needed go at a time.
    for row in rows[100:]:
        cache.open(row).close()
        assert len(list(tmp_path.glob("*.tar"))) <= 100
    assert len(looks) == 1 + 25
    # What somebody else has put in the place of its note stays, and everything is looked at.
    (tmp_path / cache_module.NOTE).write_text("mine")
    cache.open(rows[0]).close()
    assert len(looks) == 27 and (tmp_path / cache_module.NOTE).read_text() == "mine"


def test_a_driver_asks_for_all_news_at_once() -> None:
    found = {workers: jobs.polling(workers) for workers in (8, 64)}
    for workers, cost in found.items():
        # A start, and three pieces of news for each unit; each is looked for twice at most.
        assert cost["poll_handles"] <= 2 * workers * (1 + 3 * jobs.UNITS_PER_WORKER)


def test_only_as_many_checkpoints_as_are_kept_are_looked_at(bucket: Bucket) -> None:
    run, names = f"{BUCKET}/run", [checkpoint_name(step) for step in range(1, 101)]
    for name in names:
        bucket.put(f"{run}/{name}/{CHECKSUMS}", b"{}")
    listed = {"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}
    bucket.put(f"{run}/checkpoint_manager_snapshot.json", json.dumps(listed).encode())
    assert remove_orphaned(run, 3, StoredCheckpoint(f"{run}/{names[-1]}", 100)) == []
    # The list of folders, then files and checksums of three, and Ray's list.
    assert bucket.taken() == 1 + 2 * 3 + 1


def test_a_registered_checkpoint_does_not_read_all_before_it() -> None:
    assert jobs.registry(100)["registry_versions"] <= 10 * 100


def sampled(bucket: Bucket, units: int) -> tuple[SampleOutput, dict[int, TaskRecord], SampleRequest]:
    """A job whose units are all made."""
    request = jobs.sample_request(units)
    output = SampleOutput(f"{BUCKET}/out", preset("digits"), request)
    assert not output.is_complete()
    records = output.finished()
    output.begin(records)
    with output.kept_behind() as keep:
        for unit in range(units):
            records[unit] = jobs.record_of(request, unit)
            bucket.put(f"{BUCKET}/out/{records[unit].row.name}", records[unit].row.size)
            keep(unit, records[unit])
    return output, records, request


def test_a_job_that_is_taken_up_again_writes_no_record_again(bucket: Bucket) -> None:
    _, records, request = sampled(bucket, 40)
    bucket.taken()
    again = SampleOutput(f"{BUCKET}/out", preset("digits"), request)
    assert not again.is_complete()
    found = again.finished()
    assert bucket.requests["get"] >= 40
    again.begin(found)
    assert bucket.requests["put"] == 1
    assert {unit: record.to_json(request) for unit, record in found.items()} == {
        unit: record.to_json(request) for unit, record in records.items()
    }


def test_a_manifest_has_few_groups_of_rows(bucket: Bucket) -> None:
    output, records, request = sampled(bucket, 40)
    output.write_manifest(records, {})
    data = bucket.folders["scale/out"]["manifest.parquet"][1]
    assert isinstance(data, bytes)
    manifest = pq.ParquetFile(io.BytesIO(data))
    assert manifest.metadata.num_row_groups == 1
    rows = manifest.read().to_pylist()
    assert [row["image_id"] for row in rows] == list(range(request.num_images))
    last = records[39]
    assert rows[-1]["sha256"] == last.checksums()[-1] and rows[-1]["size"] == last.png_sizes[-1]
    assert rows[-1]["offset"] == last.row.offsets[-1] + 512 and rows[-1]["shard"] == last.row.name


def test_records_are_written_while_the_driver_goes_on(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(f"{BUCKET}/behind")
    with records.written_behind() as write:
        for number in range(50):
            write(f"{number}", b"x")
    assert len(records.folder.sizes()) == 50

    def refused(*_: object) -> None:
        raise UserError("storage", got="a refusal", expected="room", remedy="make room")

    monkeypatch.setattr(type(records.folder), "write", refused)
    with pytest.raises(UserError, match=r"a refusal"), records.written_behind() as write:
        write("last", b"x")
