"""An exported model asked on what a client keeps, and the page's answers over HTTP, without a browser."""

import base64
import io
import json
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest

from tests.deployment.models import all_heads, file_of, network, served, task
from tf_unravel import deployment, heads
from tf_unravel.adaptation import calibration
from tf_unravel.deployment.few_shot import OnFeatures, OnFiles, few_shot, lowest_rate
from tf_unravel.deployment.serving.gate import Gate

BACKBONE = network()
NAMES = ("prototypes", "ridge", "svm", "fine_tune")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    known = all_heads(BACKBONE)
    folder = tmp_path_factory.mktemp("models")
    return {name: deployment.load(deployment.export(BACKBONE, known[name], folder / name)) for name in NAMES}


def as_read(model, images):
    """Images as the model's head reads them."""
    if few_shot(model).reads == "files":
        return [file_of(image) for image in images]
    return [each.astype("<f4").tobytes() for each in model.features(images)]


@pytest.mark.parametrize("name", NAMES)
def test_answers_and_the_classifier_are_those_of_the_model(models, name, tmp_path):
    model, asked = models[name], task()
    client = few_shot(model)
    assert isinstance(client, OnFiles if name == "fine_tune" else OnFeatures)
    support, query = as_read(model, asked.support), as_read(model, asked.query)
    expected = model.answer(asked.query, asked.support, asked.labels)
    found = client.answer(support, asked.labels, query)
    built = deployment.load(client.export(support, asked.labels, ["ant", "bat", "cat"], tmp_path / "built"))
    for output in ("probabilities", "p_known"):
        np.testing.assert_allclose(found[output], expected[output], atol=1e-5)
        np.testing.assert_allclose(built.answer(asked.query)[output], expected[output], atol=1e-5)
    assert built.card["class_names"] == ["ant", "bat", "cat"] and built.card["support_per_class"] == [1, 3, 5]
    files = np.array([file_of(image) for image in asked.query], object)
    encoded = built.call("classify_encoded", {"image_bytes": files})
    np.testing.assert_allclose(encoded["probabilities"], expected["probabilities"], atol=1e-5)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_left_out_is_what_a_fit_without_the_image_says(models, name):
    """Each image's class by a head that is fitted to the others of the fold, one fold after the other."""
    model, asked = models[name], task()
    features = model.features(asked.support)
    fold = calibration.folds(asked.labels, 3).numpy()
    probabilities, counted = few_shot(model).left_out(as_read(model, asked.support), asked.labels)
    assert counted.tolist() == (fold >= 0).tolist() and not counted.all()
    for number in range(fold.max() + 1):
        left, kept = fold == number, fold != number
        logits = model.head(features[kept][None], asked.labels[kept][None], features[left][None], 3)[0].numpy()
        np.testing.assert_array_equal(probabilities[left].argmax(1), logits.argmax(1))
        for row, expected in zip(probabilities[left], logits, strict=True):  # its logarithms are logits but for scale
            assert np.corrcoef(np.log(row), expected)[0, 1] > 0.999


def test_left_out_of_a_head_that_adapts_the_network(models):
    assert few_shot(models["fine_tune"]).left_out([], np.array([])) is None


def test_lowest_rate(models):
    """1 / (1 + N), N = 3 + 5: an only image has nothing to be compared with."""
    assert lowest_rate(models["ridge"], task().labels) == pytest.approx(1 / 9)


@pytest.mark.parametrize(("support", "labels", "message"), [
    ([b"123"], [0], "float32 values, 32 bytes. Received: 3 bytes"),
    ([bytes(32)] * 2, [0, 0], "two classes at least"),
    ([bytes(32)] * 3, [0, 2, 2], "every class from 0"),
])  # fmt: skip
def test_a_bad_support_set_is_one_line(models, support, labels, message):
    client = few_shot(models["ridge"])
    assert client.size == 8
    with pytest.raises(ValueError, match=message):
        client.answer(support, np.array(labels, np.int32), [bytes(32)])


@pytest.fixture(scope="module")
def address(models):
    with served(models["ridge"].path) as address:
        yield address.partition("/v1/")[0]


def ask(url, body=None, **headers):
    """(status, headers, content)."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def b64(values):
    return [{"b64": base64.b64encode(value).decode()} for value in values]


@pytest.fixture(scope="module")
def request_of(address, models):
    """A request with the support set of a task; its id is the model's."""
    asked = task()
    known = json.loads(ask(f"{address}/page/model")[2])
    return {"model": known["id"], "support": b64(as_read(models["ridge"], asked.support)),
            "labels": asked.labels.tolist()}


def test_only_the_files_of_the_page_are_served_and_they_ask_nobody_else(address):
    _, headers, page = ask(f"{address}/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"<script" in page and b"http://" not in page and b"https://" not in page
    for name, kind in (("main.js", "text/javascript"), ("style.css", "text/css")):
        status, headers, _ = ask(f"{address}/page/{name}")
        assert status == 200 and headers["Content-Type"].startswith(kind)
        assert headers["X-Content-Type-Options"] == "nosniff"
    for name in ("routes.py", "../server.py", "%2e%2e/server.py", "..%2f..%2fmodel.py", ""):
        assert ask(f"{address}/page/{name}")[0] == 404, name


def test_features_of_each_file_or_what_is_wrong_with_it(address, models, request_of):
    good = task().query[0]
    body = {"model": request_of["model"], "images": b64([file_of(good), b"eggs", file_of(good, "JPEG")[:-30]])}
    first, second, third = json.loads(ask(f"{address}/page/features", body)[2])["images"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(first["features"]), "<f4"),
                               models["ridge"].features(good[None])[0], rtol=1e-5)
    assert second["error"].startswith("image files must be JPEG, PNG or BMP")
    assert third["error"].startswith("an image file is damaged")


def test_the_classifier_comes_as_a_folder_in_a_zip(address, request_of, models, tmp_path):
    status, headers, content = ask(f"{address}/page/classifier", {**request_of, "class_names": ["a", "b", "ç"]})
    assert status == 200 and headers["Content-Disposition"].endswith("ridge.zip")
    zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path)
    assert deployment.load(tmp_path / "ridge").baked_classes == ("a", "b", "ç")


@pytest.mark.parametrize(("path", "change", "status", "message"), [
    ("answers", {"model": "another"}, 409, "another model"),
    ("answers", {"query": []}, 400, "query must be a list"),
    ("answers", {"labels": [0]}, 400, "labels must be 9 whole numbers"),
    ("answers", {"labels": [0.5] * 9}, 400, "labels must be 9 whole numbers"),
    ("answers", {"labels": [2**40] * 9}, 400, "labels must be 9 whole numbers"),
    ("check", {"labels": [0] * 9}, 400, "two classes at least"),
    ("check", {"support": "text"}, 400, "support must be a list"),
    ("classifier", {"class_names": ["a", "a", "b"]}, 400, "different names"),
    ("classifier", {"class_names": [1, 2, 3]}, 400, "class_names must be a list of names"),
])  # fmt: skip
def test_a_bad_request_is_one_line(address, request_of, path, change, status, message):
    body = {**request_of, "query": request_of["support"], **change}
    found, _, content = ask(f"{address}/page/{path}", body)
    line = json.loads(content)["error"]
    assert found == status and message in line and "\n" not in line


def test_another_site_is_refused(address, request_of):
    body = {**request_of, "query": request_of["support"]}
    for asked in ("page/answers", "v1/models/ridge:predict"):
        assert ask(f"{address}/{asked}", body, Origin="http://example.org")[0] == 403
    assert ask(f"{address}/page/answers", body, Origin=address)[0] == 200


def too_many(kind, few, more):
    """(path, body) of a request with so many images, none of which is one."""
    files = b64([b""])
    predict = "v1/models/ridge:predict"
    return {
        "page features": ("page/features", {"images": files * (few + more)}),
        "page answers": ("page/answers", {"support": files * few, "labels": [0] * few, "query": files * more}),
        "files by rows": (predict, {"signature_name": "features_encoded", "instances": files * (few + more)}),
        "files of a task": (predict, {"signature_name": "classify_encoded", "inputs": {
            "support_bytes": files * few, "support_labels": [0] * few, "query_bytes": files * more}}),
        "pixels": (predict, {"signature_name": "features", "instances": [[[[0, 0, 0]]]] * (few + more)}),
    }[kind]


@pytest.mark.parametrize("kind", ["page features", "page answers", "files by rows", "files of a task", "pixels"])
def test_too_many_images_are_refused_before_they_are_decoded(address, request_of, kind):
    path, body = too_many(kind, 5000, 5001)
    status, _, content = ask(f"{address}/{path}", {"model": request_of["model"], **body})
    line = json.loads(content)["error"]
    assert status == 413 and line.startswith("a request may have 10000 images"), line
    assert line.endswith("Received: 10001")


def test_as_many_images_as_may_be_are_looked_at(address):
    path, body = too_many("files of a task", 5000, 5000)
    status, _, content = ask(f"{address}/{path}", body)
    assert status == 400 and b"must be JPEG, PNG or BMP" in content


def test_most_images_of_a_request_by_their_size():
    """Twice the bytes of a body in pixels."""
    assert [Gate(1 << 24, side * side * 3).max_images for side in (0, 16, 84, 224, 10_000)] == [
        10_000, 10_000, 1585, 222, 1]


def test_a_model_that_takes_no_files_is_one_line(models):
    class Earlier:
        path, signatures = "model", {"features": None, "classify": None}

    with pytest.raises(ValueError, match="takes image files; export it again"):
        few_shot(Earlier())


def test_prior_of_the_model_counts(tmp_path):
    """A model that has met other classes can tell an unknown image with fewer labelled ones."""
    prior = heads.Prior(similarities=tuple(np.linspace(0.1, 0.9, 99).tolist()))
    path = deployment.export(BACKBONE, heads.Ridge(), tmp_path / "model", prior=prior)
    assert lowest_rate(deployment.load(path), task().labels) == pytest.approx(1 / 900)
