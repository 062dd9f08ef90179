"""The output folder of an editing job: the request first, then the pictures, and the sheet of all of them last."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drl_dist.common.images import Panel
from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder
from drl_dist.data.shards import encode_png
from drl_dist.jobs.common.output.job_folder import JobFolder
from drl_dist.jobs.common.output.job_records import Record, digest_of
from drl_dist.jobs.common.output.sheet import sheet_of

IMAGES_FOLDER = "images"
JOB = "drl_dist.edit"


def begun(url: str, sheet: str) -> dict[str, Any] | None:
    """The request that a folder was begun with, None if it is new.

    Args:
        url: the folder.
        sheet: see `EditOutput`.

    Raises:
        UserError: the storage does not answer, or the request is damaged or another job's.
    """
    return JobFolder(url, job=JOB, result=sheet).begun()


class EditOutput:
    """An output folder and the request that it is for.

    Args:
        url: the folder.
        sheet: file name of the picture of all images; its presence says that the folder is complete.
        request: all that determines the images.
        num_batches: in which the images are computed.
    """

    def __init__(self, url: str, sheet: str, request: Mapping[str, Any], num_batches: int) -> None:
        below = {IMAGES_FOLDER: [r"\d{5,}-(\d{3,}|given|original|result-\d{3,})\.png"]}
        self._folder = JobFolder(
            url, job=JOB, result=sheet, records=[r"\d{6,}\.safetensors"], below=below, noun="other images"
        )
        self._images = Folder(joined(self._folder.url, IMAGES_FOLDER))
        self._sheet, self._request, self._num_batches = sheet, request, num_batches

    def is_complete(self) -> bool:
        """Whether an earlier start has made all of it.

        Raises:
            UserError: the storage does not answer, or the folder holds something else.
        """
        return self._folder.is_complete(self._request)

    def begin(self) -> None:
        """Write what the folder is for; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        self._folder.begin(self._request)

    def finished(self, given: str) -> dict[int, Tensor]:
        """The images (B, C, H, W) uint8 of the batches that earlier starts finished, by number.

        Args:
            given: checksum of what is observed of the images, which the request names by its URL alone.
        """
        numbers = {name: number for number, name in enumerate(self._record_names())}
        digest, found = digest_of(self._request), dict[int, Tensor]()
        for name, data in self._folder.records.present(numbers):
            record = Record.from_bytes(data, digest)
            if record is not None and record.facts == {"given": given}:
                found[numbers[name]] = torch.from_numpy(record.arrays["images"])
        return found

    def keep(self, number: int, images: Tensor, given: str) -> None:
        """Keep the images (B, C, H, W) uint8 of a finished batch, so that a later start skips it; see `finished`."""
        record = Record({"images": images.numpy()}, {"given": given})
        self._folder.records.write({_record_name(number): record.to_bytes(digest_of(self._request))})

    def write_images(self, images: Mapping[str, Tensor]) -> None:
        """Write images (C, H, W) uint8 as PNG files, by the files' names."""
        for name, pixels in images.items():
            self._images.write(name, encode_png(pixels.cpu().numpy()))

    def finish(self, images: Tensor, columns: int, names: Collection[str], caption: str, title: str) -> str:
        """Write the sheet of (B, C, H, W) uint8 images, row by row, which completes the folder; its URL.

        Args:
            images: on the sheet.
            columns: of the sheet.
            names: of the files that `write_images` wrote.
            caption: of the sheet: model, step and seed.
            title: of the images: what a row is.
        """
        self._folder.finish(sheet_of([Panel(title=title, images=images, columns=columns)], caption))
        self.clean_up(names)
        return self._folder.files.url_of(self._sheet)

    def clean_up(self, names: Collection[str]) -> None:
        """Remove the records of this request, and what a killed writer of its files left; nothing else."""
        self._images.remove_parts(names)
        self._folder.clean_up(self._request, records=self._record_names())

    def _record_names(self) -> Sequence[str]:
        return [_record_name(number) for number in range(self._num_batches)]


def _record_name(number: int) -> str:
    return f"{number:06d}.safetensors"
