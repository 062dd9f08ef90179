"""The API gives the library's images and log-densities, in every form, and refuses in a sentence what it cannot do."""

from __future__ import annotations

import base64
import io
import struct
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import drl_dist
from datasets_prep._pixels import square_pixels
from datasets_prep._source import centre_square
from drl_dist.data.pixels.pictures import PixelRules
from drl_dist.data.shards import encode_png
from drl_dist.jobs.serve.host import ModelHost
from drl_dist.jobs.serve.web.gradients import gradient_png
from tests.data.sets import pixels_of
from tests.helpers.labelled import write_images, write_model
from tests.helpers.pictures import saved
from tests.helpers.served import Client, served_model
from tests.support import wait_for, write_tiny_checkpoint

LEVELS = 6
PNG = {"Accept": "image/png"}
SLOW = "num_chain_steps=1000"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> drl_dist.Model:
    torch.set_num_threads(1)
    return drl_dist.load(write_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "c", width=4, num_chain_steps=3))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> drl_dist.Model:
    folder = tmp_path_factory.mktemp("labelled") / "c"
    write_model(folder, "class")
    return drl_dist.load(folder)


@pytest.fixture(scope="module")
def pair(plain: drl_dist.Model) -> Iterator[tuple[Client, ModelHost]]:
    with served_model(plain, max_batch=4, max_waiting=2) as found:
        yield found


@pytest.fixture(scope="module")
def client(pair: tuple[Client, ModelHost]) -> Client:
    return pair[0]


def pixels(png: bytes) -> Tensor:
    array = np.array(Image.open(io.BytesIO(png)))
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)


def decoded(text: str) -> Tensor:
    return pixels(base64.b64decode(text))


def in_base64(data: bytes | Tensor) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else encode_png(data.numpy())).decode()


def picture(seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def same(found: Tensor, expected: Tensor) -> bool:
    """To a grey level: with other chains in its batch the network rounds otherwise."""
    return found.shape == expected.shape and int((found.int() - expected.int()).abs().max()) <= 1


def settle(host: ModelHost) -> None:
    deadline = time.monotonic() + 10
    while host.engine.num_active or host.engine.num_waiting:
        assert time.monotonic() < deadline, "the engine goes on for nobody"
        time.sleep(0.02)


def test_a_sample_has_every_form(client: Client, plain: drl_dist.Model) -> None:
    expected = plain.sample(3, seed=5)[2]
    png = client.ask("/api/sample?seed=5&number=2")
    assert png.headers["content-type"] == "image/png" and same(pixels(png.body), expected)
    answer = client.ask("/api/sample?seed=5&number=2", headers={"Accept": "application/json"}).json()
    assert same(decoded(answer["image"]), expected) and answer["energy"] is not None and answer["seconds"] > 0
    events = client.stream("/api/sample?seed=5&number=2")
    frames = [data for name, data in events if name == "frame"]
    assert [frame["level"] for frame in frames] == list(range(LEVELS, -1, -1))
    assert same(decoded(frames[-1]["image"]), expected)
    assert events[0][0] == "outlook" and events[0][1]["ahead"] == 0 and events[-1][0] == "done"


def test_interpolations_end_at_the_samples_of_both_seeds(client: Client, plain: drl_dist.Model) -> None:
    query = {"seed": 1, "first": 3, "second_seed": 2, "second": 3}
    for weight, seed in ((0, 1), (1, 2)):
        found = client.ask(f"/api/interpolate?{urlencode({**query, 'weight': weight})}", headers=PNG)
        assert same(pixels(found.body), plain.sample(4, seed=seed)[3])
    middle = pixels(client.ask("/api/interpolate?seed=1&first=0&second=2&weight=.5", headers=PNG).body)
    assert same(middle, plain.interpolate(0, 2, 3, seed=1)[1])


def test_a_completion_keeps_what_is_seen(client: Client, plain: drl_dist.Model) -> None:
    image, hidden = picture(), torch.zeros(8, 8, dtype=torch.bool)
    hidden[2:6, 3:] = True
    body = {"image": in_base64(image), "mask": in_base64(hidden.byte()[None] * 255), "seed": 7, "num_rounds": 2}
    found = pixels(client.ask("/api/inpaint", body, headers=PNG).body)
    assert same(found, plain.inpaint(image[None], hidden, seed=7, num_rounds=2)[0])
    assert torch.equal(found[0][~hidden], image[0][~hidden]) and not torch.equal(found, image)
    assert len([name for name, _ in client.stream("/api/inpaint", body) if name == "frame"]) == LEVELS + 1


def test_a_noisy_image_is_cleaned(client: Client, plain: drl_dist.Model) -> None:
    image = picture(1)
    found = client.ask("/api/denoise", {"image": in_base64(image), "noise_std": 50, "seed": 3}, headers=PNG)
    assert same(pixels(found.body), plain.denoise(image[None], 50, seed=3)[0])


@pytest.mark.filterwarnings("ignore:the energies were trained")
def test_log_densities_are_those_of_the_library_among_the_data(plain: drl_dist.Model, tmp_path: Path) -> None:
    write_images(tmp_path / "data", range(20))
    images = torch.from_numpy(np.stack([pixels_of(number) for number in range(20)]))
    with served_model(plain, str(tmp_path / "data")) as (client, _):
        found = client.ask("/api/log_density", {"image": in_base64(images[0]), "seed": 4}).json()
        reference = client.ask("/api/reference").json()
    assert torch.equal(decoded(found["image"]), images[0]) and len(found["levels"]) == LEVELS
    assert "too sharp to be densities" in found["warnings"][0]
    for level, row in zip(found["levels"], reference["log_densities"], strict=True):
        t = level["level"]
        assert level["log_density"] == pytest.approx(float(plain.log_density(images[:1], level=t, seed=4)), rel=1e-3)
        expected = plain.log_density(images, level=t).sort().values
        torch.testing.assert_close(torch.tensor(row, dtype=torch.float64), expected, rtol=1e-3, atol=1e-3)
        assert level["share_below"] == sum(value < level["log_density"] for value in row) / 20
        assert decoded(level["gradient"]).shape == (3, 8, 8) and level["gradient_scale"] > 0


def test_a_gradient_is_red_where_brightness_is_wanted() -> None:
    png, scale = gradient_png(torch.tensor([[[2.0, -4.0], [0.0, 4.0]]]))
    red, green, blue = pixels(png).float()
    assert scale == 4
    assert red[1, 1] > green[1, 1] and red[1, 1] > blue[1, 1] and blue[0, 1] > red[0, 1]
    assert [int(channel[1, 0]) for channel in (red, green, blue)] == [255] * 3 and green[0, 0] > green[1, 1]


def test_a_gradient_of_a_colour_image_is_that_of_its_brightness() -> None:
    # One grey level more in all channels.
    channels = torch.tensor([[[1.0, -3.0]], [[2.0, 1.0]], [[3.0, -1.0]]])
    png, scale = gradient_png(channels)
    assert scale == 6 and torch.equal(pixels(png), pixels(gradient_png(channels.sum(0, keepdim=True))[0]))


@pytest.mark.parametrize("shape", [(3, 16, 32), (1, 40, 9), (3, 50, 50), (3, 5, 3)])
def test_a_picture_of_another_size_is_fitted_where_it_is_asked_for(client: Client, shape: tuple[int, ...]) -> None:
    photograph = picture(3, shape)
    body: dict[str, Any] = {"image": in_base64(photograph)}
    refused = client.ask("/api/log_density", body)
    size = f"{shape[2]}x{shape[1]}"
    assert refused.status == 400 and f"got {size} pixels, expected 8x8 pixels" in refused.json()["error"]
    found = decoded(client.ask("/api/log_density", {**body, "fit": True}).json()["image"])
    # As the model's training data were made.
    square = centre_square(Image.open(io.BytesIO(encode_png(photograph.numpy()))))
    expected, _ = square_pixels(square, PixelRules(), 1, 8)
    assert torch.equal(found, torch.from_numpy(np.array(expected)))


def test_labels_guidance_and_sums_are_heard(labelled: drl_dist.Model, tmp_path: Path) -> None:
    name = labelled.label_names[1]
    with served_model(labelled) as (client, _):
        assert client.ask("/api/model").json()["labels"] == list(labelled.label_names)
        query = urlencode({"seed": 2, "label": name, "guidance": 1.5})
        found = pixels(client.ask(f"/api/sample?{query}").body)
        unknown = client.ask("/api/sample?label=nobody")
        write_images(tmp_path / "data", range(18))
    with served_model(labelled, str(tmp_path / "data")) as (client, _):
        scored = [
            client.ask("/api/log_density", {"image": in_base64(picture()), "label": label}).json()["levels"][0]
            for label in (None, name)
        ]
    # The data's are those without a label.
    assert scored[0]["share_below"] is not None and scored[1]["share_below"] is None
    assert scored[0]["log_density"] != scored[1]["log_density"]
    assert same(found, labelled.sample(1, seed=2, labels=[name], guidance=1.5)[0])
    assert not same(found, labelled.sample(1, seed=2)[0])
    assert unknown.status == 400 and "nobody" in unknown.json()["error"]


def huge_png(width: int, height: int) -> bytes:
    """A file of a hundred bytes that says it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


GOOD = in_base64(picture())
MASK = in_base64((torch.arange(64).reshape(1, 8, 8) < 20).byte() * 255)
REFUSED: dict[str, tuple[str, object, str]] = {
    "seed": ("/api/sample?seed=-1", None, "seed: got '-1', expected greater than or equal to 0; correct"),
    "large seed": (f"/api/sample?seed={2**63}", None, "seed: got"),
    "words": ("/api/sample?seed=few", None, "seed: got 'few', expected a valid integer; correct"),
    "unknown field": ("/api/sample?sed=1", None, "sed: got '1', expected a field of"),
    "chain steps": ("/api/sample?num_chain_steps=1001", None, "num_chain_steps: got '1001'"),
    "label": ("/api/sample?label=3", None, "label: got 3, for a model without labels, expected"),
    "long label": ("/api/sample?label=" + "x" * 1001, None, "label: got"),
    "infinite guidance": ("/api/sample?guidance=inf", None, "guidance: got 'inf'"),
    "weight": ("/api/interpolate?weight=1.5", None, "weight: got '1.5'"),
    "equal ends": ("/api/interpolate?first=2&second=2", None, "different ones of the same seed"),
    "not JSON": ("/api/inpaint", b"{image", "got text that is not JSON, expected a JSON object"),
    "no JSON object": ("/api/inpaint", b"[1]", "request: got [1], expected a JSON object"),
    "no UTF-8": ("/api/inpaint", b"\xff{", "expected a JSON object that can be read"),
    "brackets": ("/api/inpaint", b"[" * 100_000, "expected a JSON object that can be read"),
    "nothing": ("/api/picture", {"image": ""}, "image: got '', expected at least 1 character"),
    "no chain": ("/api/sample?num_chain_steps=0", None, "got '0', expected greater than or equal to 1"),
    "no mask": ("/api/inpaint", {"image": GOOD}, "mask: got nothing, expected a value"),
    "mask of another size": (
        "/api/inpaint",
        {"image": GOOD, "mask": in_base64(picture(0, (1, 8, 9)))},
        "mask: got 9x8 pixels, expected 8x8 pixels",
    ),
    "mask that hides nothing": (
        "/api/inpaint",
        {"image": GOOD, "mask": in_base64(torch.zeros(1, 8, 8, dtype=torch.uint8))},
        "hides all pixels of an image, or none",
    ),
    "rounds": ("/api/inpaint", {"image": GOOD, "mask": MASK, "num_rounds": 101}, "num_rounds: got 101"),
    "noise": ("/api/denoise", {"image": GOOD, "noise_std": 0.01}, "noise_std: got 0.01, expected more than"),
    "no noise": ("/api/denoise", {"image": GOOD, "noise_std": 0}, "noise_std: got 0"),
    "no base64": ("/api/log_density", {"image": "%%%"}, "got text that is not base64"),
    "no picture": ("/api/log_density", {"image": in_base64(b"hello")}, "got a file that cannot be decoded"),
    "broken picture": (
        "/api/log_density",
        {"image": in_base64(encode_png(picture(0, (1, 8, 8)).numpy())[:-20])},
        "expected an intact PNG, JPEG or WEBP",
    ),
    "200 megapixels": (
        "/api/log_density",
        {"image": in_base64(huge_png(20_000, 10_000)), "fit": True},
        "got far more pixels, expected at most 33554432 pixels",
    ),
    "40 megapixels": (
        "/api/log_density",
        {"image": in_base64(huge_png(8_000, 5_000)), "fit": True},
        "got 8000x5000 pixels, expected at most 33554432 pixels",
    ),
    "another format": (
        "/api/log_density",
        {"image": in_base64(saved(Image.new("L", (8, 8)), "GIF"))},
        "expected an intact PNG, JPEG or WEBP",
    ),
    "another address": ("/api/dream", None, "404 Not Found"),
    "another method": ("/api/inpaint", None, "405 Method Not Allowed"),
}


def test_a_body_that_does_not_say_that_it_is_json_is_refused(client: Client) -> None:
    # A page of another site can send it without being asked, which it could not of JSON.
    found = client.ask("/api/picture", {"image": GOOD}, headers={"Content-Type": "text/plain"})
    expected = "header Content-Type: got text/plain, expected application/json; send the body as JSON."
    assert (found.status, found.json()) == (400, {"error": expected})


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_in_one_sentence(client: Client, what: str) -> None:
    path, body, expected = REFUSED[what]
    raw = body if isinstance(body, bytes) else None
    for accept in ("image/png", "text/event-stream"):
        found = client.ask(path, None if raw is not None else body, body=raw, headers={"Accept": accept})
        sentence = found.json()["error"]
        assert found.status in (400, 404, 405) and expected in sentence, sentence
        assert (
            not sentence.startswith("--")
            and sentence.endswith(".")
            and "\n" not in sentence
            and "Traceback" not in sentence
        )
        assert len(sentence) < 600


def test_one_too_many_is_told_to_come_later(pair: tuple[Client, ModelHost]) -> None:
    client, host = pair
    streams = [_open(client, f"/api/sample?seed={seed}&{SLOW}") for seed in range(6)]
    try:
        refused = client.ask("/api/sample")
        assert refused.status == 503 and "got 2 requests that wait already" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) > 0
        first_lines = [stream.read1(200).decode() for stream in streams]
        assert sum('"ahead": 1' in line for line in first_lines) == 1
    finally:
        for stream in streams:
            stream.close()
    settle(host)


def test_who_leaves_makes_room(pair: tuple[Client, ModelHost]) -> None:
    client, host = pair
    stream = _open(client, f"/api/sample?{SLOW}")
    stream.read1(100)
    # It comes in with the next call of the network.
    wait_for(lambda: host.engine.num_active == 1, 30)
    stream.close()
    settle(host)
    calls = host.engine.num_calls
    time.sleep(0.1)
    assert host.engine.num_calls == calls


def _open(client: Client, path: str) -> Any:
    request = urllib.request.Request(client.url + path, headers={"Accept": "text/event-stream"})
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)


def test_the_api_describes_itself(client: Client) -> None:
    found = client.ask("/api/openapi.json").json()
    assert set(found["paths"]) == {
        f"/api/{name}"
        for name in (
            "health",
            "model",
            "sample",
            "interpolate",
            "picture",
            "inpaint",
            "denoise",
            "log_density",
            "reference",
        )
    }
    sample = found["paths"]["/api/sample"]["get"]
    assert set(sample["responses"]["200"]["content"]) == {"application/json", "image/png", "text/event-stream"}
    names = {parameter["name"] for parameter in sample["parameters"]}
    assert names == {"seed", "number", "label", "compose", "guidance", "num_chain_steps"}
    assert client.ask("/api/health").json() == {"status": "ok"}


def test_nothing_comes_from_elsewhere(client: Client) -> None:
    for path in ("/", "/api/model", "/api/sample", "/nowhere"):
        headers = {name.lower(): value for name, value in client.ask(path).headers.items()}
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
