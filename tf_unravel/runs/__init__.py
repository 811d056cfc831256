"""Runs: a folder that holds one training, its configuration, checkpoints and logs. The only package that knows gin."""

from tf_unravel.runs.checkpoints import Checkpoints
from tf_unravel.runs.config import ConfigError, Configuration, Plan, parse, plan
from tf_unravel.runs.devices import Devices
from tf_unravel.runs.finished_run import FinishedRun
from tf_unravel.runs.folder import RunFolder
from tf_unravel.runs.shipped import copies, trained, trained_names
from tf_unravel.runs.training import train

__all__ = [
    "Checkpoints", "ConfigError", "Configuration", "Devices", "FinishedRun", "Plan", "RunFolder", "copies", "parse",
    "plan", "train", "trained", "trained_names",
]
