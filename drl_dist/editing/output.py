"""The folder that an editing job fills: what was asked for first, the pictures, and the sheet of all of them last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from drl_dist.config import differences
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.shards import encode_png
from drl_dist.errors import UserError
from drl_dist.evaluation.grids import enlargement, grid

REQUEST_NAME = "request.json"
IMAGES_FOLDER = "images"
FORMAT, VERSION = "drl_dist.edit", 1


class EditOutput:
    """An output folder and the request that it is for.

    Args:
        url: the folder.
        sheet: file name of the picture of all images; its presence says that the folder is complete.
        request: all that determines the images.
    """

    def __init__(self, url: str, sheet: str, request: Mapping[str, Any]) -> None:
        self._sheet = sheet
        self._folder = Folder(url.rstrip("/") or "/")
        self._images = Folder(f"{url.rstrip('/')}/{IMAGES_FOLDER}")
        self._request: dict[str, Any] = {"format": FORMAT, "version": VERSION, **request}

    def is_complete(self) -> bool:
        """Whether an earlier start has made all of it.

        Raises:
            UserError: the storage does not answer, or the folder holds something else.
        """
        check_reachable(self._folder.url)
        names = self._folder.sizes()
        if REQUEST_NAME not in names:
            return False
        try:
            found = json.loads(self._folder.read(REQUEST_NAME))
        except ValueError:
            found = None
        other = differences(found, self._request) if isinstance(found, dict) else [f"a damaged {REQUEST_NAME}"]
        if other:
            raise UserError(
                f"output {self._folder.url}",
                got="other images (" + ", ".join(other) + ")",
                expected="an empty folder, or images of this request",
                remedy="choose another --out, or repeat the command that began there",
            )
        return self._sheet in names

    def begin(self) -> None:
        """Note what the folder is for; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        self._folder.write(REQUEST_NAME, (json.dumps(self._request, indent=2) + "\n").encode())

    def write_image(self, name: str, pixels: Tensor) -> None:
        """Write an image (C, H, W) uint8 as a PNG file."""
        self._images.write(name, encode_png(pixels.cpu().numpy()))

    def finish(self, images: Tensor, columns: int) -> str:
        """Write the sheet of (B, C, H, W) uint8 images, row by row, which completes the folder; its URL."""
        sheet = grid(images, columns, enlarge=enlargement(images.shape[-1]))
        self._folder.write(self._sheet, encode_png(sheet.transpose(2, 0, 1)))
        return self._folder.url_of(self._sheet)
