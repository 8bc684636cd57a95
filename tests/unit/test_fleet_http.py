"""What HTTP failures become, against a real server of this process; and pictures as data URLs."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.engines.fleet.http import HttpConnection
from nemo_axpo.engines.fleet.protocol import ServerDownError

ANSWERS = {
    "/fine": (200, b'{"x": 1}'),
    "/empty": (200, b""),
    "/words": (200, b"all is well"),
    "/bad": (400, b'{"object": "error", "message": "top_p is wrong"}'),
    "/unprocessable": (422, b'{"detail": [{"msg": "field required"}]}'),
    "/broken": (500, b'{"error": {"message": "out of memory"}}'),
    "/busy": (503, b"no engine"),
    "/forbidden": (401, b'{"detail": "who are you"}'),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1)
        if self.path == "/cut":
            self.close_connection = True
            return
        status, body = ANSWERS.get(self.path, (200, b"{}"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


@pytest.fixture(params=["sampling", "control"])
def ask(url, request):
    """Both ways to call a server."""
    connection = HttpConnection(url, control_timeout_s=0.3)
    if request.param == "control":
        return lambda path: connection.call("GET", path)
    return lambda path: asyncio.run(connection.post(path, {}, timeout_s=0.3))


@pytest.mark.parametrize(("path", "answer"), [("/fine", {"x": 1}), ("/empty", None), ("/words", None)])
def test_answers(ask, path, answer):
    assert ask(path) == answer
    assert ask(path) == answer  # in another event loop


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/bad", ValueError, r"/bad refused the request \(400\): top_p is wrong"),
        ("/unprocessable", ValueError, r"\(422\): .*field required"),
        ("/broken", EngineError, r"/broken failed \(500\): out of memory"),
        ("/forbidden", EngineError, r"failed \(401\): who are you"),
        ("/busy", ServerDownError, r"is not available \(503\): no engine"),
        ("/slow", ServerDownError, r"/slow did not answer within 0.3 s"),
        ("/cut", ServerDownError, r"/cut cannot be reached"),
    ],
)
def test_failures(ask, path, kind, message):
    with pytest.raises(kind, match=message) as raised:
        ask(path)
    assert type(raised.value) is kind


def test_nobody_listens():
    connection = HttpConnection("http://127.0.0.1:9", control_timeout_s=1)
    with pytest.raises(ServerDownError, match="127.0.0.1:9/health cannot be reached"):
        connection.call("GET", "/health")


class Pictures:
    """Noise by name; counts how often a picture is asked for."""

    def __init__(self):
        self.num_asked = 0

    def image(self, image_id):
        self.num_asked += 1
        noise = np.random.default_rng(len(image_id)).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        return Image.fromarray(noise)


def test_pictures_arrive_pixel_by_pixel_and_are_encoded_once():
    pictures = Pictures()
    urls = DataUrls(pictures.image)
    url = urls.url("one")
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as image:
        assert np.array_equal(np.asarray(image), np.asarray(pictures.image("one")))
    pictures.num_asked = 0
    assert urls.url("one") == url and pictures.num_asked == 0


def test_pictures_are_kept_up_to_so_many_characters():
    """The same noise under names of two letters each: URLs of one length."""
    pictures = Pictures()
    length = len(DataUrls(pictures.image).url("p0"))
    urls = DataUrls(pictures.image, max_kept_chars=3 * length)
    pictures.num_asked = 0
    for name in ("p0", "p1", "p2", "p0", "p3"):  # p1 is the one asked for longest ago when p3 comes
        urls.url(name)
    assert pictures.num_asked == 4
    for name in ("p0", "p2", "p3"):
        urls.url(name)
    assert pictures.num_asked == 4
    urls.url("p1")
    assert pictures.num_asked == 5


def test_the_pictures_of_a_large_step_are_encoded_once():
    pictures = Pictures()
    urls = DataUrls(pictures.image)
    for _ in range(2):
        for number in range(1_000):
            urls.url(f"p{number:04}")
    assert pictures.num_asked == 1_000
