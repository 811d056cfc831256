"""The page at `/`: its files, and the answers that it asks for.

    GET  /, /page/<file>     the page, of a fixed list of files
    GET  /page/model         what the page has to know of the model
    POST /page/features      image files -> their features, each or what is wrong with it
    POST /page/check         labelled images -> what fits without them say, and the lowest rate for `unknown`
    POST /page/answers       labelled images and others -> probabilities and p_known
    POST /page/classifier    labelled images -> the model with them built in, a zip

Images and names are kept by the page alone: every request brings what its answer needs (`few_shot` says what an image
is), so that the server can be stopped and started. A request names the model that its features are of; another model is
409. The page loads nothing from elsewhere, and its Content-Security-Policy forbids it to; requests that another site's
page sends are refused (403), and its answers may be read by none.
"""

import base64
import hashlib
import io
import json
import pathlib
import tempfile
import urllib.parse
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tf_unravel.deployment.few_shot import FewShot, few_shot, lowest_rate
from tf_unravel.deployment.model import Model
from tf_unravel.deployment.serving.gate import Gate, refusal
from tf_unravel.deployment.serving.rest import BadRequest, parsed, strings

_HERE = pathlib.Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = ("style.css", "icon.svg", "main.js", "state.js", "pictures.js", "server.js", "work.js", "view.js",
          "classes.js", "answers.js", "camera.js", "downloads.js")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
Compute = Callable[[Mapping[str, Any]], Response]


def page_routes(model: Model, name: str, gate: Gate) -> list[Route]:
    """The routes of the page of a model; see the module."""
    answers = _Answers(model, name, gate)
    posts = {"features": answers.features, "check": answers.check, "answers": answers.answers,
             "classifier": answers.classifier}
    return [
        Route("/", _file("index.html")),
        *(Route(f"/page/{file}", _file(file)) for file in _FILES),
        Route("/page/model", answers.described),
        *(Route(f"/page/{path}", answers.asked(compute), methods=["POST"]) for path, compute in posts.items()),
    ]


def _file(name: str) -> Callable[[Request], Response]:
    content = (_HERE / name).read_bytes()
    kind = _TYPES[pathlib.PurePath(name).suffix]

    def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return answer


class _Answers:
    """What the page asks."""

    def __init__(self, model: Model, name: str, gate: Gate):
        self.model, self.name, self.gate = model, name, gate
        text = json.dumps(model.card, sort_keys=True)
        self.id = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.few_shot: FewShot | None = None
        self.problem: str | None = None
        try:
            if model.baked_classes is None:
                self.few_shot = few_shot(model)
            elif "classify_encoded" not in model.signatures:
                raise ValueError("The page needs a model that takes image files; export it again with this version.")
        except ValueError as error:
            self.problem = str(error)

    def described(self, request: Request) -> Response:
        """What the page has to know of the model."""
        card = self.model.card
        counts = card["support_per_class"] or []
        return JSONResponse({
            "id": self.id,
            "name": self.name,
            "problem": self.problem,
            "head": card["head"]["settings"],
            "transductive": card["head"]["transductive"],
            "size": [card["input"]["height"], card["input"]["width"]],
            "classes": self.model.baked_classes,
            "reads": None if self.few_shot is None else self.few_shot.reads,
            "max_bytes": self.gate.max_bytes,
            "max_images": self.gate.max_images,
            "lowest_rate": lowest_rate(self.model, np.repeat(np.arange(len(counts)), counts)) if counts else None,
        })

    def asked(self, compute: Compute) -> Callable[[Request], Any]:
        """The endpoint of a computation."""
        def answer(body: bytes) -> Response:
            values = parsed(body)
            if not isinstance(values, dict):
                raise BadRequest(f"the body must be a JSON object. Received: {type(values).__name__}")
            if values.get("model") != self.id:
                return refusal(409, "the server has another model now")
            self._admit(values)
            return compute(values)

        async def endpoint(request: Request) -> Response:
            return await self.gate.answer(request, answer)

        return endpoint

    def _admit(self, values: Mapping[str, Any]) -> None:
        """Refuses too many images, before they are decoded."""
        count = sum(len(values[key]) for key in ("images", "support", "query") if isinstance(values.get(key), list))
        files = "images" in values or self.few_shot is None or self.few_shot.reads == "files"
        (self.gate.admit if files else self.gate.admit_features)(count)

    def features(self, values: Mapping[str, Any]) -> Response:
        files = strings("images", values.get("images"))
        try:
            found: list[dict[str, str]] = self._features(files)
        except ValueError:  # which of them?
            found = [self._of_one(file) for file in files]
        return JSONResponse({"images": found})

    def _features(self, files: np.ndarray) -> list[dict[str, str]]:
        vectors = self.model.features_encoded(list(files)).astype("<f4")
        return [{"features": base64.b64encode(vector.tobytes()).decode()} for vector in vectors]

    def _of_one(self, file: bytes) -> dict[str, str]:
        try:
            return self._features(np.array([file], object))[0]
        except ValueError as error:
            return {"error": str(error).removeprefix("The model refuses this: ")}

    def check(self, values: Mapping[str, Any]) -> Response:
        support, labels = _support(values)
        found = self._asked_with().left_out(support, labels)
        rate = lowest_rate(self.model, labels)
        if found is None:
            return JSONResponse({"left_out": None, "lowest_rate": rate})
        rows = [{"label": int(row.argmax()), "probability": float(row.max())} if judged else None
                for row, judged in zip(*found, strict=True)]
        return JSONResponse({"left_out": rows, "lowest_rate": rate})

    def answers(self, values: Mapping[str, Any]) -> Response:
        query = strings("query", values.get("query"))
        if self.model.baked_classes is not None:
            found: Mapping[str, np.ndarray] = self.model.call("classify_encoded", {"image_bytes": query})
        else:
            found = self._asked_with().answer(*_support(values), list(query))
        p_known = found["p_known"].tolist() if "p_known" in found else None
        return JSONResponse({"probabilities": found["probabilities"].tolist(), "p_known": p_known})

    def classifier(self, values: Mapping[str, Any]) -> Response:
        support, labels = _support(values)
        names = values.get("class_names")
        if not isinstance(names, list) or not all(isinstance(each, str) and each for each in names):
            raise BadRequest("class_names must be a list of names, one for each class")
        with tempfile.TemporaryDirectory() as folder:
            model = self._asked_with().export(support, labels, names, pathlib.Path(folder) / self.name)
            packed = _zip_of(model)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{urllib.parse.quote(self.name)}.zip"}
        return Response(packed, media_type="application/zip", headers=headers)

    def _asked_with(self) -> FewShot:
        if self.few_shot is None:
            raise BadRequest(self.problem or "this model has its classes built in")
        return self.few_shot


def _support(values: Mapping[str, Any]) -> tuple[list[bytes], np.ndarray]:
    """The labelled images of a request, and their labels int32 [S]."""
    images, labels = strings("support", values.get("support")), values.get("labels")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(
            type(label) is int and 0 <= label < len(images) for label in labels):
        raise BadRequest(f"labels must be {len(images)} whole numbers from 0, one for each labelled image")
    return list(images), np.array(labels, np.int32)


def _zip_of(folder: pathlib.Path) -> bytes:
    """A folder as a zip that unpacks to it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return packed.getvalue()
