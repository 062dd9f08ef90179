"""Feature networks: their output, their identity, and the weights that are refused."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle  # noqa: TID251 - to show that none is read
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from drl_dist.common.errors import UserError
from drl_dist.common.torchvision_import import make_importable
from drl_dist.evaluation import networks, weights
from drl_dist.evaluation.feature_spec import parse_features
from drl_dist.evaluation.features import FeatureNetwork, features_of
from drl_dist.evaluation.networks import load_network
from tests.scores.tiny import NoLogits, script, tiny_network

CPU = torch.device("cpu")
TIMM = "test_resnet"


def images(count: int, channels: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def load(option: str) -> FeatureNetwork:
    return load_network(parse_features(option), CPU)


def timm_weights(path: Path, seed: int) -> Path:
    """Random weights of a small timm model, as a file."""
    make_importable()
    import timm

    generator = torch.Generator().manual_seed(seed)
    model = timm.create_model(TIMM, pretrained=False)
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            # Of either sign, but for variances.
            value.uniform_(0.5 if name.endswith("var") else -0.5, 0.6, generator=generator)
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the published one is, but with random weights."""
    make_importable()
    from torch_fidelity import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *given: object, **options: object) -> None:  # pyright: ignore
            """Stay at the initial weights."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(Unloaded("x", ["2048"], feature_extractor_weights_path=nothing).state_dict(), path)
    return path


@pytest.fixture
def as_published(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world in which that file is the published one, and torch's hub folder is empty."""
    data = published.read_bytes()
    monkeypatch.setattr(weights, "INCEPTION_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(weights, "INCEPTION_BYTES", len(data))
    monkeypatch.setattr(networks, "INCEPTION_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return published


@pytest.fixture
def web(published: Path) -> Iterator[str]:
    """URL of the file's folder on a server of this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(published.parent))  # pyright: ignore

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_inception_is_torch_fidelitys(as_published: Path) -> None:
    network = load(f"inception={as_published}")
    made = network(images(2, channels=1))
    assert made.logits is not None
    assert (made.values.shape, made.logits.shape, made.values.dtype) == ((2, 2048), (2, 1008), torch.float32)

    from torch_fidelity import FeatureExtractorInceptionV3

    own = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(as_published))
    (expected,) = own(images(2, channels=1).repeat(1, 3, 1, 1))
    torch.testing.assert_close(made.values, expected)
    assert made.values.std() > 0


@pytest.mark.slow
def test_inception_is_downloaded_once(as_published: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "INCEPTION_URL", f"{web}/{as_published.name}")
    data = weights.inception_weights(None)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.INCEPTION_FILE
    assert kept.read_bytes() == data == as_published.read_bytes()
    monkeypatch.setattr(weights, "INCEPTION_URL", "http://127.0.0.1:9/none")
    assert weights.inception_weights(None) == data
    kept.write_bytes(data[:1000])
    with pytest.raises(UserError, match=rf"Inception weights {kept}: got 1000 bytes with SHA-256 "):
        weights.inception_weights(None)
    kept.unlink()
    with pytest.raises(UserError, match=r"weights http://127.0.0.1:9/none: got no answer .*--features inception=PATH"):
        weights.inception_weights(None)
    assert not kept.exists()


def test_a_download_that_fails_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pass-word@127.0.0.1:9")
    with pytest.raises(UserError, match=r"got no answer through the proxy that HTTPS_PROXY names \(") as caught:
        weights.read_weights("https://weights.invalid/w.pth")
    assert "pass-word" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "weights.invalid")
    with pytest.raises(UserError, match=r"got no answer \("):
        weights.read_weights("https://weights.invalid/w.pth")


def test_other_weights_than_the_published_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    # Decoding this pickle makes a file.
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    trap = tmp_path / "weights.pth"
    trap.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        UserError, match=r"got \d+ bytes with SHA-256 .*, expected 95628359 bytes with SHA-256 6726825d"
    ):
        load(f"inception={trap}")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap.read_bytes())  # noqa: S301
    assert (tmp_path / "sprung").exists(), "the trap must be one"


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    huge = tmp_path / "huge.pth"
    with huge.open("wb") as file:
        file.truncate(weights.INCEPTION_BYTES + 10_000)
    assert len(weights.read_weights(str(huge), max_bytes=weights.INCEPTION_BYTES)) == weights.INCEPTION_BYTES + 1
    with pytest.raises(UserError, match="got more than 95628359 bytes"):
        weights.inception_weights(str(huge))


@pytest.mark.slow
def test_a_timm_network_with_weights_of_a_file(tmp_path: Path) -> None:
    make_importable()
    import timm

    path = timm_weights(tmp_path / "weights.safetensors", seed=1)
    network = load(f"timm:{TIMM}={path}")
    made = network(images(3))
    model = timm.create_model(TIMM, pretrained=False)
    model.load_state_dict(load_file(path))
    model.eval()
    facts = timm.data.resolve_model_data_config(model)
    pixels = nn.functional.interpolate(
        images(3).float() / 255, facts["input_size"][1:], mode=facts["interpolation"], antialias=True
    ).clamp(0, 1)
    mean, std = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        logits = model((pixels - mean) / std)
    assert made.logits is not None
    torch.testing.assert_close(made.logits, logits)
    torch.testing.assert_close(model.get_classifier()(made.values), logits)  # pyright: ignore
    assert made.values.shape == (3, model.num_features)

    other = load(f"timm:{TIMM}={timm_weights(tmp_path / 'other.safetensors', seed=2)}")
    assert other.identity != network.identity
    assert load(f"timm:{TIMM}={path}").identity == network.identity
    assert not torch.equal(other(images(3)).values, made.values)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("timm:no_such_net", r"got the model name no_such_net, expected a model of timm \d"),
        ("timm:resnet1x={}/none", r"got the model name resnet1x, expected a model of timm .*such as .*resnet1"),
        ("timm:test_resnet={}/none", r"weights .*/none: got no such file"),
        ("timm:test_resnet={}/text", r"weights .*/text: got .*expected a safetensors file with the weights of timm's"),
        ("timm:test_vit={}/resnet", r"weights .*/resnet: got Missing key\(s\)"),
        ("torchscript:{}/none", r"weights .*/none: got no such file"),
        ("torchscript:{}/text", r"feature network .*/text: got .*expected a file that torch.jit.save wrote"),
    ],
)
def test_what_is_no_network_is_refused_in_one_sentence(option: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no weights, but long enough to be some")
    if "resnet" in option:
        timm_weights(tmp_path / "resnet", seed=1)
    with pytest.raises(UserError, match=message) as caught:
        load(option.format(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    ["", "resnet18", "inception=", "inception:3", "timm:", "timm:=x", "timm:a=", "torchscript:", "torchscript:x.pt"],
)
def test_options_that_name_no_network(option: str) -> None:
    with pytest.raises(UserError, match=r"feature network"):
        parse_features(option)


def test_torchscript_with_and_without_logits(tmp_path: Path) -> None:
    network = load(tiny_network(tmp_path))
    made = network(images(5))
    assert made.logits is not None and made.logits.shape == (5, 4)
    assert made.values.shape == (5, 6)
    assert network.identity == load(tiny_network(tmp_path)).identity
    assert network.identity != load(tiny_network(tmp_path, seed=1)).identity

    plain = load(script(NoLogits(), tmp_path / "plain.pt"))
    assert plain(images(5)).logits is None
    torch.testing.assert_close(plain(images(5)).values, images(5).float().mean((2, 3)))


def test_grey_is_repeated_and_colour_never_dropped(tmp_path: Path) -> None:
    rgb, grey = load(tiny_network(tmp_path)), load(tiny_network(tmp_path, channels=1))
    torch.testing.assert_close(rgb(images(4, 1)).values, rgb(images(4, 1).repeat(1, 3, 1, 1)).values)
    assert grey(images(4, 1)).values.shape == (4, 6)
    with pytest.raises(UserError, match="got images of 3 channels, expected images of 1 channels"):
        grey(images(4))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (torch.zeros(3, 4, 1), r"got features of shape \(3, 4, 1\)"),
        (torch.zeros(2, 4), r"got features of shape \(2, 4\)"),
        (torch.zeros(3, 4, dtype=torch.int64), "torch.int64 for 3 images"),
        (torch.full((3, 4), float("nan")), "got features that are not finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(made: torch.Tensor, message: str) -> None:
    network = FeatureNetwork("bad", "bad", 3, CPU, lambda images: (made, None))
    with pytest.raises(UserError, match=message):
        network(images(3))
    logits = FeatureNetwork("bad", "bad", 3, CPU, lambda images: (torch.zeros(3, 1), made))
    with pytest.raises(UserError, match=message.replace("features", "logits")):
        logits(images(3))


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_features_have_all_bits_of_float32_whatever_torch_is_told(precision: str) -> None:
    cudnn: Any = torch.backends.cudnn
    switches: tuple[Any, ...] = (cudnn.conv, torch.backends.cuda.matmul)
    before, seen = [switch.fp32_precision for switch in switches], list[list[str]]()

    def extract(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen.append([switch.fp32_precision for switch in switches])
        return images.float().flatten(1), None

    try:
        for switch in switches:
            switch.fp32_precision = precision
        FeatureNetwork("pixels", "pixels", 3, CPU, extract)(images(2))
        assert seen == [["ieee", "ieee"]] and [switch.fp32_precision for switch in switches] == [precision] * 2
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
    assert [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32] == [True, False]


def test_batches_are_joined_in_order_and_counted(tmp_path: Path) -> None:
    network, counts = load(tiny_network(tmp_path)), []
    whole = network(images(7))
    parts = features_of(network, images(7).split(3), counts.append)
    assert counts == [3, 3, 1]
    assert len(parts) == 7
    torch.testing.assert_close(parts.values, whole.values)
    assert whole.logits is not None and parts.logits is not None
    torch.testing.assert_close(parts.logits, whole.logits)
