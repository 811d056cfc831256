"""The process that `many_classes` measures: one head at one size, what it took as one line of JSON."""

import functools
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_unravel import heads
from tf_unravel.heads.solvers import splitting
from tf_unravel.reproduction.benchmark.many_tasks_process import peak_bytes
from tf_unravel.reproduction.benchmark.tasks import random_features
from tf_unravel.reproduction.benchmark.timing import Work, interleaved


def outcome(head: str, ways: int, shots: int, dimension: int, rounds: int, queries: int) -> dict[str, Any]:
    """Seconds of ours and of the peer, milliseconds for a query, our peak bytes, and how far both are from optimal."""
    features, split = random_features(ways * shots, ways, dimension)
    labels, ours = split.class_ids, _HEADS[head]()
    support, support_labels = tf.constant(features[None]), tf.constant(labels[None])
    solved = ours.solve(support, support_labels, ways)
    answer = tf.function(lambda query: ours.decide(solved, query, ways))
    works = {"query": Work(lambda: answer(support[:, :1]).numpy())}
    query_rates = interleaved(works, queries)["query"]
    peak = peak_bytes()
    works = {"ours": Work(lambda: [value.numpy() for value in ours.solve(support, support_labels, ways)])}
    fitted: dict[str, Any] = {}

    def fit(name: str, make: Callable[[], Any]) -> None:
        fitted[name] = make().fit(features, labels)

    for name, make in _PEERS.get(head, {}).items():
        works[name] = Work(functools.partial(fit, name, make))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged: its certificate says how far it came
        rates = interleaved(works, rounds, warm_up=0)
    seconds = {name: [1.0 / rate for rate in values] for name, values in rates.items()}
    result: dict[str, Any] = {"query_milliseconds": [1000.0 / rate for rate in query_rates], "peak_bytes": peak,
                              "seconds": seconds["ours"], "peers": []}
    for name, model in fitted.items():
        theirs = (model.coef_.T, np.broadcast_to(model.intercept_, [ways]))
        result["certificate"], certificate = _CERTIFICATES[head](features, np.eye(ways)[labels], solved, theirs)
        result["peers"].append({"name": name, "seconds": seconds[name], "certificate": certificate})
    return result


def _gradient_norms(
    features: np.ndarray, targets: np.ndarray, solved: tuple[tf.Tensor, ...], theirs: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float]:
    """Norm of the gradient of sum CE + 1/2 ||W||^2 in (W, b), relative to that at zero, of ours and of theirs."""
    def norm(weights: np.ndarray, offset: np.ndarray) -> float:
        rest = tf.nn.softmax(features @ weights + offset).numpy() - targets
        return float(np.hypot(np.linalg.norm(features.T @ rest + weights), np.linalg.norm(rest.sum(axis=0))))

    at_zero = norm(np.zeros((features.shape[1], targets.shape[1])), np.zeros(targets.shape[1]))
    weights, offset = (value[0].numpy().astype(np.float64) for value in solved)
    return norm(weights, offset) / at_zero, norm(*theirs) / at_zero


def _objectives(
    features: np.ndarray, targets: np.ndarray, solved: tuple[tf.Tensor, ...], theirs: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float]:
    """Relative duality gap of ours, and how far the objective (4) of `splitting` is above it at their weights."""
    head = heads.SVM()
    problem = splitting.Problem(*[tf.constant(value, tf.float64) for value in (features, targets, head.c, head.l2)])
    weights, _, gap = head.many(problem.features, problem.targets, head.l2)

    def primal(weights: np.ndarray) -> float:
        margins = targets - features @ weights
        dual = splitting.project(problem, tf.constant(margins / head.l2)).numpy()
        return 0.5 * np.sum(weights**2) + np.sum(dual * margins) - 0.5 * head.l2 * np.sum(dual**2)

    least = primal(weights.numpy())
    return float(gap), float((primal(theirs[0]) - least) / least)


def _linear_svc() -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(multi_class="crammer_singer", C=heads.SVM().c, fit_intercept=False)


def _logistic_regression(**settings: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1.0 / heads.Linear().l2, **settings)


_HEADS: dict[str, Callable[[], heads.Head]] = {
    each.name: each for each in (heads.Prototypes, heads.Ridge, heads.SVM, heads.Linear)
}
_PEERS: dict[str, dict[str, Callable[[], Any]]] = {
    "svm": {"LinearSVC": _linear_svc},
    "linear": {"LogisticRegression": _logistic_regression,
               "LogisticRegression, tol=1e-6": lambda: _logistic_regression(tol=1e-6, max_iter=1000)},
}
_CERTIFICATES: dict[str, Callable[..., tuple[float, float]]] = {"svm": _objectives, "linear": _gradient_norms}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(outcome(**json.loads(sys.argv[1]))) + "\n")
