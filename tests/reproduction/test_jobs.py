"""The plan: which jobs there are, what is left of each, and what a failure does to the others."""

import json

import pytest

from tests.reproduction.fakes import SCALE, finish, put, workspace
from tf_unravel import runs
from tf_unravel.reproduction.jobs import jobs
from tf_unravel.reproduction.jobs.jobs import RunJob, TimingJob
from tf_unravel.reproduction.jobs.measurements import Accuracy, Separation
from tf_unravel.reproduction.jobs.processes import ChildFailed
from tf_unravel.reproduction.jobs.scales import RunName
from tf_unravel.reproduction.report import report

RUN = RunName("toy", "classical@r2d2", None, 0)
WANTED = (Accuracy("svm", 1, 4), Separation("test", 4), Accuracy("fine_tune", 1, 4))


def config(there, run=RUN) -> str:
    return runs.parse(*there.configuration(run)).text


def test_the_plan_has_each_run_once_with_everything_that_is_wanted():
    plan = jobs.plan(report.exhibits(SCALE, (0, 1), ("table1", "table3", "table7")), SCALE)
    names = [str(job) for job in plan]
    assert len(set(names)) == len(names)
    assert names[-1] == "toy/timing@r2d2" and isinstance(plan[-1], TimingJob)
    seeds = [job.run.seed for job in plan[:-1]]
    assert seeds == sorted(seeds) and len(seeds) == 8  # four trainings, all of seed 0 first
    classical = next(job for job in plan if str(job) == "toy/classical@r2d2/seed-0")
    assert {(each.head, each.shots) for each in classical.wanted} == {
        ("svm", 1), ("svm", 5), ("ridge", 1), ("prototypes", 1), ("fine_tune", 1)
    }


def test_what_is_left_of_a_job(tmp_path):
    there, job = workspace(tmp_path), RunJob(RUN, WANTED)
    assert jobs.left_of(job, there) == ["training", "measuring", "fine-tuning"]
    finish(there.run_dir(RUN))
    (there.run_dir(RUN) / "config.gin").write_text(config(there))
    assert jobs.left_of(job, there) == ["measuring", "fine-tuning"]
    put(there.run_dir(RUN), WANTED[0], accuracy=[0.5] * 4)
    put(there.run_dir(RUN), WANTED[1], r_fc=[1.0] * 4, r_hv=[1.0] * 4)
    assert jobs.left_of(job, there) == ["fine-tuning"]
    put(there.run_dir(RUN), WANTED[2], accuracy=[0.5] * 4)
    assert jobs.left_of(job, there) == [] and jobs.minutes_left([job], there) == 0


def test_a_folder_of_another_configuration_is_not_taken(tmp_path):
    there, job = workspace(tmp_path), RunJob(RUN, WANTED)
    finish(there.run_dir(RUN))
    (there.run_dir(RUN) / "config.gin").write_text(config(there).replace("run.epochs = 3", "run.epochs = 4"))
    with pytest.raises(runs.ConfigError, match="another configuration"):
        job.parts(there)
    assert "another configuration" in jobs.left_of(job, there)[0]
    assert "another configuration" in jobs.run([job], there)[str(job)]


def test_the_estimate_is_what_another_seed_took(tmp_path):
    there, job = workspace(tmp_path), RunJob(RUN, WANTED[:1])
    assert job.minutes(there) == 30  # what the scale says
    other = there.run_dir(RUN).parent / "seed-1"
    finish(other, seconds=600.0)
    put(other, WANTED[0], accuracy=[0.5] * 4)
    assert job.minutes(there) == pytest.approx(10.5)  # 600 s of training and 30 s of measuring


def test_the_plan_as_lines_for_a_job_array(tmp_path):
    there, job = workspace(tmp_path), RunJob(RUN, WANTED)
    (line,) = map(json.loads, jobs.as_lines([job], there, "tf-unravel paper run --scale=x"))
    assert line == {"job": "toy/classical@r2d2/seed-0", "minutes": 30.0,
                    "command": "tf-unravel paper run --scale=x --job toy/classical@r2d2/seed-0",
                    "left": ["training", "measuring", "fine-tuning"]}


@pytest.mark.parametrize("processes", [1, 2])
def test_one_failure_does_not_keep_the_others(tmp_path, monkeypatch, processes):
    done = []

    def child(function, *arguments, log):
        if "seed-1" in log.name:
            raise ChildFailed("out of memory")
        done.append(log.name)

    monkeypatch.setattr(jobs, "in_child", child)
    plan = [RunJob(RunName("toy", "classical@r2d2", None, seed), WANTED[:1]) for seed in range(3)]
    failures = jobs.run(plan, workspace(tmp_path), processes)
    assert failures == {"toy/classical@r2d2/seed-1": "out of memory"}
    assert sorted(set(done)) == ["toy_classical@r2d2_seed-0.log", "toy_classical@r2d2_seed-2.log"]
    assert len(done) == 4  # training and measuring of both
