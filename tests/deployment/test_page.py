"""The page in a real browser, Chromium of the distribution: what a person does on it, and what the server goes through.

SCREENSHOTS=folder keeps the pictures of it at 412 and 1,280 pixels there.
"""

import csv
import io
import os
import pathlib
import re
import shutil
import zipfile

import numpy as np
import pytest

from tests.browser import playwright
from tests.deployment.models import file_of, network, served
from tf_unravel import deployment, heads
from tf_unravel.deployment.card import CARD

pytest.importorskip("tf_unravel.deployment.serving.server")  # needs uvicorn and starlette
expect = playwright.expect
expect.set_options(timeout=30_000)

COLOURS = {"red": (205, 45, 40), "green": (40, 160, 70), "blue": (50, 80, 200)}
SHOTS = 7
NAME = re.compile("^Name of class")


def picture(kind, seed=0):
    """A PNG of a class's colour; "checks" are like none of them."""
    rng = np.random.default_rng([seed, *kind.encode()])
    if kind == "checks":
        pixels = np.repeat((np.indices((40, 48)).sum(0) // 8 % 2 * 255)[..., None], 3, 2)
    else:
        pixels = np.array(COLOURS[kind]) + rng.integers(-8, 9, 3) + rng.normal(0, 12, (40, 48, 3))
    return file_of(np.clip(pixels, 0, 255).astype(np.uint8))


def given(name, content, kind="image/png"):
    """A file as the browser takes it."""
    return {"name": name, "mimeType": kind, "buffer": content}


SUPPORT = {name: [picture(name, seed) for seed in range(SHOTS)] for name in COLOURS}
ODD = 'odd, "name".png'
QUERIES = {f"{name} {seed}.png": picture(name, seed) for name in COLOURS for seed in (20, 21)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return deployment.export(network(), heads.Prototypes(), tmp_path_factory.mktemp("models") / "colours")


@pytest.fixture(scope="module")
def address(model):
    with served(model) as address:
        yield address.partition("/v1/")[0]


@pytest.fixture
def opened(chromium):
    """Opens pages; none of them may fail, or ask anybody but its server."""
    faults, contexts = [], []

    def open_at(address, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith((f"{address}/", "blob:"))
                else faults.append(asked.url))
        page.goto(address)
        expect(page.locator("main")).to_be_visible()
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert faults == []


def drop(page, zone, files):
    """Drops files, {name: content}, as a mouse does."""
    made = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name,
                {type: name.endsWith(".txt") ? "text/plain" : "image/png"}));
            return transfer;
        }""", [[name, list(content)] for name, content in files.items()])
    page.locator(zone).dispatch_event("drop", {"dataTransfer": made})


def taught(page, support=SUPPORT):
    """Names classes and drops their images."""
    for place, (name, files) in enumerate(support.items()):
        if place >= page.locator(".class").count():
            page.get_by_role("button", name="Add a class").click()
        card = page.locator(".class").nth(place)
        card.get_by_label(NAME).fill(name)
        card.locator("input[type=file]").set_input_files([given(f"{name} {i}.png", f) for i, f in enumerate(files)])


def ask(page, files):
    page.get_by_label("Images to recognise").locator("input[type=file]").set_input_files(
        [given(name, content) for name, content in files.items()])


def verdicts(page, count):
    """{file: what is answered}, once all have a current answer."""
    expect(page.locator(".answer:not(.stale) .bars:not(:empty)")).to_have_count(count)
    return dict(page.locator(".answer").evaluate_all(
        "(cards) => cards.map((card) => ['.file', '.verdict'].map((part) => card.querySelector(part).textContent))"))


def in_python(model, files, support=SUPPORT):
    """Probabilities [Q, W] and p_known [Q] by the exported model itself."""
    known = [each for of_class in support.values() for each in of_class]
    labels = np.repeat(np.arange(len(support)), [len(each) for each in support.values()]).astype(np.int32)
    said = deployment.Model(model).call("classify_encoded", {
        "support_bytes": np.array(known, object), "support_labels": labels, "query_bytes": np.array(files, object)})
    return said["probabilities"], said["p_known"]


def screenshot(page, name, tmp_path):
    folder = pathlib.Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True, animations="disabled")


def test_three_classes_and_something_else(opened, address, model, tmp_path):
    page = opened(address)
    taught(page)
    drop(page, "#ask", {**QUERIES, "checks.png": picture("checks")})
    said = verdicts(page, 7)
    probabilities, p_known = in_python(model, [*QUERIES.values(), picture("checks")])
    assert p_known[-1] < 0.05 < p_known[:-1].min()  # what the model says of these
    assert said.pop("checks.png") == "unknown"
    for (file, verdict), row in zip(said.items(), probabilities, strict=False):
        assert re.fullmatch(rf"{file.split()[0]} (> )?\d+\s%", verdict), (file, verdict)
        card = page.locator(".answer", has_text=file)
        shown = {item.locator(".label").inner_text(): item.locator(".fill").evaluate(
            "(fill) => fill.getBoundingClientRect().width / fill.parentElement.getBoundingClientRect().width")
            for item in card.locator(".bars li").all()}
        assert [shown[name] for name in COLOURS] == pytest.approx(row.tolist(), abs=0.02)
        assert set(card.locator("figcaption").all_inner_texts()) == {file.split()[0]}  # the nearest labelled images
    expect(page.locator("#check-line")).to_have_text(re.compile(r"21 of 21 labelled images \(100\s%\)"))
    expect(page.locator("#said")).to_have_text("7 images answered, 1 of them unknown.")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in (1280, 412):
            page.set_viewport_size({"width": width, "height": 900})
            screenshot(page, f"page_{width}_{scheme}", tmp_path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_labelled_image_that_looks_wrong(opened, address):
    page = opened(address)
    taught(page, {**SUPPORT, "red": [*SUPPORT["red"], picture("blue", 30)]})
    suspect = page.locator("#suspects li")
    expect(suspect).to_have_count(1)
    expect(suspect).to_have_text(re.compile("red 7.png in red looks like blue"))
    suspect.get_by_role("button", name="Move to blue").click()
    expect(page.locator("#check-line")).to_have_text(re.compile("22 of 22"))
    expect(suspect).to_have_count(0)
    expect(page.locator(".class").nth(2).locator(".count")).to_have_text("8 images")


def test_files_that_are_no_images_are_one_line_each(opened, address):
    page = opened(address)
    taught(page)
    good = picture("red", 40)
    crc = bytearray(good)
    crc[-30] ^= 0xFF  # damaged in the middle of its pixels
    drop(page, "#ask", {"notes.txt": b"eggs, milk", "cut.png": good[: len(good) // 2], "broken.png": bytes(crc),
                        "good.png": good})
    assert set(verdicts(page, 1)) == {"good.png"}
    lines = page.locator("#problems p span")
    expect(lines).to_have_count(3)
    assert lines.all_inner_texts()[0] == "notes.txt is not an image; it was left out."
    for name, line in zip(("cut.png", "broken.png"), lines.all_inner_texts()[1:], strict=True):
        assert re.fullmatch(rf"{name} (is damaged, or no image|cannot be used: .*damaged).*; it was left out\.", line)


@pytest.fixture(scope="module")
def downloaded(chromium, address, tmp_path_factory):
    """(the rows of the CSV, the folder of the classifier) of QUERIES and an image of no class."""
    folder = tmp_path_factory.mktemp("downloaded")
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(address)
        taught(page)
        ask(page, {**QUERIES, ODD: picture("checks")})
        verdicts(page, 7)
        with page.expect_download() as download:
            page.get_by_role("button", name="Answers as CSV").click()
        text = pathlib.Path(download.value.path()).read_text("utf-8-sig")
        with page.expect_download() as download:
            page.get_by_role("button", name="Classifier as zip").click()
        assert download.value.suggested_filename == "colours.zip"
        zipfile.ZipFile(download.value.path()).extractall(folder)
    return list(csv.DictReader(io.StringIO(text, newline=""))), folder / "colours"


def test_csv_and_a_classifier_that_answers_as_the_page(downloaded):
    rows, folder = downloaded
    assert [row["file"] for row in rows] == [*QUERIES, ODD]
    assert [row["class"] for row in rows] == [*(name.split()[0] for name in QUERIES), "unknown"]
    classifier = deployment.Model(folder)
    assert classifier.baked_classes == tuple(COLOURS) and classifier.card["support_per_class"] == [SHOTS] * 3
    files = np.array([*QUERIES.values(), picture("checks")], object)
    said = classifier.call("classify_encoded", {"image_bytes": files})
    shown = [[float(row[name]) for name in COLOURS] for row in rows]
    np.testing.assert_allclose(shown, said["probabilities"], atol=2e-6)
    first, second = np.sort(said["probabilities"], axis=1)[:, ::-1].T[:2]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], first, atol=2e-6)
    np.testing.assert_allclose([float(row["margin"]) for row in rows], first - second, atol=4e-6)
    np.testing.assert_allclose([float(row["p_known"]) for row in rows], said["p_known"], atol=2e-6)


def test_a_model_with_its_classes_built_in(opened, downloaded):
    with served(downloaded[1]) as address:
        page = opened(address.partition("/v1/")[0])
        expect(page.locator("#teach-lead")).to_have_text("This model has its classes built in: red, green, blue.")
        ask(page, QUERIES)
        drop(page, "#take", {"checks.png": picture("checks")})  # there is no other use for it
        said = verdicts(page, 7)
        assert said.pop("checks.png") == "unknown"
        assert all(verdict.startswith(file.split()[0]) for file, verdict in said.items())
        expect(page.locator("#zip")).to_be_hidden()
        expect(page.locator("#csv")).to_be_enabled()


def test_two_hundred_at_once_and_a_photograph_of_sixty_megapixels(opened, address):
    page = opened(address)
    taught(page)
    huge = np.full((6000, 10_000, 3), COLOURS["green"], np.uint8)
    sent = []
    page.on("request", lambda asked: sent.append(int(asked.headers.get("content-length") or 0)))
    names = [list(COLOURS)[i % 3] for i in range(200)]
    files = [given(f"{name} {i}.png", picture(name, 100 + i)) for i, name in enumerate(names)]
    page.get_by_label("Say unknown").select_option("never")  # 5 % of these would be
    photograph = given("green huge.jpg", file_of(huge, "JPEG"), "image/jpeg")
    page.get_by_label("Images to recognise").locator("input[type=file]").set_input_files([photograph, *files])
    said = verdicts(page, 201)
    assert {file: verdict for file, verdict in said.items() if not verdict.startswith(file.split()[0])} == {}
    expect(page.locator("#problems p")).to_have_count(0)
    assert max(sent) < 1 << 24


def test_the_server_goes_and_comes_back(opened, model, tmp_path):
    with served(model) as address:
        port = int(address.split(":")[2].split("/")[0])
        page = opened(address.partition("/v1/")[0])
        taught(page)
        ask(page, {"red 50.png": picture("red", 50)})
        before = verdicts(page, 1)
    ask(page, {"blue 51.png": picture("blue", 51)})
    expect(page.locator("#notice")).to_have_text(re.compile("The server does not answer. All images are still here"))
    assert page.locator(".answer .verdict").first.inner_text() == before["red 50.png"]
    with served(model, port):
        after = verdicts(page, 2)
        expect(page.locator("#notice")).to_be_hidden()
    assert after["red 50.png"] == before["red 50.png"] and after["blue 51.png"].startswith("blue")
    other = shutil.copytree(model, tmp_path / "other")
    (other / CARD).write_text((other / CARD).read_text("utf-8").replace('"note": "', '"note": "Another. '), "utf-8")
    with served(other, port):  # whose features may be others: the page asks for all of them again
        ask(page, {"green 52.png": picture("green", 52)})
        assert verdicts(page, 3)["green 52.png"].startswith("green")
        expect(page.locator("#model")).to_have_text(re.compile("other: "))


def test_more_labelled_images_than_a_request_takes(opened, model):
    with served(model, max_bytes=4000) as address:
        page = opened(address.partition("/v1/")[0])
        taught(page, {name: files * 4 for name, files in SUPPORT.items()})
        expect(page.locator("#check-line")).to_have_text(re.compile("more than the server takes.*larger --max_mib"))
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Remove red", exact=True).click()
        expect(page.locator("#check-line")).to_have_text(re.compile("56 of 56"))


def test_two_browsers_at_a_time(opened, address):
    first, second = opened(address), opened(address, viewport={"width": 412, "height": 900})
    taught(first)
    taught(second, {"cold": SUPPORT["blue"], "warm": SUPPORT["red"]})
    for page in (first, second):
        ask(page, {"blue 60.png": picture("blue", 60)})
    assert verdicts(first, 1)["blue 60.png"].startswith("blue")
    assert verdicts(second, 1)["blue 60.png"].startswith("cold")


def test_by_keyboard_and_by_camera(opened, address):
    page = opened(address, permissions=["camera"])
    page.get_by_role("button", name="Add a class").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".class").nth(2).get_by_label(NAME)).to_be_focused()
    page.keyboard.type("unknown")
    expect(page.locator(".name-problem").nth(2)).to_have_text(re.compile("choose another name"))
    page.keyboard.press("Tab")
    expect(page.get_by_label("Images of unknown")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.locator("video")).to_have_js_property("videoWidth", 640)
    page.get_by_role("button", name="Take a picture").press("Enter")
    page.get_by_role("button", name="Done").press("Enter")
    card = page.locator(".class").nth(2)
    expect(card.locator(".count")).to_have_text("1 image")
    card.get_by_role("button", name="Remove camera 1.jpg").press("Enter")
    expect(card.locator(".count")).to_have_text("0 images")
    expect(card.get_by_label(NAME)).to_be_focused()  # not lost with what was removed


def until(page, holds):
    """Waits for what is not seen on the page; `wait_for_function` would need eval, which its policy forbids."""
    for _ in range(1500):
        if page.evaluate(holds) if isinstance(holds, str) else holds():
            return
        page.wait_for_timeout(20)
    raise AssertionError(holds)


def held_back(page, path):
    """The next request to a path once it is sent, in a list; it reaches the server when somebody lets it."""
    routes = []
    page.route(f"**/page/{path}", lambda asked: routes.append(asked), times=1)
    return routes


def test_downloads_wait_for_what_is_under_way(opened, address):
    page = opened(address)
    taught(page)
    ask(page, QUERIES)
    verdicts(page, 6)
    table, classifier = (page.get_by_role("button", name=name) for name in ("Answers as CSV", "Classifier as zip"))
    reason = page.locator("#take-wait")
    expect(reason).to_be_empty()
    page.evaluate("""() => {
        const real = createImageBitmap, gate = new Promise((go) => { window.release = go; });
        window.createImageBitmap = async (file) => { await gate; return real(file); };
    }""")
    answers = held_back(page, "answers")
    ask(page, {"red 70.png": picture("red", 70)})
    for let in (lambda: page.evaluate("release()"), lambda: answers[0].continue_()):
        expect(reason).to_have_text("Downloads come once every image is read and answered.")
        expect(table).to_be_disabled()
        expect(classifier).to_be_disabled()
        let()
        until(page, lambda: answers)
    verdicts(page, 7)
    expect(table).to_be_enabled()
    made = held_back(page, "classifier")
    classifier.press("Enter")
    expect(reason).to_have_text("The classifier is being made …")
    expect(classifier).to_be_disabled()
    expect(table).to_be_enabled()
    until(page, lambda: made)
    with page.expect_download():
        made[0].continue_()
    expect(classifier).to_be_focused()


def test_a_refusal_of_earlier_labelled_images_says_nothing_of_these(opened, address):
    page = opened(address)
    taught(page)
    expect(page.locator("#check-line")).to_have_text(re.compile("21 of 21"))
    checks = held_back(page, "check")
    page.get_by_role("button", name="Remove red 0.png", exact=True).click()
    until(page, lambda: checks)
    page.get_by_role("button", name="Remove red 1.png", exact=True).click()
    expect(page.locator(".class").first.locator(".count")).to_have_text("5 images")
    checks[0].fulfill(status=400, json={"error": "too late"})
    expect(page.locator("#check-line")).to_have_text(re.compile("19 of 19"))


def test_an_image_that_is_removed_while_it_is_sent(opened, tmp_path):
    """Of a head that reads files, which takes the page a moment: nothing is left to ask about then."""
    head = heads.FineTune(steps=2, learning_rate=0.05)
    with served(deployment.export(network(), head, tmp_path / "adapting")) as address:
        page = opened(address.partition("/v1/")[0])
        bodies = []
        page.on("request", lambda asked: bodies.append(asked.post_data_json) if "answers" in asked.url else None)
        taught(page, {name: files[:2] for name, files in SUPPORT.items()})
        ask(page, {"red 71.png": picture("red", 71)})
        verdicts(page, 1)
        page.evaluate("""() => {
            const real = FileReader.prototype.readAsDataURL;
            window.waiting = [];
            FileReader.prototype.readAsDataURL = function (blob) { waiting.push(() => real.call(this, blob)); };
            window.release = () => waiting.splice(0).forEach((go) => go());
        }""")
        page.get_by_role("button", name="Remove red 0.png", exact=True).click()
        until(page, "waiting.length === 5")
        with page.expect_response("**/page/check"):
            page.evaluate("release()")  # for the check; then for the answers
        until(page, "waiting.length === 5")
        page.get_by_role("button", name="Remove red 71.png").click()
        page.evaluate("() => { release(); setInterval(release, 20); }")
        ask(page, {"blue 72.png": picture("blue", 72)})
        assert list(verdicts(page, 1)) == ["blue 72.png"]
        assert all(body["query"] for body in bodies)
        expect(page.locator("#check-line")).to_have_text("This head adapts the network, and labelled images are not "
                                                         "checked.")


def test_files_dropped_beside_every_zone(opened, address):
    page = opened(address)
    lines = page.locator("#problems p span")
    for place in ("header", "#teach .lead", "#take"):
        drop(page, place, QUERIES)
        expect(lines).to_have_text(["Not taken: 6 files. Drop images on a class, or on “Images to recognise”."])
        page.get_by_role("button", name="Close this message").press("Enter")
        expect(page.locator("#teach-title")).to_be_focused()
    drop(page, ".class >> nth=0", {})
    drop(page, "#ask", {"red 73.png": picture("red", 73)})
    expect(page.locator(".answer")).to_have_count(1)
    expect(lines).to_have_count(0)


def test_folders_become_classes(opened, address):
    page = opened(address)
    page.locator(".class").first.get_by_label(NAME).fill("red")
    page.locator("#teach .lead").evaluate("""(zone, folders) => {
        const file = (folder, bytes, i) => ({isFile: true, name: `${i}.png`, fullPath: `/images/${folder}/${i}.png`,
            file: (resolve) => resolve(new File([new Uint8Array(bytes)], `${i}.png`, {type: "image/png"}))});
        const inside = ([name, files]) => {
            const lists = [files.map((bytes, i) => file(name, bytes, i)), []];
            return {name, createReader: () => ({readEntries: (resolve) => resolve(lists.shift())})};
        };
        const items = Object.entries(folders).map(inside).map((entry) => ({webkitGetAsEntry: () => entry}));
        const event = new Event("drop", {bubbles: true, cancelable: true});
        event.dataTransfer = {types: ["Files"], items, files: []};
        zone.dispatchEvent(event);
    }""", {name: [list(content) for content in files] for name, files in SUPPORT.items()})
    expect(page.locator(".count")).to_have_text([f"{SHOTS} images"] * 3)
    assert [name.input_value() for name in page.get_by_label(NAME).all()] == list(SUPPORT)
    ask(page, {"blue 75.png": picture("blue", 75)})
    assert verdicts(page, 1)["blue 75.png"].startswith("blue")


def test_unknown_stays_while_it_is_asked_again(opened, address):
    """With more labelled images a lower rate can be told: the old answer is still one of the old images."""
    page = opened(address)
    few = {name: files[:2] for name, files in SUPPORT.items()}
    taught(page, few)
    page.get_by_label("Say unknown").select_option("often")
    ask(page, {"checks.png": picture("checks")})
    assert verdicts(page, 1) == {"checks.png": "unknown"}
    waiting = held_back(page, "answers")
    page.locator(".class").first.locator("input[type=file]").set_input_files(
        [given(f"more {i}.png", file) for i, file in enumerate(SUPPORT["red"][2:])])
    until(page, lambda: waiting)
    expect(page.locator("#check-line")).to_have_text(re.compile(r"of ([7-9]|1\d) "))  # drawn since
    expect(page.locator(".answer.stale .verdict")).to_have_text("unknown")
    waiting[0].continue_()
    assert verdicts(page, 1) == {"checks.png": "unknown"}


def test_an_answer_that_is_wrong_is_put_right_where_it_stands(opened, address):
    page = opened(address)
    taught(page)
    ask(page, QUERIES)
    verdicts(page, 6)
    page.get_by_label("Class of red 20.png").select_option("blue")
    expect(page.locator(".class").nth(2).locator(".count")).to_have_text(f"{SHOTS + 1} images")
    assert len(verdicts(page, 5)) == 5
    expect(page.locator("#suspects li")).to_have_text(re.compile("red 20.png in blue looks like red"))


def test_a_class_is_removed_after_a_question(opened, address):
    page = opened(address)
    taught(page)
    expect(page.locator(".count")).to_have_text([f"{SHOTS} images"] * 3)  # all of them have been read
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.get_by_role("button", name="Remove blue", exact=True).click()
    expect(page.locator(".class")).to_have_count(3)
    assert asked == [f"Remove blue and its {SHOTS} images?"]
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove blue", exact=True).click()
    expect(page.locator(".class")).to_have_count(2)


def test_what_cannot_be_read_of_a_drop_keeps_nothing_else_from_it(opened, address):
    found = opened(address).evaluate("""async () => {
        const {droppedFiles} = await import("/page/pictures.js"), said = [];
        const file = (name, take) => ({isFile: true, name, fullPath: `/folder/${name}`, file: take});
        const good = file("good.png", (resolve) => resolve(new File([], "good.png")));
        const bad = file("bad.png", (_, reject) => reject(new DOMException("gone", "NotFoundError")));
        const lists = [[bad, good], []];
        const folder = {name: "folder", createReader: () => ({readEntries: (resolve) => resolve(lists.shift())})};
        const items = [folder, good].map((entry) => ({webkitGetAsEntry: () => entry}));
        const files = await droppedFiles({items, files: []}, (line) => said.push(line));
        return [files.map(({file, folder}) => [file.name, folder]), said];
    }""")
    assert found == [[["good.png", "folder"]] * 2, ["bad.png cannot be read; it was left out."]]


def test_the_focus_goes_on_to_the_next_doubt(opened, address):
    page = opened(address)
    taught(page, {**SUPPORT, "red": [*SUPPORT["red"], picture("blue", 30), picture("blue", 31)]})
    suspects = page.locator("#suspects li")
    expect(suspects).to_have_count(2)
    expect(page.locator("#check-line")).to_have_text(re.compile("21 of 23"))
    first = suspects.first.locator("span").first.text_content()
    suspects.first.get_by_role("button", name="Move to blue").press("Enter")
    expect(suspects).to_have_count(1)
    expect(page.locator("#check-line")).to_have_text(re.compile("22 of 23"))
    assert suspects.first.locator("span").first.text_content() != first
    expect(suspects.get_by_role("button", name="Move to blue")).to_be_focused()
    page.keyboard.press("Tab")  # to "Remove"
    page.keyboard.press("Enter")
    expect(page.locator("#check-line")).to_have_text(re.compile("22 of 22"))
    expect(page.locator("#check-line")).to_be_focused()


def test_what_stays_in_a_list_keeps_the_focus(opened, address):
    found = opened(address).evaluate("""async () => {
        const {keyed, element} = await import("/page/view.js"), said = [];
        const list = element("ul"), home = element("button"), section = element("section", {}, home, list);
        document.body.append(section);
        const make = ({id}) => element("li", {}, element("button", {textContent: id}));
        const draw = (...ids) => {
            keyed(list, ids.map((id) => ({id})), make, () => {});
            said.push(document.activeElement === home ? "home" : document.activeElement.textContent);
        };
        draw(1, 2, 3, 4);
        list.lastElementChild.firstElementChild.focus();
        draw(2, 3, 4);
        draw(4, 2, 3);
        draw(2, 3);
        draw(3);
        draw();
        section.remove();
        return said.slice(1);
    }""")
    assert found == ["4", "4", "2", "3", "home"]


def test_the_camera_is_off_once_its_dialog_is_closed(opened, address):
    page = opened(address, permissions=["camera"])
    page.evaluate("""() => {
        const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        window.waiting = [];
        window.tracks = [];
        navigator.mediaDevices.getUserMedia = async (asked) => {
            await new Promise((resolve) => waiting.push(resolve)); // for the permission
            const stream = await real(asked);
            tracks.push(...stream.getTracks());
            return stream;
        };
    }""")
    camera, done = page.get_by_role("button", name="Camera for class 1"), page.get_by_role("button", name="Done")
    for _ in range(2):
        camera.click()
        done.click()
    camera.click()
    page.evaluate("waiting.forEach((go) => go())")
    expect(page.locator("video")).to_have_js_property("videoWidth", 640)
    until(page, "tracks.length === 3 && tracks.filter((each) => each.readyState === 'live').length === 1")
    done.click()
    until(page, "tracks.every((each) => each.readyState === 'ended')")


def test_a_table_computes_nothing(opened, address):
    page = opened(address)
    taught(page, {"@red": SUPPORT["red"], "blue": SUPPORT["blue"]})
    page.get_by_label("Say unknown").select_option("never")  # which some images of a class are called too
    names = ["=1+1.png", "+1.png", "-1.png", "1=1.png"]
    ask(page, {name: picture("red", 80 + i) for i, name in enumerate(names)})
    verdicts(page, 4)
    with page.expect_download() as download:
        page.get_by_role("button", name="Answers as CSV").click()
    content = pathlib.Path(download.value.path()).read_bytes()
    assert content.startswith("\ufefffile,".encode())  # by which Excel knows UTF-8
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert [row["file"] for row in rows] == ["'=1+1.png", "'+1.png", "'-1.png", "1=1.png"]
    assert {row["class"] for row in rows} == {"'@red"}
    assert all(float(row["'@red"]) == float(row["probability"]) > 0.5 for row in rows)


def test_no_image_stays_in_memory_that_left_the_page(opened, address):
    page = opened(address)
    page.evaluate("""() => {
        window.live = new Set();
        const {createObjectURL, revokeObjectURL} = URL;
        URL.createObjectURL = (blob) => { const url = createObjectURL(blob); live.add(url); return url; };
        URL.revokeObjectURL = (url) => { live.delete(url); revokeObjectURL(url); };
    }""")
    taught(page)
    ask(page, QUERIES)
    verdicts(page, 6)
    assert page.evaluate("live.size") == 3 * SHOTS + 6
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove blue", exact=True).click()
    page.get_by_role("button", name="Remove red 20.png").click()
    verdicts(page, 5)
    page.get_by_role("button", name="Remove green", exact=True).click()  # no answers without: the last ones stay
    expect(page.locator(".answer.stale .label", has_text="a class that is gone")).to_have_count(5)
    assert page.evaluate("live.size") == SHOTS + 5
    page.route("**/page/features", lambda asked: asked.fulfill(json={"images": [{"error": "eggs"}]}))
    ask(page, {"eggs.png": picture("red", 90)})
    expect(page.locator("#problems p span")).to_have_text("eggs.png cannot be used: eggs; it was left out.")
    assert page.evaluate("live.size") == SHOTS + 5
    shown = "(all) => all.filter(({complete, naturalWidth}) => complete && !naturalWidth).length"
    assert page.locator("img").evaluate_all(shown) == 0  # of those that are revoked


def test_what_a_proxy_refuses_is_named_and_kept(opened, address):
    page = opened(address)
    taught(page)
    expect(page.locator("#check-line")).to_have_text(re.compile("21 of 21"))
    files = {f"red {i}.png": picture("red", i) for i in range(200, 220)}
    page.route("**/page/features", lambda asked: asked.fulfill(status=403, body="<html>Forbidden</html>"))
    ask(page, files)
    expect(page.locator("#held-line")).to_have_text(
        f"Not sent (the server answered 403), and kept here: {', '.join([*files][:16])} and 4 more.")
    expect(page.locator(".verdict", has_text="not sent")).to_have_count(20)
    expect(page.locator("#progress")).to_be_empty()
    expect(page.locator("#problems p")).to_have_count(0)
    page.unroute("**/page/features")
    page.get_by_role("button", name="Try again").press("Enter")
    assert list(verdicts(page, 20)) == [*files]
    expect(page.locator("#held")).to_be_hidden()
    expect(page.locator("#progress")).to_be_focused()


def test_a_proxy_that_takes_less_is_sent_less(opened, address):
    page, sizes = opened(address), []

    def limited(asked):
        sizes.append(len(asked.request.post_data_json["images"]))
        if sizes[-1] > 3:
            asked.fulfill(status=413, body="<html>Request Entity Too Large</html>")
        else:
            asked.continue_()

    page.route("**/page/features", limited)
    first = held_back(page, "features")
    taught(page)
    ask(page, QUERIES)
    expect(page.locator(".answer")).to_have_count(6)
    expect(page.locator(".count")).to_have_text([f"{SHOTS} images"] * 3)  # all of them wait to be sent
    first[0].continue_()
    verdicts(page, 6)
    assert max(sizes) > 3 and sizes[-1] <= 3
    expect(page.locator("#held")).to_be_hidden()


def test_answers_are_asked_for_again_when_an_image_is_added(opened, downloaded):
    """Of a model with its classes built in nothing else changes what was refused."""
    with served(downloaded[1]) as address:
        page = opened(address.partition("/v1/")[0])
        page.route("**/page/answers", lambda asked: asked.fulfill(status=403, body="Forbidden"))
        ask(page, QUERIES)
        expect(page.locator("#problems p span")).to_have_text("the server answered 403")
        page.unroute("**/page/answers")
        ask(page, {"red 74.png": picture("red", 74)})
        verdicts(page, 7)
