"""Arguments in groups: as one object, or one by one under the names that they always had."""

import inspect

import pytest

from tests.test_stale import tiny
from tf_unravel import heads, learners
from tf_unravel.adaptation.groups import arguments


@pytest.mark.parametrize("owner", [heads.FineTune, learners.MAML, learners.Reptile])
def test_a_constructor_has_eight_arguments_at_most(owner):
    parameters = inspect.signature(owner.__init__).parameters.values()
    assert len([p for p in parameters if p.name != "self" and p.kind != p.VAR_KEYWORD]) <= 8


def test_every_argument_of_before_is_still_one():
    assert {"steps", "learning_rate", "optimizer", "adapted", "batch_size", "batchnorm", "classifier", "moments",
            "sum_over_batch", "seed", "parallel_tasks"} == set(arguments(heads.FineTune))
    maml = {"backbone", "ways", "inner_steps", "inner_learning_rate", "first_order", "adapted", "learn_rates",
            "sum_over_ways", "rematerialize", "evaluation_steps", "batchnorm", "parallel_tasks", "weight_decay"}
    assert maml | {"evaluation_batch"} == set(arguments(learners.MAML))
    reptile = {"backbone", "ways", "inner_steps", "inner_batch", "inner_optimizer", "weight_clustering",
               "sum_over_batch", "evaluation_steps", "evaluation_batch", "transductive", "parallel_tasks",
               "weight_decay"}
    assert reptile | {"batchnorm"} == set(arguments(learners.Reptile))
    assert arguments(learners.Reptile)["evaluation_steps"].default == 50


def test_members_one_by_one_are_the_group():
    flat = learners.MAML(tiny(), 3, adapted="last_layer", evaluation_steps=7, batchnorm="running", learn_rates=True)
    grouped = learners.MAML(
        tiny(), 3, inner_loop=learners.InnerLoop(adapted="last_layer", learn_rates=True),
        evaluation=learners.Evaluation(7, batchnorm="running"),
    )  # fmt: skip
    mixed = learners.MAML(tiny(), 3, inner_loop=learners.InnerLoop("all", learn_rates=True), adapted="last_layer",
                          evaluation=learners.Evaluation(7), batchnorm="running")
    wanted = {"adapted": "last_layer", "learn_rates": True, "evaluation_steps": 7, "batchnorm": "running"}
    for learner in (flat, grouped, mixed):
        config = learner.get_config()
        assert {name: config[name] for name in wanted} == wanted
        assert learner.own_head().steps == 7 and learner.own_head().batchnorm.name == "running"
    head = heads.FineTune(batches=heads.Batches(4, seed=3), sum_over_batch=True)
    assert (head.batch_size, head.seed, head.sum_over_batch) == (4, 3, True)


@pytest.mark.parametrize(("value", "protocol"), [(True, "transductive"), (False, "one_by_one")])
def test_reptile_takes_transductive_as_it_did(value, protocol):
    learner = learners.Reptile(tiny(), 3, transductive=value)
    assert learner.own_head().batchnorm.name == protocol
    config = learner.get_config()
    del config["batchnorm"]  # as learners were saved up to 0.1
    again = learners.Reptile.from_config({**config, "transductive": value})
    assert again.get_config()["batchnorm"] == protocol


@pytest.mark.parametrize(("make", "line"), [
    (lambda: heads.FineTune(step=3), "FineTune has no argument 'step'; it has steps, .*batch_size.* Received: step=3"),
    (lambda: learners.MAML(tiny(), 3, evaluation_step=3), "MAML has no argument 'evaluation_step'; it has .*_steps"),
    (lambda: learners.Reptile(tiny(), 3, learn_rates=True), "Reptile has no argument 'learn_rates'; .*batchnorm"),
], ids=["fine_tune", "maml", "reptile"])  # fmt: skip
def test_a_misspelt_argument_is_one_line_with_the_names_that_exist(make, line):
    with pytest.raises(TypeError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_something_else_in_place_of_a_group_is_refused():
    with pytest.raises(ValueError, match=r"MAML.evaluation must be Evaluation\(...\). Received: 10"):
        learners.MAML(tiny(), 3, evaluation=10)


def test_the_names_of_keras_are_still_taken():
    assert learners.MAML(tiny(), 3, name="mine", weight_decay=0.1).name == "mine"
