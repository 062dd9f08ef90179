"""Requests of those who mean no good, or whose pictures are broken."""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import json
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp

from benchmarks.serving_load.visitors import session

MIB = 2**20
SLOW_SECONDS = 45.0
"""After which a slow visitor is done in any case."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _header(width: int, height: int) -> bytes:
    return _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def black_png(width: int, height: int) -> bytes:
    """A grey PNG, which is small however large the picture is."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    return _header(width, height) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def broken_pngs() -> dict[str, bytes]:
    """Pictures that cannot be read, by what is wrong with them."""
    good = black_png(8, 8)
    bomb = zlib.compress(bytes(200 * MIB), 9)
    return {
        "cut off": good[: len(good) // 2],
        "wrong check sum": good[:-20] + bytes([good[-20] ^ 1]) + good[-19:],
        "no pixels": _header(8, 8) + _chunk(b"IEND", b""),
        "fewer pixels than it says": _header(8, 8) + _chunk(b"IDAT", zlib.compress(bytes(9))) + _chunk(b"IEND", b""),
        "more pixels than it says": _header(8, 8) + _chunk(b"IDAT", bomb) + _chunk(b"IEND", b""),
        "a text of 200 MiB": _header(8, 8) + _chunk(b"zTXt", b"a\0\0" + bomb) + good[len(_header(8, 8)) :],
        "a colour profile of 200 MiB": _header(8, 8) + _chunk(b"iCCP", b"a\0\0" + bomb) + good[len(_header(8, 8)) :],
        "no size": _header(0, 0) + _chunk(b"IEND", b""),
        "largest size": _header(2**31 - 1, 2**31 - 1) + _chunk(b"IEND", b""),
        "no picture": b"GIF89a" + bytes(64),
        "nothing": b"",
    }


def body(png: bytes) -> bytes:
    """Of a question for a log-density."""
    return json.dumps({"image": base64.b64encode(png).decode(), "fit": True}).encode()


Send = Callable[[aiohttp.ClientSession, str], Coroutine[Any, Any, str]]
"""A request to an address; the status of the answer, and what it says."""


def attacks() -> dict[str, list[Send]]:
    """What is sent, by what it is; the requests of each at once."""
    large = base64.b64encode(bytes(6 * MIB - 30))
    return {
        "a PNG of 200 megapixels": [_sent(body(black_png(20_000, 10_000)))],
        "a PNG of 32 megapixels, which may be": [_sent(body(black_png(8192, 4095)))],
        "eight of them at once": [_sent(body(black_png(8192, 4095)))] * 8,
        **{f"a broken PNG: {name}": [_sent(body(png))] for name, png in broken_pngs().items()},
        "no JSON": [_sent(b"{")],
        "JSON, 100000 brackets deep": [_sent(b"[" * 100_000)],
        "a body of 9 MiB": [_sent(bytes(9 * MIB))],
        "a body of 200 MiB of unknown length": [_sent_in_parts(200 * MIB, MIB, 0)],
        "a body that never ends": [_sent_in_parts(4096 * MIB, MIB, 0.01)],
        "a body of a byte a second": [_sent_in_parts(10**6, 1, 1)],
        "60 bodies of 8 MiB at once": (sixty := [_sent(b'{"image": "' + large + b'"}')] * 60),
        "60 bodies of 8 MiB at once, a second time": sixty,
        "60 bodies of 8 MiB at once, a third time": sixty,
    }


async def attack(address: str, requests: list[Send]) -> dict[str, int]:
    """How often each answer was given."""
    async with session() as client:
        answers = await asyncio.gather(*(send(client, f"{address}/api/log_density") for send in requests))
    return dict(collections.Counter(answers))


def _sent(data: bytes) -> Send:
    async def send(client: aiohttp.ClientSession, url: str) -> str:
        return await _answer(client, url, data)

    return send


def _sent_in_parts(total: int, size: int, pause: float) -> Send:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(total // size):
            yield b" " * size
            await asyncio.sleep(pause)

    async def send(client: aiohttp.ClientSession, url: str) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SLOW_SECONDS):
                return await _answer(client, url, parts())
        return f"no answer in {SLOW_SECONDS:g} s"

    return send


async def _answer(client: aiohttp.ClientSession, url: str, data: bytes | AsyncIterator[bytes]) -> str:
    try:
        async with client.post(url, data=data, headers={"Content-Type": "application/json"}) as response:
            text = await response.text()
            said = json.loads(text).get("error", "a log-density") if text.startswith("{") else text
            return f"{response.status} {said[:160]}"
    except (aiohttp.ClientError, ConnectionError) as error:
        return f"connection closed ({type(error).__name__})"
