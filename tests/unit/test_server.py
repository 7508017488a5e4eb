"""The server of the page: what it answers, what it refuses, and that it keeps order."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from maskrcnn_benchmark import Predictor, load_model, mrb
from maskrcnn_benchmark.demo import desk, server
from maskrcnn_benchmark.demo.desk import Limits
from maskrcnn_benchmark.engine.inference import Model
from tests.narrow import CONFIG, Narrow, make_narrow

LOCAL = "http://127.0.0.1:8000"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def model(narrow: Narrow) -> Model:
    return load_model(CONFIG, narrow.weights, device="cpu", opts=narrow.opts)


@pytest.fixture(scope="module")
def source(narrow: Narrow) -> server.Source:
    return server.Source(CONFIG, str(narrow.weights), "cpu", narrow.opts)


@pytest.fixture
def client(model: Model, source: server.Source) -> Iterator[TestClient]:
    with TestClient(server.build_app(model, source), LOCAL) as client:
        yield client


@pytest.fixture
def encoded(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes (h, w) of the pictures that the network encodes during a test."""
    sizes: list[tuple[int, int]] = []
    encode = type(model.detector).encode_image

    def count(self, images):  # type: ignore[no-untyped-def]
        sizes.extend(meta.orig_size for meta in images.metas)
        return encode(self, images)

    monkeypatch.setattr(type(model.detector), "encode_image", count)
    return sizes


def picture(size: tuple[int, int] = (120, 80), form: str = "PNG", **options: object) -> bytes:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill="red")
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def upload(client: TestClient, data: bytes | None = None, name: str = "scene.png") -> str:
    answer = client.post("/pictures", params={"name": name}, content=data or picture())
    assert answer.status_code == 200, answer.text
    return answer.json()["picture"]


def ask(client: TestClient, key: str, words: str, mode: str = "names") -> dict:
    answer = client.post("/find", json={"picture": key, "words": words, "mode": mode})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("words", "mode", "query"),
    [
        ("red circle, dog", "names", {"labels": ["red circle", "dog"]}),
        ("a red circle left of the dog", "phrases", {"phrases": ["red circle", "dog"]}),
        ("a red [circle left] of the dog", "phrases", {"phrases": ["circle left"]}),
        ("a red circle left of the dog", "sentence", {}),
    ],
)
def test_answers_are_those_of_the_api(
    client: TestClient, model: Model, tmp_path: Path, words: str, mode: str, query: dict
) -> None:
    file = tmp_path / "scene.jpg"
    file.write_bytes(picture(form="JPEG", exif=exif_turned()))
    if "labels" not in query:
        query["caption"] = words.replace("[", "").replace("]", "")
    expected = Predictor(model).set_image(file).predict(**query)
    answer = ask(client, upload(client, file.read_bytes(), file.name), words, mode)
    assert (answer["width"], answer["height"]) == (80, 120), "upright"
    assert len(expected) > 0
    assert answer["detections"] == json.loads(expected.to_json())["detections"]
    assert answer["file"] == "scene.jpg"
    named = {part["label"]: part["text"] for part in answer["parts"] if "label" in part}
    assert {d["label"]: d["name"] for d in answer["detections"]}.items() <= named.items()
    if mode != "names":
        assert "".join(part["text"] for part in answer["parts"]) == query["caption"]


def exif_turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_other_words_do_not_encode_the_picture_again(client: TestClient, encoded: list) -> None:
    key = upload(client)
    first = ask(client, key, "red circle")
    ask(client, key, "dog, star")
    assert ask(client, key, "red circle") == first
    assert encoded == [(80, 120)]


def test_the_python_lines_find_the_same(client: TestClient, tmp_path: Path) -> None:
    name = 'it\'s a "red" circle.png'
    (tmp_path / name).write_bytes(picture())
    answer = ask(client, upload(client, picture(), f"C:\\fakepath\\{name}"), 'red circle, "dog\'s, or star"')
    before, after = answer["python"]
    scores = [d["score"] for d in answer["detections"]]
    gap = max(range(1, 20), key=lambda i: scores[i - 1] - scores[i])
    lowest = (scores[gap - 1] + scores[gap]) / 2  # as far from any score as can be
    run = subprocess.run(
        [sys.executable, "-"],
        input=f"{before}{lowest}{after}",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    assert printed["file"] == name
    assert len(printed["detections"]) == gap
    for one, other in zip(printed["detections"], answer["detections"], strict=False):
        assert one["name"] == other["name"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["box"] == pytest.approx(other["box"], abs=1e-2)
    assert (tmp_path / 'it\'s a "red" circle_found.png').exists()


def test_the_oldest_pictures_are_let_go_of_and_the_latest_stays(
    model: Model, source: server.Source, encoded: list
) -> None:
    one = Predictor(model).set_image(Image.new("RGB", (120, 80))).nbytes
    assert one > 120 * 80 * 3
    for memory, kept in ((2 * one, 2), (1, 1)):
        with TestClient(server.build_app(model, source, Limits(memory=memory)), LOCAL) as client:
            first, second = upload(client), upload(client)
            if kept == 2:
                ask(client, first, "dog")  # used again: the other one is now the oldest
            third = upload(client)
            statuses = [
                client.post("/find", json={"picture": key, "words": "dog"}).status_code
                for key in (first, second, third)
            ]
            assert statuses == ([200, 404, 200] if kept == 2 else [404, 404, 200])
    gone = "not kept any more: choose it again"
    with TestClient(server.build_app(model, source), LOCAL) as client:
        assert gone in client.post("/find", json={"picture": "nothing", "words": "dog"}).json()["error"]


@pytest.mark.parametrize(
    ("words", "mode", "said"),
    [
        ("", "names", "no words yet"),
        (" , ,", "names", "no words yet"),
        ("dog, dog", "names", "'dog'"),
        ("a [dog", "phrases", "brackets"),
        ("dog " * 900, "sentence", "tokens"),
        ("x" * 5000, "names", "words: String should have at most 4000"),
        ("dog", "poem", "mode: Input should be"),
    ],
)
def test_words_that_cannot_be_asked(client: TestClient, words: str, mode: str, said: str) -> None:
    key = upload(client)
    answer = client.post("/find", json={"picture": key, "words": words, "mode": mode})
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"words": "dog"}', b"\xff\xfe"])
def test_questions_that_are_none(client: TestClient, body: bytes) -> None:
    answer = client.post("/find", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_only_pictures_are_taken(client: TestClient, encoded: list) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    cases = {
        "notes.txt": (b"dear diary", "notes.txt: not a picture"),
        "empty.png": (b"", "empty.png: the file is empty"),
        "drawing.eps": (eps, "not a picture"),
        "scan.tif": (picture(form="TIFF"), "use JPEG, PNG, WEBP, GIF, BMP"),
        "cut.png": (picture()[:120], "cut.png: damaged"),
        "vector.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    }
    for name, (data, said) in cases.items():
        answer = client.post("/pictures", params={"name": name}, content=data)
        assert answer.status_code == 400, name
        assert said in answer.json()["error"], name
    assert encoded == []
    for form in desk.FORMATS:
        upload(client, picture(form=form), f"good.{form}")


def test_uploads_are_limited(model: Model, source: server.Source, encoded: list) -> None:
    limits = Limits(upload=5000, pixels=10_000)
    with TestClient(server.build_app(model, source, limits), LOCAL) as client:
        too_large = client.post("/pictures", params={"name": "wide.png"}, content=picture((101, 100)))
        assert too_large.status_code == 400
        assert "wide.png: 101x100 pixels, more than 0.01 million" in too_large.json()["error"]
        declared = client.post("/pictures", content=b"x" * 5001)
        assert declared.status_code == 413
        assert "more than 5000 bytes" in declared.json()["error"]
        sent = []

        def endless() -> Iterator[bytes]:
            for _ in range(1000):
                sent.append(1)
                yield b"x" * 1000

        assert client.post("/pictures", content=endless()).status_code == 413
        assert client.post("/find", content=b"x" * (server.QUESTION + 1)).status_code == 413
        upload(client, picture((100, 100)))
    assert encoded == [(100, 100)]


def test_a_body_is_not_read_beyond_its_limit() -> None:
    """Whatever length it declares."""
    import asyncio

    from starlette.requests import Request

    given = 0

    async def receive() -> dict:
        nonlocal given
        given += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-length", b"5")]}, receive)
    with pytest.raises(desk.Refused, match="more than 1000 bytes"):
        asyncio.run(server.read_body(request, 1000, "the picture"))
    assert given == 11


def test_parallel_requests_are_answered_in_order_and_the_page_still_comes(
    client: TestClient, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = upload(client)
    words = [
        f"{colour} {shape}" for colour in ("red", "blue", "green", "yellow") for shape in ("star", "dog", "a", "b", "c")
    ]
    expected = [ask(client, key, word) for word in words]
    started, release, order = threading.Semaphore(0), threading.Event(), []
    predict, arrive = Predictor.predict, desk.Desk._in_turn

    def slow(self, labels=None, **rest):  # type: ignore[no-untyped-def]
        order.append((labels[0], threading.current_thread().name))
        assert release.wait(300)
        return predict(self, labels, **rest)

    async def counted(self, *args):  # type: ignore[no-untyped-def]
        started.release()
        return await arrive(self, *args)

    monkeypatch.setattr(Predictor, "predict", slow)
    monkeypatch.setattr(desk.Desk, "_in_turn", counted)
    with ThreadPoolExecutor(len(words)) as pool:
        answers = []
        for word in words:
            answers.append(pool.submit(ask, client, key, word))
            assert started.acquire(timeout=300)
        assert client.get("/").status_code == 200, "the event loop is free while the network works"
        release.set()
        assert [answer.result(300) for answer in answers] == expected
    assert [word for word, _ in order] == words
    assert {thread for _, thread in order} == {"network_0"}


def test_a_crowd_is_told_to_come_back(model: Model, source: server.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(server.build_app(model, source, Limits(waiting=1)), LOCAL) as client, ThreadPoolExecutor(1) as pool:
        key, inside, release = upload(client), threading.Event(), threading.Event()
        predict = Predictor.predict

        def slow(self, **query):  # type: ignore[no-untyped-def]
            inside.set()
            assert release.wait(300)
            return predict(self, **query)

        monkeypatch.setattr(Predictor, "predict", slow)
        first = pool.submit(ask, client, key, "dog")
        assert inside.wait(300)
        refused = client.post("/find", json={"picture": key, "words": "star"})
        release.set()
        assert refused.status_code == 503
        assert "busy" in refused.json()["error"]
        assert first.result(300)["detections"]
        ask(client, key, "star")


def test_a_fault_is_told_and_the_next_request_works(
    model: Model, source: server.Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(server.build_app(model, source), LOCAL, raise_server_exceptions=False) as client:
        key = upload(client)
        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "predict", lambda self, **query: 1 / 0)
            broken = client.post("/find", json={"picture": key, "words": "dog"})
        assert broken.status_code == 500
        assert "ZeroDivision" not in broken.text
        assert broken.json()["error"].startswith("the server failed")
        assert ask(client, key, "dog")["detections"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "192.168.0.7", "my.name:80"]
)
def test_names_of_this_server(model: Model, source: server.Source, host: str) -> None:
    client = TestClient(server.build_app(model, source, hosts=["my.name"]), LOCAL)
    assert client.get("/about", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "a@b"]
)
def test_other_names_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 403
    assert "--allow-host" in answer.json()["error"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9000", "http://localhost:8000"])
def test_other_sites_cannot_ask(client: TestClient, encoded: list, origin: str) -> None:
    answer = client.post("/pictures", content=picture(), headers={"Origin": origin})
    assert (answer.status_code, encoded) == (403, [])
    assert "access-control-allow-origin" not in answer.headers
    assert client.post("/pictures", content=picture(), headers={"Origin": LOCAL}).status_code == 200


def test_every_answer_has_the_headers_that_shut_others_out(client: TestClient) -> None:
    for answer in (
        client.get("/"),
        client.get("/nowhere"),
        client.post("/find"),
        client.get("/", headers={"Host": "x.y"}),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert policy.count("'sha256-") == 2
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_nothing_but_the_page_is_served(client: TestClient) -> None:
    for path in (
        "/page.html",
        "/server.py",
        "/../setup.py",
        "/%2e%2e/setup.py",
        "//etc/passwd",
        "/docs",
        "/openapi.json",
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"}), path
    page = client.get("/").text
    links = re.findall(r"""\b(?:src|href|srcset|action)=["']?([^"'\s>]+)|(url\(|@import)""", page)
    assert [link for pair in links for link in pair if link and not link.startswith("data:")] == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\a\\b.png", "b.png"),
        ("a\nb\x00.png", "ab.png"),
        ("", "picture"),
        ("/", "picture"),
    ],
)
def test_names_of_uploads_are_names_only(client: TestClient, name: str, kept: str) -> None:
    assert client.post("/pictures", params={"name": name}, content=picture()).json()["file"] == kept


def test_mrb_serve_tells_a_taken_port_before_it_loads_anything(
    narrow: Narrow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskrcnn_benchmark.api.load", lambda *args: pytest.fail("loaded"))
    with server.open_listener("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert mrb.main(["serve", "--weight", str(narrow.weights), "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err
    assert mrb.main(["serve", "--weight", str(narrow.weights), "--port", "99999"]) == 2
    assert "--port" in capsys.readouterr().err


def test_mrb_serve_answers_until_it_is_interrupted(narrow: Narrow) -> None:
    command = [sys.executable, "-m", "maskrcnn_benchmark.mrb", "serve", "--config-file", CONFIG, "--port", "0"]
    command += ["--weight", str(narrow.weights), "--set", *narrow.opts]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert url is not None
            with urllib.request.urlopen(f"{url[0]}/about", timeout=300) as answer:
                assert json.load(answer)["model"] == "fiber_narrow · narrow.pth"
            process.send_signal(signal.SIGINT)
            assert process.wait(300) == 0
        finally:
            process.kill()


def test_mrb_serve_names_what_is_not_installed(
    narrow: Narrow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "maskrcnn_benchmark.demo.server", None)
    monkeypatch.delattr("maskrcnn_benchmark.demo.server")
    assert mrb.main(["serve", "--weight", str(narrow.weights)]) == 2
    assert "pip install 'maskrcnn_benchmark[demo]'" in capsys.readouterr().err
