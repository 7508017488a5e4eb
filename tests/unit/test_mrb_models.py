"""The list of released checkpoints, and downloads from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from maskrcnn_benchmark import mrb
from maskrcnn_benchmark.checkpoint import zoo
from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.paths import config_root

CONTENT = bytes(range(256)) * 40


class Server(http.server.BaseHTTPRequestHandler):
    """Answers like a file server: ranges, a cut-off file, a web page, nothing."""

    asked: list[str | None] = []  # noqa: RUF012
    cut = 0

    def do_GET(self) -> None:
        Server.asked.append(self.headers.get("Range"))
        if self.path == "/page":
            return self._send(200, b"<html>sign in</html>", "text/html")
        if self.path == "/gone":
            return self._send(409, b"")
        begin = 0
        if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) and self.path != "/no-ranges":
            begin = int(match[1])
        if begin >= len(CONTENT):
            return self._send(416, b"", more={"Content-Range": f"bytes */{len(CONTENT)}"})
        return self._send(206 if begin else 200, CONTENT[begin:])

    def _send(self, code: int, body: bytes, kind: str = "application/zip", more: dict[str, str] | None = None) -> None:
        self.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: Server.cut or None])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Server.asked, Server.cut = [], 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def entry(*urls: str, sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> zoo.Released:
    return zoo.Released("tiny", "FIBER", "a test", "tiny.pth", urls=urls, sha256=sha256, page="https://example.org")


def get(one: zoo.Released, folder: Path) -> tuple[Path, list[str]]:
    told: list[str] = []
    return zoo.download(one, folder, told.append), told


def test_every_entry_is_whole() -> None:
    models = zoo.released()
    systems = {"FIBER", "GLIP", "MDETR", "DECOLA", "CLIP", "DAP", "maskrcnn-benchmark", "MSRA", "detectron2"}
    assert {model.system for model in models.values()} == systems
    assert len({model.file for model in models.values()}) == len(models)
    for model in models.values():
        assert model.about
        assert model.urls or model.page
        assert model.code
        assert model.weights
        assert model.data
        assert "/" not in model.file or model.system == "detectron2"
        assert all(url.startswith("https://") and " " not in url for url in model.urls)
        assert re.fullmatch(r"([0-9a-f]{64})?", model.sha256)
        if model.config:
            assert (config_root().parent / model.config).is_file() or load_cfg(model.config)


def test_every_model_of_decola_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the config of its file's name, and what a training with that config asks for is where `get` puts it."""
    monkeypatch.setenv("MODEL", str(tmp_path))
    models = [model for model in zoo.released().values() if model.system == "DECOLA"]
    assert all(Path(model.config).stem == Path(model.file).stem for model in models)
    phase_1 = tmp_path / zoo.find("decola-r50-lbase-phase1").file
    phase_1.write_bytes(b"")
    assert find_weights(load_cfg(zoo.find("decola-r50-lbase-phase2").config).MODEL.WEIGHT) == phase_1


def test_addresses_of_detectron2_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", str(tmp_path))
    name = load_cfg("configs/decola/Base-DeformDETR_L_R50_4x.yaml").MODEL.WEIGHT
    file = tmp_path / "ImageNetPretrained" / "torchvision" / "R-50.pkl"
    address = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    (tmp_path / "R-50.pkl").write_bytes(b"")  # that of Caffe2, which is another one
    with pytest.raises(WeightsError, match=f"fetch {address} and put it at one of {file}"):
        find_weights(name)
    (released,) = [model for model in zoo.released().values() if name == f"detectron2://{model.file}"]
    assert released.urls == (address,)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert find_weights(name) == file
    assert zoo.weights_of(released) == file


def test_mirrors_become_addresses() -> None:
    first, second = zoo.find("glip-t").urls
    assert first == "https://huggingface.co/GLIPModel/GLIP/resolve/main/glip_tiny_model_o365_goldg_cc_sbu.pth"
    assert second.endswith("/GLIPv1_Open/models/glip_tiny_model_o365_goldg_cc_sbu.pth")


def test_the_list_and_the_details(capsys: pytest.CaptureFixture[str]) -> None:
    assert mrb.main(["models"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in zoo.released())
    assert mrb.main(["models", "mdetr-enb5"]) == 0
    told = capsys.readouterr().out
    for words in ("2.7 GB", "licence of the weights", "GQA", "zenodo.org", "not published", "configs/mdetr/"):
        assert words in told
    assert mrb.main(["models", "mdetr-clevr"]) == 0
    assert "none in this version" in capsys.readouterr().out
    assert mrb.main(["models", "glip-x"]) == 2
    assert "closest: glip-" in capsys.readouterr().err
    assert mrb.main(["models", "get", "a", "b"]) == 2
    assert "mrb models get NAME" in capsys.readouterr().err


def test_a_download_is_checked_and_not_repeated(url: str, tmp_path: Path) -> None:
    path, told = get(entry(f"{url}/file"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert "as it should be" in told[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.pth"]
    get(entry(f"{url}/file"), tmp_path)
    assert len(Server.asked) == 1


def test_a_download_goes_on_where_it_was_cut_off(url: str, tmp_path: Path) -> None:
    Server.cut = 1000
    with pytest.raises(WeightsError, match=r"tiny could not be downloaded"):
        get(entry(f"{url}/file"), tmp_path)
    Server.cut = 0
    path, _ = get(entry(f"{url}/file"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert Server.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize(("place", "have"), [("no-ranges", CONTENT[:500]), ("file", CONTENT)])
def test_what_is_there_already_is_used_if_the_server_can(url: str, tmp_path: Path, place: str, have: bytes) -> None:
    address = f"{url}/{place}"
    part = tmp_path / f"tiny.pth.{hashlib.sha256(address.encode()).hexdigest()[:8]}.part"
    part.write_bytes(have)
    path, _ = get(entry(address), tmp_path)
    assert path.read_bytes() == CONTENT


def test_the_next_mirror_is_tried(url: str, tmp_path: Path) -> None:
    path, told = get(entry(f"{url}/gone", f"{url}/page", f"{url}/file"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert any("answers 409" in line for line in told)
    assert any("a web page came" in line for line in told)


def test_another_file_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"its sha256 is .*, and that of tiny is 0000"):
        get(entry(f"{url}/file", sha256="0" * 64), tmp_path)
    assert not (tmp_path / "tiny.pth").exists()
    _, told = get(replace(entry(f"{url}/file"), sha256=""), tmp_path)
    assert "none published" in told[-1]


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mrb.main(["models", "get", "fiber-b", "--output", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "could not be downloaded" in told
    assert f"at {tmp_path / 'fiber.pth'} yourself" in told
    assert mrb.main(["models", "get", "dap-r50-in1k", "--output", str(tmp_path)]) == 2
    assert "by hand: https://drive.google.com" in capsys.readouterr().err


def test_a_model_stands_for_config_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("MODEL", str(folder))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"mrb models get glip-t-a"):
        zoo.weights_of(zoo.find("glip-t-a"))
    (folder / "glip_a_tiny_o365.pth").write_bytes(b"")
    assert zoo.weights_of(zoo.find("glip-t-a")) == folder / "glip_a_tiny_o365.pth"
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert mrb.main(["detect", "a.png", "--labels", "cup"]) == 2
    assert "no weights: give --weight FILE, or --model NAME" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="closest"):
        zoo.find("glip-t-z")
