"""The benchmark: its clockwork on clocks that are known, its peers against our own code, every part at tiny sizes."""

import contextlib
import http.server
import itertools
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tf_unravel import backbones, export, heads
from tf_unravel.data.storage.decoding import Decoding, decode
from tf_unravel.reproduction import benchmark
from tf_unravel.reproduction.benchmark import (
    child,
    machine,
    many_images,
    many_images_process,
    peers,
    photographs,
    published,
    sampling,
    serving_load,
    tasks,
)
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target, table
from tf_unravel.reproduction.benchmark.timing import Work, interleaved, ratios, summary


class Clock:
    """Stands still except when somebody works."""

    def __init__(self):
        self.now, self.log = 100.0, []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds) -> Work:
        durations = itertools.cycle(seconds)

        def run():
            self.now += next(durations)
            self.log.append(name)

        return Work(run, amount=6)


def test_works_take_turns_in_reverse_order_every_second_round():
    clock = Clock()
    works = {"a": clock.work("a", [2.0]), "b": clock.work("b", [3.0])}
    rates = interleaved(works, rounds=3, warm_up=1, clock=clock)
    assert clock.log == ["a", "b", *"ab", *"ba", *"ab"]
    assert rates == {"a": (3.0, 3.0, 3.0), "b": (2.0, 2.0, 2.0)}


def test_ratios_are_taken_round_by_round():
    clock = Clock()
    # A machine that gets ever slower: b takes a third more than a of the same round, which no other pairing shows.
    works = {"a": clock.work("a", [3.0, 6.0, 9.0]), "b": clock.work("b", [4.0, 8.0, 12.0])}
    rates = interleaved(works, rounds=3, warm_up=0, clock=clock)
    assert rates["a"] == (2.0, 1.0, 6 / 9)
    np.testing.assert_allclose(ratios(rates["a"], rates["b"]), 4 / 3)


def test_warm_up_is_not_timed():
    clock = Clock()
    rates = interleaved({"a": clock.work("a", [50.0, 50.0, 1.0, 2.0])}, rounds=2, warm_up=2, clock=clock)
    assert rates["a"] == (6.0, 3.0)


def test_ratios_to_a_constant_and_rounds_that_do_not_pair_up():
    assert ratios((2.0, 3.0), (4.0,)) == (0.5, 0.75)
    with pytest.raises(ValueError, match="Received: 3 of ours, 2"):
        ratios((1.0, 1.0, 1.0), (1.0, 1.0))


def test_summary_and_its_interval():
    assert summary([5.0]) == summary((5.0,)) and summary([5.0]).interval == (5.0, 5.0)
    few = summary([4.0, 1.0, 3.0])
    assert (few.median, few.low, few.high, few.interval) == (3.0, 1.0, 4.0, (1.0, 4.0))
    many = summary(range(1, 42))  # n/2 - 0.98 sqrt(n) = 14.2
    assert (many.median, many.interval) == (21, (14, 28))


def test_interval_of_the_median_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [summary(row).interval for row in rng.exponential(size=(2000, 41))]
    covered = np.mean([low <= np.log(2) <= high for low, high in intervals])
    assert 0.94 < covered < 0.985


@pytest.mark.parametrize(
    ("target", "ours", "peer", "met"),
    [
        (Target(2.0), (8.0, 2.0, 4.0), (2.0, 2.0, 2.0), True),
        (Target(2.0), (3.9,), (2.0,), False),
        (Target(1.01, at_least=False), (1.02,), (1.0,), False),
        (Target(1.01, at_least=False), (1.005,), (1.0,), True),
        (Target(15.0, at_least=False, of_ratio=False), (14.0, 15.0, 99.0), (), True),
        (Target(15.0, at_least=False, of_ratio=False), (15.1,), (1.0,), False),
        (Target(2.0), (8.0,), (), None),
        (None, (8.0,), (1.0,), None),
    ],
)
def test_whether_a_target_is_met(target, ours, peer, met):
    measurement = Measurement("x", "tasks/s", ours, peer, "somebody", target)
    assert measurement.met is met and measurement.as_json()["met"] is met
    assert table([measurement]).splitlines()[1].endswith({True: "yes", False: "NO", None: "-"}[met])


def test_table_shows_medians_of_ratios_and_numbers_each_note_once():
    lines = table([
        Measurement("a", "images/s", (1200.0, 600.0), (1000.0, 1000.0), "PyTorch", Target(1.0), "one"),
        Measurement("b", "s", (3.25,), target=Target(15.0, at_least=False, of_ratio=False), note="two"),
        Measurement("c", "tasks/s", (5000.0,), (2.0,), "who", Target(10.0), "one"),
    ]).splitlines()
    assert lines[1].split() == "a [1] 900 images/s 1,000 (PyTorch) 0.900 (0.600-1.200) >= 1 NO".split()
    assert lines[2].split() == "b [2] 3.25 s - - <= 15 s yes".split()
    assert lines[3].split() == "c [1] 5,000 tasks/s 2 (who) 2500.0 (2500.0-2500.0) >= 10 yes".split()
    assert lines[4:] == ["[1] one", "[2] two"]


def test_a_busy_machine_is_said_to_be_busy():
    facts = machine.facts(64)
    assert facts["matrix_gflops"] > 0 and facts["cores"] >= 1 and facts["versions"]["tensorflow"] == tf.__version__
    json.dumps(facts)
    assert "BUSY" not in machine.describe({**facts, "cores": 2, "load_1_minute": 0.9})
    assert "BUSY: load average 1.1" in machine.describe({**facts, "cores": 2, "load_1_minute": 1.1})
    assert "BUSY" not in machine.describe({**facts, "load_1_minute": None})


def test_unknown_part_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="--only takes step, .*Received: speed"):
        benchmark.run(["step", "speed"], tmp_path / "b.json")
    assert not list(tmp_path.iterdir())


def test_a_model_for_a_part_that_takes_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="for the part decoding.* Received: --only=step"):
        benchmark.run(["step"], tmp_path / "b.json", model="model")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_peak_memory_is_that_of_the_process_alone():
    """Not of the one that starts it, which here holds more than such a small process ever will."""
    ballast = np.ones(3 << 27)  # 3 GiB
    code = "from tf_unravel.reproduction.benchmark.many_tasks_process import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], env=child.environment(), capture_output=True, text=True)
    assert 1 << 27 < int(done.stdout.splitlines()[-1]) < ballast.nbytes / 2


def test_watched_memory_is_that_of_arrays_and_of_children_and_not_of_mapped_files(tmp_path):
    if many_images_process.anonymous_bytes() is None:
        pytest.skip("no /proc")
    size = 1 << 28
    mapped = np.lib.format.open_memmap(tmp_path / "mapped.npy", "w+", np.uint8, (size,))
    before = many_images_process.anonymous_bytes()
    with many_images_process.watched() as of_file:
        mapped[:] = 1
    with many_images_process.watched() as of_array:
        held = np.ones(size, np.uint8)
        time.sleep(0.3)
        del held
    with many_images_process.watched() as of_child:
        code = f"import time; held = bytearray(b'1') * {size}; time.sleep(1)"
        subprocess.run([sys.executable, "-c", code], check=True)
    assert of_file.largest - before < size / 4 < size * 0.9 < of_child.largest - before
    assert size * 0.9 < of_array.largest - before < size * 1.2


def test_written_images_differ_by_their_bytes_alone(tmp_path):
    many_images.write_images(tmp_path, 7, 3, 16)
    files = sorted(tmp_path.glob("*/*.jpg"))
    assert [str(file.relative_to(tmp_path)) for file in files][:3] == [
        "0000/0000000.jpg", "0000/0000003.jpg", "0000/0000006.jpg"]
    assert len({file.read_bytes() for file in files}) == 7
    assert len({decode(file.read_bytes(), Decoding())[0].tobytes() for file in files}) == 3


def test_a_failing_process_is_named():
    with pytest.raises(ChildProcessError, match="python -m tf_unravel.nothing failed with status 1: .*No module named"):
        list(child.stream_module("tf_unravel.nothing"))
    with pytest.raises(ChildProcessError, match="python -m tf_unravel.nothing failed with status 1: .*No module named"):
        child.run_module("tf_unravel.nothing")


@contextlib.contextmanager
def answering(statuses, seconds=0.0):
    """A server whose answers have these statuses, one after the other; its address."""
    following = itertools.cycle(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            self.send_response(next(following))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/models/none"
        server.shutdown()


def test_a_load_is_timed_by_rounds():
    with answering([200], seconds=0.05) as address:
        found = serving_load.outcome(address, {"one": ("{}", 1), "two": ("{}", 2)}, 0.5, rounds=2)
    for load, connections in (("one", 1), ("two", 2)):
        assert len(found[load]) == 2
        for each in found[load]:
            assert 50 <= each["p50"] <= each["p99"]
            assert 1 < each["requests_per_second"] <= 20 * connections
            assert each["requests"] <= 11 * connections


def test_a_refused_request_ends_the_load():
    with answering([200, 200, 503]) as address, pytest.raises(
        ConnectionError, match="few: 1 of 3 requests failed, the first with: status 503, {}"
    ):
        serving_load.outcome(address, {"few": ("{}", 1)}, 5.0, rounds=1)


EXPECTED = {  # what a part must have measured: beginnings of its lines
    "step": ["classical step, conv4, 16x16, batch 8", "end to end with loading and augmentation, conv4",
             "classical step, r2d2", "end to end with loading and augmentation, r2d2"],
    "regularizers": ["step with R_FC, conv4", "R_FC alone", "step with R_FC by pairs, conv4", "R_FC by pairs alone",
                     "step with R_HV, conv4", "R_HV alone"],
    "evaluation": ["40 tasks, prototypes, 1-shot, D=12", "40 tasks, prototypes", "40 tasks, ridge", "40 tasks, svm",
                   "10 tasks under all three heads"],
    "many_tasks": ["20 tasks under each of 1 heads", "20 tasks under each of 1 heads at 1 and 5 shots"],
    "many_classes": [f"3 classes x 4 images, D=12, {head}, {what}"
                     for head, peers in (("ridge", 0), ("svm", 1), ("linear", 2))
                     for what in (*["solved"] * max(1, peers), "one query", "peak memory")],
    "sampling": ["episodes of 8x8 images, one at a time", "episodes of 8x8 images, one at a time",
                 "episodes of 8x8 images, in batches of 16", "episodes of 8x8 images, in batches of 16"],
    "meta": [
        *["MAML meta-step, second order, 16x16, 1-shot"] * 2, *["MAML meta-step, first order, 16x16, 1-shot"] * 2,
        "Reptile meta-step, 16x16", "Reptile meta-step, 16x16, with weight clustering", "fine-tuning, 3 steps",
        "100,000 tasks",
    ],
    "episodic": ["episodic step, r2d2, 16x16, prototypes", "prototypes alone", "episodic step, r2d2, 16x16, ridge",
                 "ridge alone", "episodic step, r2d2, 16x16, svm", "svm alone"],
    "memory": ["MAML second order, 16x16, 1-shot, 2 tasks: peak", "MAML second order, 16x16, 1-shot, 2 tasks, remat",
               "MAML second order, 16x16, 1-shot, 2 tasks, rematerialized"],
    "start": ["`tf-unravel train` to its first step"] * 2,
    "serving": [*[f"3-way 2-shot, 1 query, 16x16, 2 connections, {kind}"
                  for kind in ("pixel lists", "JPEG of 16x16", "JPEG of 60x40") for _ in range(3)],
                *["20 classes x 2 built in"] * 3, "calibrated answer, ridge, 3 x 2"],
    "decoding": [f"{kind}, 12 images to 16x16, bilinear: " for kind in ("JPEG 4:2:0", "JPEG 4:4:4", "PNG", "BMP")
                 for _ in range(8)],
    "many_images": [*["evaluate and measure --model, 125 images of 32x32"] * 2,
                    *["evaluate and measure --model, 150 images of 32x32"] * 2, "peak memory for each image from 125"],
}


# They start PyTorch, TensorFlow or a server again and again.
TAKE_LONG = ("many_classes", "many_images", "memory", "meta", "serving", "start")


@pytest.mark.parametrize("part", [
    pytest.param(part, marks=pytest.mark.long) if part in TAKE_LONG else part for part in benchmark.PARTS
])
def test_every_part_runs(part, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))
    text = benchmark.run([part], tmp_path / "b.json", quick=True)
    written = json.loads((tmp_path / "b.json").read_text())
    lines = written["measurements"]
    assert written["machine"]["cores"] >= 1
    assert len(lines) == len(EXPECTED[part])
    for line, beginning in zip(lines, EXPECTED[part], strict=True):
        assert line["part"] == part and line["what"].startswith(beginning) and line["what"] in text
        is_difference = part == "decoding" or line["what"].startswith("peak memory for each image")
        least = -np.inf if is_difference else np.nextafter(0, 1)
        assert line["ours"] >= least and all(value >= least for value in line["ours_by_round"])
        if line["peer"] is not None:
            paired = ratios(line["ours_by_round"], line["peer_by_round"])
            assert line["ratio"] == summary(paired).median and line["ratio_range"] == [min(paired), max(paired)]


def test_decoders_are_compared_on_the_files_of_a_folder(tmp_path):
    """By a model of one's own: what the benchmark calls the graph's pixels are those that the features come from."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bat", "cat", "dog"):
        of = photographs.colours(rng)
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3 if name == "bat" else 4):
            data = photographs.file_of(photographs.photograph(rng, of, 30, 40), "PNG")
            (tmp_path / "images" / name / f"{number}.png").write_bytes(data)
        (tmp_path / "images" / name / "0.webp").write_bytes(b"not read by the graph")
    model = export(backbones.conv4((16, 16, 3), filters=4), heads.Ridge(), tmp_path / "model")
    given = {"data_root": str(tmp_path / "images"), "model": str(model)}
    benchmark.run(["decoding"], tmp_path / "b.json", quick=True, **given)
    lines = json.loads((tmp_path / "b.json").read_text())["measurements"]
    assert len(lines) == 8 and all(line["what"].startswith("files, 12 images to 16x16, bilinear: ") for line in lines)
    found = {line["what"].partition(": ")[2]: line["ours"] for line in lines}
    assert 0 < found["values that differ"] < 50 and found["largest difference of values"] == 1
    assert found["mean difference of values"] == pytest.approx(found["values that differ"] / 100)
    assert 0 < found["mean difference of features, relative"] < found["largest difference of features, relative"] < 5
    (tmp_path / "images" / "dog" / "3.png").unlink()
    with pytest.raises(ValueError, match="3 classes of 4 files .jpg, .*Received: 2 such classes"):
        benchmark.run(["decoding"], tmp_path / "b.json", quick=True, **given)


def test_without_pytorch_our_figures_are_still_there(tmp_path, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    text = benchmark.run(["sampling"], tmp_path / "b.json", quick=True)
    lines = json.loads((tmp_path / "b.json").read_text())["measurements"]
    assert [line["peer_name"] for line in lines] == ["no PyTorch", "learn2learn, published"] * 2
    assert [line["met"] is None for line in lines] == [True, False] * 2
    assert "pip install 'tf-unravel[benchmark]'" in text


def test_targets_of_the_evaluation_are_those_of_the_issue():
    rates = {"ours": (1000.0,), "loop": (90.0,), "batched": (400.0,)}
    lines = {}
    for name, dimension, shots in itertools.product(("prototypes", "ridge", "svm"), (8192, 640), (1, 5)):
        found = list(tasks._measurements(rates, name, dimension, shots, 100_000))
        lines[name, dimension, shots] = [(line.peer[0], line.target and line.target.bound) for line in found]
    assert lines["prototypes", 8192, 1] == [(90.0, 10.0), (348.0, 10.0), (400.0, None), (1750.0, None)]
    assert lines["ridge", 640, 1] == [(400.0, 2.0), (16620.0, 2.0)]
    assert lines["ridge", 640, 5] == [(400.0, None), (10172.0, None)]
    assert lines["svm", 8192, 1] == [(400.0, 2.0), (1949.0, 2.0)]
    assert lines["svm", 640, 5] == [(400.0, 5.0), (529.0, 5.0)]
    assert published.EPISODES_PER_SECOND * sampling._TARGET.bound == 5 * 739


def test_random_features_are_a_task_that_can_be_solved_and_missed():
    features, split = tasks.random_features(300, 5, 400)
    assert features.shape == (300, 400) and features.dtype == np.float32 and len(split) == 300
    assert 0.3 < tasks.evaluate(features, split, ["prototypes"], (1,), 200)["prototypes"][1].mean < 0.99


class TestPeers:
    """The peers do the same work as ours: same networks, same heads."""

    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch")

    @pytest.mark.parametrize(("name", "filters", "count"), [("conv4", 64, 112_832), ("r2d2", None, 2_605_056)])
    def test_networks_are_ours(self, name, filters, count):
        import torch

        networks = peers.peer("networks")
        network = networks.Conv4(filters) if filters else networks.R2D2((96, 192, 384, 512))
        ours = backbones.by_name[name]((32, 32, 3))
        assert sum(p.numel() for p in network.parameters()) == count
        assert sum(int(np.prod(w.shape)) for w in ours.trainable_variables) == count
        assert network.eval()(torch.zeros(2, 3, 32, 32)).shape[1] == ours.output_shape[1]

    def test_step_learns(self):
        import torch

        networks = peers.peer("networks")
        torch.set_num_threads(1)  # threads that wait for each other take seconds where tests run side by side
        images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
        step = networks.classical_step(networks.Conv4(8), images, np.repeat(np.arange(4), 2), 4)
        losses = [step() for _ in range(30)]
        assert losses[-1] < 0.7 * losses[0]

    @pytest.mark.parametrize("name", ["prototypes", "ridge", "svm"])
    def test_heads_are_ours(self, name):
        torch_heads = peers.peer("heads")
        if name == "svm" and not torch_heads.has_qpth():
            pytest.skip("qpth is not installed")
        features = np.random.default_rng(0).standard_normal((60, 30), np.float32)
        support, targets, query = torch_heads.random_tasks(features, 3, ways=5, shots=2, queries=4)
        labels = np.tile(np.repeat(np.arange(5), 2), (3, 1))
        ours = {"prototypes": heads.Prototypes(normalize=True), "ridge": heads.Ridge(), "svm": heads.SVM()}[name]
        expected = ours(support.numpy(), labels, query.numpy(), 5).numpy()
        if name == "svm":  # three iterations, MetaOptNet's, are not converged
            got, tolerance = torch_heads.svm(support, targets, query, iterations=20).numpy(), 1e-3
        else:
            got, tolerance = torch_heads.batched(name, (support, targets, query))().numpy(), 1e-5
        np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())

    def test_the_loop_over_tasks_agrees_with_our_evaluation(self):
        features, split = tasks.random_features(300, 6, 20)
        theirs = peers.peer("heads").evaluate_one_by_one(features, split.class_ids, 5, 1, 15, 150)
        ours = tasks.evaluate(features, split, ["prototypes"], (1,), 600)["prototypes"][1]
        assert abs(theirs - ours.mean) < 4 * ours.standard_error * np.sqrt(1 + 600 / 150)

    def test_episodes_are_episodes(self):
        images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1).repeat(3, axis=3)
        sampler = peers.peer("episodes").EpisodeSampler(images, np.repeat(np.arange(6), 10))
        drawn, labels = sampler.sample(ways=5, per_class=4)
        assert drawn.shape == (20, 3, 1, 1) and labels.tolist() == np.repeat(np.arange(5), 4).tolist()
        pixels = np.rint(drawn.numpy()[:, 0, 0, 0] * 255).astype(int).reshape(5, 4)
        assert len(np.unique(pixels)) == 20 and (pixels // 10 == pixels[:, :1] // 10).all()
