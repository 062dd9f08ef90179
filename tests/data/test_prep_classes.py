"""Classes of published data sets: names and counts in the index, and outputs of versions that wrote neither."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

import datasets_prep._labels as labels_module
from drl_dist.common.errors import UserError
from drl_dist.data.decode import read_images
from drl_dist.data.index import open_index
from tests.data.published import COARSE, FINE, write_cifar10, write_cifar100, write_fashion, write_tar
from tests.helpers.preparation import contents, facts, kill_after, prepare

Run = Callable[[str], Path]

NAMES = {
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "fashion_mnist": [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
    "digits": [str(number) for number in range(10)],
}
EARLIER = {
    "cifar10": "4ef1358f3dbf65b6582f3b7161ec917492a22e1facf0056015054b42cd4f49ff",
    "fashion_mnist": "1d9daf4a3ac80aba73426cedb135eec6e32d7f7aeb9ae1989a4a2d04434062e6",
    "digits": "3ea24fa5e3da5c46900aa84c1e78425d0f50bc98f7ebec115d12e3de0a88ddd1",
}
"""Fingerprints of what the version without names made of these sources."""


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    write_cifar10(tmp_path / "cifar10.tar.gz", 4)
    write_fashion(tmp_path / "fashion", 10, packed=True)
    sources = {"cifar10": tmp_path / "cifar10.tar.gz", "fashion_mnist": tmp_path / "fashion"}

    def run(name: str) -> Path:
        given = ("--source", sources[name], "--shard-size", 8) if name in sources else ()
        assert prepare(name, monkeypatch, *given, "--out", tmp_path / "out") == 0
        return tmp_path / "out"

    return run


@pytest.mark.parametrize("name", NAMES)
def test_classes_have_names_and_counts(
    name: str, prepared: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            prepared(name)
    out = prepared(name)
    index = open_index(str(out))
    assert index.classes == tuple(NAMES[name])
    # As any reader of WebDataset sees them; those of the shard before the kill count as well.
    shards = [str(out / row.name) for row in index.shards]
    labels = [json.loads(sample["json"])["label"] for sample in wds.WebDataset(shards, shardshuffle=False)]
    assert np.bincount(labels, minlength=10).tolist() == list(index.class_counts)
    assert sum(index.class_counts) == index.num_samples > 8
    before = contents(out)
    capsys.readouterr()
    prepared(name)
    assert contents(out) == before
    printed = capsys.readouterr().err
    assert "nothing to do" in printed and "begun" not in printed


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_output_of_a_version_without_names_is_recognised(
    name: str,
    finished: bool,
    prepared: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        # As that version did.
        patch.setattr(labels_module.NamedClasses, "parameters", {})
        if finished:
            prepared(name)
        else:
            kill_after(patch, 1)
            with pytest.raises(KeyboardInterrupt):
                prepared(name)
    before = contents(tmp_path / "out")
    capsys.readouterr()
    index = open_index(str(prepared(name)))
    assert (index.fingerprint, index.classes, index.class_counts) == (EARLIER[name], (), ())
    assert before.items() <= contents(tmp_path / "out").items()
    printed = capsys.readouterr().err
    assert "was begun without names of its classes and stays without; choose another --out to have them" in printed
    assert ("nothing to do" if finished else "1 shard finished") in printed
    assert {entry["label"] for entry in facts(index)} <= set(range(10))


@pytest.mark.parametrize(("labels", "place", "names"), [("fine", 1, FINE), ("coarse", 0, COARSE)])
@pytest.mark.parametrize("unpacked", [True, False])
def test_cifar100_has_the_classes_that_are_asked_for(
    labels: str, place: int, names: tuple[str, ...], unpacked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "cifar-100-binary.tar.gz"
    pixels, both = write_cifar100(source, 20)
    if unpacked:
        with tarfile.open(source) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
        source = tmp_path / "unpacked"
    given = ("--source", source, "--shard-size", 8, "--out")
    # Fine ones are the default.
    asked = () if labels == "fine" else ("--labels", labels)
    assert prepare("cifar100", monkeypatch, *given, tmp_path / "out", *asked) == 0
    index = open_index(str(tmp_path / "out"))
    assert (index.name, index.split, index.classes) == ("cifar100", "train", names)
    assert np.array_equal(read_images(index, 99).numpy(), pixels)
    assert [entry["label"] for entry in facts(index)] == both[:, place].tolist()
    assert index.class_counts == tuple(np.bincount(both[:, place], minlength=len(names)).tolist())
    other = {"fine": "coarse", "coarse": "fine"}[labels]
    with pytest.raises(UserError, match=r"\(classes: \d+ \([^,]+, [^,]+, [^,]+, [^,]+, …\) -> \d+ \(") as caught:
        prepare("cifar100", monkeypatch, *given, tmp_path / "out", "--labels", other)
    assert "\n" not in str(caught.value)
    assert prepare("cifar100", monkeypatch, *given, tmp_path / "test", "--split", "test") == 0
    assert open_index(str(tmp_path / "test")).num_samples == 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fine_label_names.txt", None, "got the file c.tar.gz without fine_label_names.txt, expected cifar-100-binary"),
        ("train.bin", None, "got the file c.tar.gz without train.bin, expected cifar-100-binary.tar.gz"),
        ("fine_label_names.txt", lambda data: data.replace(b"kind_37\n", b""), "got 99 lines, 99 of them different"),
        ("fine_label_names.txt", lambda data: data.replace(b"37", b"74"), "got 100 lines, 99 of them different"),
        ("fine_label_names.txt", lambda data: data + b"x" * 5, "got 101 lines"),
        ("train.bin", lambda data: data[:-1], "12295 bytes that are not whole images with classes 0 to 19 and 0 to 99"),
        ("train.bin", lambda data: bytes([20]) + data[1:], "12296 bytes that are not .*expected a multiple of 3074"),
        ("train.bin", lambda data: data[:1] + bytes([100]) + data[2:], "12296 bytes that are not whole images"),
        ("train.bin", lambda data: b"", "0 bytes that are not whole images"),
    ],
)
def test_a_damaged_cifar100_is_one_sentence(
    name: str,
    change: Callable[[bytes], bytes] | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "c.tar.gz"
    write_cifar100(source, 4)
    with tarfile.open(source) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore
    data = files.pop(f"cifar-100-binary/{name}")
    if change is not None:
        files[f"cifar-100-binary/{name}"] = change(data)
    write_tar(source, files)
    with pytest.raises(UserError, match=message) as caught:
        prepare("cifar100", monkeypatch, "--source", source, "--out", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_class_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(tmp_path / "fashion", 3, packed=False)
    labels = tmp_path / "fashion" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([10]))
    with pytest.raises(UserError, match="got the label 10, expected classes 0 to 9"):
        prepare("fashion_mnist", monkeypatch, "--source", tmp_path / "fashion", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
