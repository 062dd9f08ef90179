"""Bytes of weights from a path, a storage URL or the web; those of Inception are verified before they are decoded.

The published Inception file is a pickle, which could run any code. It is therefore decoded only if its bytes are
exactly the published ones, and from the same bytes that were verified.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.common.progress import progress
from drl_dist.common.proxies import through_proxy
from drl_dist.common.validation import file_of
from drl_dist.data.filesystem import REQUEST_BYTES, Folder, check_reachable, write_local

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_BYTES = 95_628_359
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Checksum of the file that torch-fidelity uses: TensorFlow's Inception of 2015-12-05, which defines FID."""

MAX_WEIGHTS_BYTES = 8 * 2**30
ANSWER_SECONDS = 30.0
_MIB = 2**20


def inception_weights(source: str | None) -> bytes:
    """The standard Inception weights, verified.

    Args:
        source: a path, a storage URL or an http(s) URL. By default the file in torch's hub folder, where torch-fidelity
            also keeps it; if it is missing there, it is downloaded from `INCEPTION_URL`.

    Raises:
        UserError: there is no such file, or its bytes are not the published ones.
    """
    if source is not None:
        data = read_weights(source, max_bytes=INCEPTION_BYTES)
        _verify(source, data)
        return data
    kept = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if kept.is_file():
        data = read_weights(str(kept), max_bytes=INCEPTION_BYTES)
        _verify(str(kept), data)
        return data
    data = _download(INCEPTION_URL, max_bytes=INCEPTION_BYTES)
    _verify(INCEPTION_URL, data)
    write_local(kept, data)
    return data


def read_weights(source: str, *, max_bytes: int = MAX_WEIGHTS_BYTES) -> bytes:
    """The bytes of a file at a path, a storage URL or an http(s) URL; at most one more than `max_bytes`.

    Raises:
        UserError: there is no such file, or its server does not answer.
    """
    if source.startswith(("http://", "https://")):
        return _download(source, max_bytes=max_bytes)
    parent, name = file_of(source, "weights")
    check_reachable(parent)
    folder = Folder(parent)
    size = folder.sizes().get(name)
    if size is None:
        raise UserError(
            f"weights {source}", got="no such file", expected="a file of weights", remedy="correct the path"
        )
    end = min(size, max_bytes + 1)
    return b"".join(folder.read(name, start, min(start + REQUEST_BYTES, end)) for start in range(0, end, REQUEST_BYTES))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _download(url: str, *, max_bytes: int) -> bytes:
    blocks: list[bytes] = []
    count = 0
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            total = int(answer.headers.get("Content-Length") or max_bytes)
            with progress(f"downloading {url.rsplit('/', 1)[-1]}", -(-total // _MIB), 0, "MiB") as advance:
                while count <= max_bytes and (block := answer.read(_MIB)):
                    blocks.append(block)
                    count += len(block)
                    advance(1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(
            f"weights {url}",
            got=f"no answer{through_proxy(url)} ({' '.join(str(error).split())[:120]})",
            expected=f"an answer within {ANSWER_SECONDS:.0f} s",
            remedy="on a machine without internet bring the file there and name it, as in --features inception=PATH",
        ) from error
    return b"".join(blocks)


def _verify(where: str, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != INCEPTION_SHA256:
        size = f"{len(data)} bytes" if len(data) <= INCEPTION_BYTES else f"more than {INCEPTION_BYTES} bytes"
        raise UserError(
            f"Inception weights {where}",
            got=f"{size} with SHA-256 {digest[:16]}...",
            expected=f"{INCEPTION_BYTES} bytes with SHA-256 {INCEPTION_SHA256[:16]}...",
            remedy=f"remove the file and download {INCEPTION_URL}, or name another network by timm: or torchscript:",
        )
