"""The folder that an editing job fills: what was asked for first, the pictures, and the sheet of all of them last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from drl_dist.common.images import enlargement, grid
from drl_dist.data.filesystem import Folder
from drl_dist.data.shards import encode_png
from drl_dist.jobs.common.job_folder import JobFolder

IMAGES_FOLDER = "images"
JOB = "drl_dist.edit"


class EditOutput:
    """An output folder and the request that it is for.

    Args:
        url: the folder.
        sheet: file name of the picture of all images; its presence says that the folder is complete.
        request: all that determines the images.
    """

    def __init__(self, url: str, sheet: str, request: Mapping[str, Any]) -> None:
        below = {IMAGES_FOLDER: [r"\d{5,}-(\d{3,}|given|original|result-\d{3,})\.png"]}
        self._folder = JobFolder(url, JOB, result=sheet, below=below, noun="other images")
        self._images = Folder(f"{self._folder.url}/{IMAGES_FOLDER}")
        self._sheet, self._request = sheet, request

    def is_complete(self) -> bool:
        """Whether an earlier start has made all of it.

        Raises:
            UserError: the storage does not answer, or the folder holds something else.
        """
        return self._folder.is_complete(self._request)

    def begin(self) -> None:
        """Note what the folder is for; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        self._folder.begin(self._request)

    def write_image(self, name: str, pixels: Tensor) -> None:
        """Write an image (C, H, W) uint8 as a PNG file."""
        self._images.write(name, encode_png(pixels.cpu().numpy()))

    def finish(self, images: Tensor, columns: int) -> str:
        """Write the sheet of (B, C, H, W) uint8 images, row by row, which completes the folder; its URL."""
        sheet = grid(images, columns, enlarge=enlargement(images.shape[-1]))
        self._folder.files.write(self._sheet, encode_png(sheet.transpose(2, 0, 1)))
        return self._folder.files.url_of(self._sheet)
