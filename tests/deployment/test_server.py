"""The server as its clients see it: a process of its own, answered over HTTP, by several at once, and asked badly."""

import base64
import concurrent.futures
import gc
import http.client
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tests.deployment.models import file_of, served
from tests.docs.pages import blocks, run_python, run_shell
from tests.learners.problems import small_network
from tf_unravel import cli, deployment, heads

server = pytest.importorskip("tf_unravel.deployment.serving.server")  # needs uvicorn and starlette
hosts = importlib.import_module("tf_unravel.deployment.serving.hosts")

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).tolist()
NOISE = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return deployment.export(small_network(), heads.Ridge(), tmp_path_factory.mktemp("models") / "pictures" / "1")


@pytest.fixture(scope="module")
def address(model):
    command = [sys.executable, "-m", "tf_unravel.cli", "serve", f"--model={model}", "--port=0", "--max_mib=1",
               "--allow_host=photos.example.org"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"})
    line = server.stdout.readline()
    assert "Serving" in line, server.communicate()[1]
    address = line.split(" at ")[1].strip()
    assert server.stdout.readline() == f"The page: {address.partition('/v1/')[0]}/\n"
    yield address
    assert server.poll() is None  # nothing that was asked has ended it
    server.send_signal(signal.SIGTERM)
    errors = server.communicate(timeout=30)[1]
    assert "Traceback" not in errors, errors


def ask(url, body=None, **headers):
    """(status, JSON) of a GET, or of a POST of `body`, JSON or bytes."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def task(seed, ways=3, queries=4):
    """A request and its answer by Python."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(ways), rng.integers(0, ways, 4)]).astype(np.int32)
    support = rng.integers(0, 256, (len(labels), 16, 16, 3), np.uint8)
    return support, labels, rng.integers(0, 256, (queries, 16, 16, 3), np.uint8)


def request_of(support, labels, query):
    inputs = {"support_images": support.tolist(), "support_labels": labels.tolist(), "query_images": query.tolist()}
    return {"signature_name": "classify", "inputs": inputs}


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def test_it_says_what_it_serves(address, model):
    assert address.endswith("/v1/models/pictures")
    status, found = ask(address)
    assert status == 200 and found["model_version_status"][0]["state"] == "AVAILABLE"
    status, found = ask(f"{address}/metadata")
    assert status == 200 and found["card"]["head"]["name"] == "ridge"
    assert set(found["signatures"]["classify"]["inputs"]) == {"support_images", "support_labels", "query_images"}


def test_clients_at_once_get_their_own_answers(address, model):
    loaded, tasks = deployment.Model(model), [task(seed, ways=2 + seed % 4) for seed in range(12)]
    with concurrent.futures.ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda each: ask(f"{address}:predict", request_of(*each)), tasks))
    for (support, labels, query), (status, answer) in zip(tasks, answers, strict=True):
        assert status == 200
        for name, expected in loaded.answer(query, support, labels).items():
            np.testing.assert_allclose(answer["outputs"][name], expected, atol=1e-6)


def test_rows_and_columns_are_the_same_features(address, model):
    images = task(0)[2]
    expected = deployment.Model(model).features(images)
    for body in ({"instances": images.tolist()}, {"instances": [{"images": image} for image in images.tolist()]},
                 {"signature_name": "features", "inputs": {"images": images.tolist()}}, {"inputs": images.tolist()}):
        status, answer = ask(f"{address}:predict", body)
        assert status == 200
        np.testing.assert_allclose(answer["predictions" if "instances" in body else "outputs"], expected, rtol=1e-5)


def test_files_by_rows_and_by_columns(address, model):
    """Of any kind and size; those of the model's size, stored without loss, are answered as their pixels."""
    images = task(0)[2]
    files = [file_of(images[0]), file_of(images[1], "BMP"), file_of(images[2].repeat(9, 0)), file_of(images[3], "JPEG")]
    rows, loaded = [b64(data) for data in files], deployment.Model(model)
    expected = loaded.features_encoded(files)
    np.testing.assert_allclose(expected[:2], loaded.features(images[:2]), rtol=1e-5, atol=1e-6)
    for body in ({"instances": rows}, {"instances": [{"image_bytes": row} for row in rows]},
                 {"inputs": {"image_bytes": rows}}, {"inputs": rows}):
        status, answer = ask(f"{address}:predict", {"signature_name": "features_encoded", **body})
        assert status == 200
        found = answer["predictions" if "instances" in body else "outputs"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_task_of_files_is_answered(address, model):
    support, labels, query = task(1)
    loose = [*map(file_of, support)], [*map(file_of, query)]
    wrapped = b64(loose[0][0])["b64"].rstrip("=")
    inputs = {"support_bytes": [{"b64": f"{wrapped[:76]}\n{wrapped[76:]}"}, *map(b64, loose[0][1:])],
              "support_labels": labels.tolist(), "query_bytes": [*map(b64, loose[1])]}
    status, answer = ask(f"{address}:predict", {"signature_name": "classify_encoded", "inputs": inputs})
    assert status == 200
    expected = deployment.Model(model).classify(query, support, labels)
    np.testing.assert_allclose(answer["outputs"]["probabilities"], expected, atol=1e-6)


def pictures(folder, *names):
    """Images of noise, 20x24."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / name)


def test_the_client_on_the_page_gets_its_answer(address, model, tmp_path, monkeypatch, capsys):
    """The page's client as printed, but for the address; the answers are those of `classify`."""
    pictures(tmp_path, "support/ant/1.png", "support/bat/1.jpg", "support/bat/2.png")
    pictures(tmp_path, "queries/a/c.png", "queries/b.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # as a phone held upright writes it
    striped = np.tile(np.uint8([[[0]], [[255]]]), (10, 24, 3))
    Image.fromarray(striped).save(tmp_path / "queries" / "d.jpg", exif=turned)
    for name in ("support/.thumbnails/1.png", "support/ant/._1.png", "support/notes.txt", "support/ant/notes.txt",
                 "queries/a/notes.txt", "queries/.old/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    on_the_page = "http://127.0.0.1:8501/v1/models/mine"
    (text,) = [text for language, text in blocks("docs/guides/export_and_serving.md")
               if language == "python" and on_the_page in text]
    monkeypatch.chdir(tmp_path)
    run_python(text.replace(on_the_page, address), {})
    lines = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    answers = deployment.classify(model, "queries", "support").answers
    assert [said for said, _ in lines] == [f"queries/{answer.file} {answer.class_name}" for answer in answers]
    np.testing.assert_allclose([float(p) for _, p in lines], [answer.probability for answer in answers], atol=5e-3)
    with pytest.raises(SystemExit, match="two classes"):
        (tmp_path / "support" / "ant").rename(tmp_path / "support" / "bat" / "ant")
        run_python(text.replace(on_the_page, address), {})


def test_curl_sends_a_photograph(address, tmp_path, monkeypatch, capfd):
    """The page's commands as printed; one too large for a command line's argument too."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    (tmp_path / "photo.jpg").write_bytes(file_of(noise, "JPEG"))
    monkeypatch.chdir(tmp_path)
    (text,) = [text for language, text in blocks("docs/guides/export_and_serving.md") if language == "bash"]
    run_shell(text.replace("http://127.0.0.1:8501/v1/models/mine", address))
    assert len(json.loads(capfd.readouterr().out)["predictions"][0]) == 3


def test_a_classifier_takes_a_file_and_names_the_classes(tmp_path):
    support, labels, query = task(2)
    path = deployment.export(small_network(), heads.Ridge(), tmp_path / "classifier", support=(support, labels),
                             class_names=["ant", "bat", "cat"])
    with served(path) as address:
        body = {"signature_name": "classify_encoded", "instances": [b64(file_of(image)) for image in query]}
        status, answer = ask(f"{address}:predict", body)
    assert status == 200 and answer["predictions"][0]["class_names"] == ["ant", "bat", "cat"]
    expected = deployment.Model(path).classify(query)
    np.testing.assert_allclose([row["probabilities"] for row in answer["predictions"]], expected, atol=1e-6)


def bad(**changes):
    request = request_of(*task(0))
    return {**request, "inputs": {**request["inputs"], **changes}}


def encoded(inputs):
    return {"signature_name": "features_encoded", "inputs": inputs}


@pytest.mark.parametrize(("body", "message"), [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"instances": [NaN]}', "must be finite"),
    (b'{"instances": [Infinity]}', "must be finite"),
    ([1, 2], "a JSON object"),
    ({}, "a JSON object"),
    ({"inputs": {}, "instances": []}, "a JSON object"),
    ({"instances": []}, "at least one"),
    ({"instances": [{"images": IMAGE[0]}, {"other": IMAGE[0]}]}, "every instance must have images"),
    ({"instances": IMAGE, "signature_name": "classify"}, "signatures of one input"),
    ({"inputs": IMAGE, "signature_name": "nothing"}, "signature_name is one of"),
    ({"inputs": IMAGE, "signature_name": ["features"]}, "signature_name is one of"),
    ({"inputs": {"images": IMAGE, "more": 1}, "signature_name": "features"}, "the inputs of features are images"),
    ({"inputs": [[[[1, 2, 3]], [[1, 2]]]]}, "rectangular"),
    ({"inputs": "an image"}, "must have the shape"),
    ({"inputs": [[[[1, 2]]]]}, r"must have the shape \[any, any, any, 3\]"),
    ({"inputs": [[[[1.5, 2, 3]]]]}, "whole numbers 0 to 255"),
    ({"inputs": [[[[256, 2, 3]]]]}, "whole numbers 0 to 255. Received: 2 to 256"),
    ({"inputs": [[[[-1, 2, 3]]]]}, "whole numbers 0 to 255"),
    ({"inputs": [[[[10**40, 2, 3]]]]}, "whole numbers 0 to 255"),
    ({"inputs": [[[[None, 2, 3]]]]}, "whole numbers 0 to 255"),
    ({"inputs": [[[[True, False, True]]]]}, "whole numbers 0 to 255"),
    (encoded([{"b64": "no base64!"}]), r"image_bytes must be base64. Received: 9 characters at 0"),
    (encoded([b64(b"BM"), {"b64": "AAAAA"}]), "image_bytes must be base64. Received: 5 characters at 1"),
    (encoded([{"b64": "\xe9\xe9"}]), "image_bytes must be base64"),
    (encoded([{"b64": 3}]), r'strings in base64, \{"b64": "..."\}. Received: an object with b64 at 0'),
    (encoded([{"b64": "", "more": 1}]), "strings in base64"),
    (encoded(["text"]), "strings in base64, .* Received: 'text' at 0"),
    (encoded(IMAGE), "strings in base64, .* Received: a list of 16 at 0"),
    (encoded([]), "a list of at least one"),
    (encoded({"b64": "AAAA"}), "the inputs of features_encoded are image_bytes. Received: an object with b64"),
    (encoded({"image_bytes": {"b64": "AAAA"}}), "a list of at least one .* Received: an object with b64"),
    (encoded([{"b64": ""}]), r"must be JPEG, PNG or BMP. Received: \[image_bytes\] \[file\] \[0\] \[of\] \[0\]"),
    (encoded([b64(file_of(NOISE, "JPEG")[:-20])]), "an image file is damaged. Received: .*JPEG"),
    ({"signature_name": "features_encoded", "instances": [{"other": 1}]}, "every instance must have image_bytes"),
    (bad(support_images=[]), "must have the shape"),
    (bad(support_labels=[]), "must have the shape"),
    (bad(query_images=[]), "must have the shape"),
    (bad(support_labels=[0, 1, 2]), "one label for each support image"),
    (bad(support_labels=[0] * 7), "two classes at least"),
    (bad(support_labels=[0, 1, 3, 0, 1, 3, 0]), "every class"),
    (bad(support_labels=[-1, 1, 2, 0, 1, 2, 0]), "0 or more"),
    (bad(support_labels=[2**31 - 1, 1, 2, 0, 1, 2, 0]), "every class"),
    (bad(support_labels=[2**40, 1, 2, 0, 1, 2, 0]), "whole numbers"),
])  # fmt: skip
def test_a_bad_request_is_a_clear_line(address, body, message):
    status, answer = ask(f"{address}:predict", body)
    assert status == 400
    assert set(answer) == {"error"} and "\n" not in answer["error"]
    assert re.search(message, answer["error"]), answer["error"]
    assert len(answer["error"]) < 500


@pytest.mark.parametrize("framing", [f"Content-Length: {2 << 20}", "Transfer-Encoding: chunked"])
def test_a_body_above_the_limit_is_refused_before_its_end(address, framing):
    host, _, path = address.removeprefix("http://").partition("/")
    name, port = host.split(":")
    with socket.create_connection((name, int(port)), timeout=30) as connection:
        connection.sendall(f"POST /{path}:predict HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n".encode())
        if "chunked" in framing:  # no length is given; the last chunk never comes
            for _ in range(17):
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_other_addresses_and_methods_are_refused(address):
    for url, expected in ((address.replace("pictures", "other"), 404), (f"{address}:predict", 405)):
        status, answer = ask(url)
        assert status == expected
        assert "POST /v1/models/pictures:predict are answered. Received: GET /v1" in answer["error"]


@pytest.mark.parametrize(("host", "known"), [
    ("localhost", True),
    ("LOCALHOST.:8501", True),
    ("127.0.0.1:1", True),
    ("192.168.7.9:8501", True),
    ("[::1]:8501", True),
    (f"{socket.gethostname()}:8501", True),
    ("Photos.Example.org", True),
    ("example.org", False),
    ("more.photos.example.org", False),
    ("localhost.example.org:8501", False),
    ("127.0.0.1.example.org", False),
    ("localhost@example.org", False),
    ("[::1", False),
    ("", False),
])  # fmt: skip
def test_a_name_that_is_none_of_the_machine_is_refused(address, host, known):
    """A page elsewhere that lets its name point here is of one origin with the server: Origin does not tell."""
    root = address.partition("/v1/")[0]
    for url, body in ((f"{root}/page/model", None), (f"{address}:predict", request_of(*task(0)))):
        status, answer = ask(url, body, Host=host, Origin=f"http://{host}")
        assert status == (200 if known else 403)
        if not known:
            assert "--allow_host=NAME" in answer["error"] and answer["error"].endswith(f"Received: host {host}")


def test_a_client_that_names_no_host_is_answered(address):
    """HTTP/1.0, as a balancer asks whether the server is up; browsers name one."""
    name, port = address.split("/")[2].split(":")
    with socket.create_connection((name, int(port)), timeout=30) as connection:
        connection.sendall(b"GET /v1/models/pictures HTTP/1.0\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("name", ["http://photos.example.org", "photos.example.org:80", "photos.example.org/a", ""])
def test_a_host_to_allow_is_a_name(model, capsys, name):
    assert cli.main(["serve", f"--model={model}", f"--allow_host={name}"]) == 1
    assert f"must be a host's name alone, such as photos.example.org. Received: {name or 'nothing'}" in (
        capsys.readouterr().err)


@pytest.mark.parametrize(("network", "pages"), [
    ("192.168.7.9", r"http://localhost:(\d+)/, from other devices http://192\.168\.7\.9:\1/"),
    (None, r"http://localhost:\d+/"),
])  # fmt: skip
def test_the_address_that_is_said_can_be_opened(model, capsys, monkeypatch, network, pages):
    """0.0.0.0, which can be listened at, is not one."""
    class Probe(socket.socket):
        def connect(self, address):
            if network is None:
                raise OSError("Network is unreachable")

        def getsockname(self):
            return network, 1

    listening = server._listening("0.0.0.0", 0)
    monkeypatch.setattr(server, "_listening", lambda host, port: listening)
    monkeypatch.setattr(server.uvicorn, "Config", lambda *_, **__: None)  # it would close what capsys reads from
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(hosts.socket, "socket", Probe)
    assert cli.main(["serve", f"--model={model}", "--host=0.0.0.0", "--port=0"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"Serving .+ at http://localhost:\d+/v1/models/pictures\nThe page: {pages}\n", said), said


def test_a_client_that_hangs_up_harms_nobody(address):
    host = address.split("/")[2]
    body = json.dumps(request_of(*task(0))).encode()
    for _ in range(5):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.putrequest("POST", f"{address.removeprefix(f'http://{host}')}:predict")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[: len(body) // 2])
        connection.close()
    assert ask(f"{address}:predict", json.loads(body))[0] == 200


def test_a_port_that_is_taken_is_one_line(address, model, capsys):
    port = address.split(":")[2].split("/")[0]
    assert cli.main(["serve", f"--model={model}", f"--port={port}"]) == 1
    assert f"cannot listen at 127.0.0.1:{port} (Address already in use); --port=0 takes" in capsys.readouterr().err


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_port_that_is_none_is_one_line(model, capsys, port):
    assert cli.main(["serve", f"--model={model}", f"--port={port}"]) == 1
    assert f"--port must be 0 to 65535, 0 for a free one. Received: {port}" in capsys.readouterr().err


def test_a_pretrained_network_is_served_as_it_is(tmp_path, monkeypatch):
    network, served = tmp_path / "features.keras", []
    small_network().save(network)
    monkeypatch.setattr(server, "serve", lambda path, *_: served.append((server.name_of(path), deployment.Model(path))))
    assert cli.main(["serve", f"--backbone={network}", "--head=prototypes"]) == 0
    ((name, model),) = served
    assert name == "features" and model.card["head"]["name"] == "prototypes" and not model.path.exists()


def test_options_of_a_backbone_are_refused_with_a_model(model, capsys):
    assert cli.main(["serve", f"--model={model}", "--head=ridge"]) == 1
    assert "--head belongs to --backbone. Received: --model and --head=ridge" in capsys.readouterr().err


def test_nothing_holds_an_answer_back(model, monkeypatch):
    """Neither Nagle's algorithm (40 ms on a kept connection) nor collections that walk all of TensorFlow (200 ms)."""
    seen = {}

    def run(self, sockets):
        client = socket.create_connection(sockets[0].getsockname())
        accepted, _ = sockets[0].accept()
        with client, accepted:
            seen["no delay"] = bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        seen["frozen"] = gc.get_freeze_count()

    monkeypatch.setattr(server.uvicorn.Server, "run", run)
    server.serve(model, port=0)
    assert seen["no delay"] and seen["frozen"] > 100_000 and gc.get_freeze_count() == 0


def photograph(image):
    """An image of 16x16 as a JPEG of 640x480, of the size that photographs of that many pixels have."""
    large = np.asarray(Image.fromarray(image).resize((640, 480), Image.Resampling.BICUBIC)).astype(int)
    grain = np.random.default_rng(0).normal(0, 4, large.shape)
    return file_of(np.clip(large + grain, 0, 255).astype(np.uint8), "JPEG", quality=75)


def load_of(kind):
    """A 5-way task, its images as lists of pixels, as JPEG of 16x16 or as JPEG of 640x480."""
    support, labels, query = task(0, ways=5, queries=5)
    if kind == "pixel lists":
        return request_of(support, labels, query)
    make = photograph if kind == "JPEG of 640x480" else lambda image: file_of(image, "JPEG")
    inputs = {"support_bytes": [b64(make(image)) for image in support], "support_labels": labels.tolist(),
              "query_bytes": [b64(make(image)) for image in query]}
    return {"signature_name": "classify_encoded", "inputs": inputs}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["pixel lists", "JPEG of 16x16", "JPEG of 640x480"])
@pytest.mark.parametrize("connection", ["for each request", "kept"])
def test_four_clients_for_a_minute(address, connection, kind):
    """Every request is answered; `tf-unravel benchmark --only=serving` says how fast."""
    host, path = address.removeprefix("http://").split("/", 1)
    request, deadline = json.dumps(load_of(kind)).encode(), time.monotonic() + 60

    def client(_):
        found, kept = [], http.client.HTTPConnection(host, timeout=60)
        while time.monotonic() < deadline:
            kept.request("POST", f"/{path}:predict", request)
            with kept.getresponse() as answer:
                found.append(answer.status if json.load(answer) else 0)
            if connection != "kept":
                kept.close()
        return found

    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        found = [status for part in clients.map(client, range(4)) for status in part]
    assert set(found) == {200} and len(found) > 60
