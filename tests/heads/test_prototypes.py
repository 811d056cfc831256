import numpy as np
import pytest

from tests.heads.problems import inner_products, make_tasks, relative_error
from tf_unravel.heads import Prototypes


def by_loops(tasks, normalize):
    logits = np.zeros((*tasks.query.shape[:2], tasks.ways))
    for t in range(len(tasks.support)):
        for m in range(tasks.ways):
            prototype = tasks.support[t][tasks.labels[t] == m].mean(0)
            for q in range(tasks.query.shape[1]):
                logits[t, q, m] = -((tasks.query[t, q] - prototype) ** 2).sum()
    return logits / tasks.support.shape[2] if normalize else logits


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shots", [(1,) * 5, (5,) * 5, (1, 7, 2), (2,) * 20])
def test_against_loops(shots, normalize):
    tasks = make_tasks(shots, dimension=11)
    expected = by_loops(tasks, normalize)
    head = Prototypes(normalize=normalize)
    assert relative_error(head(tasks.support, tasks.labels, tasks.query, tasks.ways), expected) < 1e-12
    assert relative_error(head.logits(inner_products(tasks), tasks.labels, tasks.ways), expected) < 1e-12


def test_a_common_offset_does_not_cancel():
    # 1e4 in each of 40 features: squared norms of 4e9 have a rounding of 256 in float32, the distances are some 100.
    tasks = make_tasks((3, 3), dimension=40)
    expected = by_loops(tasks, normalize=False)
    shifted = [(x + 1e4).astype(np.float32) for x in (tasks.support, tasks.query)]
    logits = Prototypes()(shifted[0], tasks.labels, shifted[1], 2)
    assert relative_error(logits, expected) < 1e-3
