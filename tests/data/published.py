"""Small data sets in the formats in which the real ones are published, written by other means than the project's."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images


def photo(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth picture with some noise, uint8 (H, W, 3)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(2 * np.pi * (rows * a + columns * b)) for a, b in generator.uniform(-3, 3, (3, 2))]
    noise = generator.normal(0, 12, (height, width, 3))
    return np.clip(128 + 80 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def photographs(count: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    """Cuttings, uint8 (H, W, 3), of the two photographs that scikit-learn brings along."""
    pictures = load_sample_images().images
    generator = np.random.Generator(np.random.PCG64(0))
    cuttings: list[NDArray[np.uint8]] = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        top, left = (int(generator.integers(0, limit)) for limit in np.subtract(picture.shape[:2], (height, width)))
        cuttings.append(picture[top : top + height, left : left + width])
    return cuttings


def encoded(pixels: NDArray[np.uint8], kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_lsun(folder: Path, images: dict[bytes, bytes]) -> None:
    """LSUN's LMDB: 40 hexadecimal digits as the key, a WebP file as the value."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**28) as database, database.begin(write=True) as change:
        for key, value in images.items():
            change.put(key, value)


def write_celeba(folder: Path, parts: list[int], *, packed: bool) -> list[NDArray[np.uint8]]:
    """Aligned faces 178x218 as JPEG, and the partition file; the decoded images."""
    files = {
        f"{number:06d}.jpg": encoded(photo(number, 218, 178), "JPEG", quality=95) for number in range(1, len(parts) + 1)
    }
    folder.mkdir(parents=True)
    lines = [f"{name} {part}" for name, part in zip(files, parts, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    if packed:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            archive.writestr("img_align_celeba/", b"")
            for name in reversed(files):
                archive.writestr(f"img_align_celeba/{name}", files[name])
    else:
        (folder / "img_align_celeba").mkdir()
        for name, data in files.items():
            (folder / "img_align_celeba" / name).write_bytes(data)
    return [np.asarray(Image.open(io.BytesIO(data))) for data in files.values()]


ATTRIBUTES = (*(f"{number}_o_Clock" for number in range(39)), "Young")


def write_celeba_attributes(path: Path, values: NDArray[np.int64]) -> None:
    """The authors' table of attributes of so many images, or Kaggle's, as the file's suffix says."""
    images = [f"{number:06d}.jpg" for number in range(1, len(values) + 1)]
    if path.suffix == ".csv":
        lines = [f"{image},{','.join(map(str, row))}" for image, row in zip(images, values.tolist(), strict=True)]
        path.write_text("\r\n".join([",".join(("image_id", *ATTRIBUTES)), *lines]) + "\r\n", newline="")
        return
    rows = [" ".join(f"{value:2d}" for value in row) for row in values.tolist()]
    lines = [f"{image} {row}" for image, row in zip(images, rows, strict=True)]
    path.write_text("\n".join([str(len(values)), " ".join(ATTRIBUTES) + " ", *lines]) + "\n")


def write_cifar10(archive: Path, per_batch: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The binary archive; pixels (n, 3, 32, 32) and classes (n,) of its training part."""
    generator = np.random.Generator(np.random.PCG64(0))
    pixels = generator.integers(0, 256, (6 * per_batch, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 10, 6 * per_batch, dtype=np.uint8)
    files: dict[str, bytes] = {}
    for number, name in enumerate([f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]):
        here = slice(number * per_batch, (number + 1) * per_batch)
        files[f"cifar-10-batches-bin/{name}"] = b"".join(
            bytes([label]) + image.tobytes() for label, image in zip(labels[here], pixels[here], strict=True)
        )
    write_tar(archive, files)
    return pixels[: 5 * per_batch], labels[: 5 * per_batch]


FINE = tuple(f"kind_{number * 37 % 100:02d}" for number in range(100))
COARSE = tuple(f"group {number * 7 % 20}" for number in range(20))


def write_cifar100(archive: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The binary archive; pixels (n, 3, 32, 32) and coarse and fine classes (n, 2) of its training part."""
    generator = np.random.Generator(np.random.PCG64(0))
    pixels = generator.integers(0, 256, (count + 2, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, (20, 100), (count + 2, 2), dtype=np.uint8)
    records = [two.tobytes() + image.tobytes() for two, image in zip(labels, pixels, strict=True)]
    files = {
        "coarse_label_names.txt": "".join(f"{name}\n" for name in COARSE).encode(),
        "fine_label_names.txt": "".join(f"{name}\n" for name in FINE).encode() + b"\n",
        "test.bin": b"".join(records[count:]),
        "train.bin": b"".join(records[:count]),
    }
    write_tar(archive, {f"cifar-100-binary/{name}": data for name, data in files.items()})
    return pixels[:count], labels[:count]


def write_tar(archive: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_fashion(folder: Path, count: int, *, packed: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The idx files of both splits; pixels (n, 28, 28) and classes (n,) of each."""
    generator = np.random.Generator(np.random.PCG64(0))
    pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = generator.integers(0, 10, count, dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for name, data in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes()),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">2I", 2049, count) + labels.tobytes()),
        ):
            (folder / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(data) if packed else data)
    return pixels, labels
