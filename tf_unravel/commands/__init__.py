"""What the commands `evaluate`, `measure` and `export` do with run folders."""

from tf_unravel.commands.export import export_run
from tf_unravel.commands.reports import Reading, Tasks, evaluate_runs, measure_runs

__all__ = ["Reading", "Tasks", "evaluate_runs", "export_run", "measure_runs"]
