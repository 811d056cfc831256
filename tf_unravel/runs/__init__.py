"""Runs: a folder that holds one training, its configuration, checkpoints and logs. The only room that knows gin."""

from tf_unravel.runs.checkpoints import Checkpoints
from tf_unravel.runs.config import ConfigError, Configuration, Plan, parse, plan
from tf_unravel.runs.distribution import Devices
from tf_unravel.runs.exporting import export_run
from tf_unravel.runs.folder import RunFolder
from tf_unravel.runs.reading import FinishedRun
from tf_unravel.runs.reports import Reading, Tasks, evaluate_runs, measure_runs
from tf_unravel.runs.shipped import copies, trained, trained_names
from tf_unravel.runs.training import train

__all__ = [
    "Checkpoints", "ConfigError", "Configuration", "Devices", "FinishedRun", "Plan", "Reading", "RunFolder", "Tasks",
    "copies", "evaluate_runs", "export_run", "measure_runs", "parse", "plan", "train", "trained", "trained_names",
]
