"""What the commands `evaluate`, `measure` and `export` do with run folders, exported models and pretrained networks."""

from tf_unravel.commands.export import export_backbone, export_run
from tf_unravel.commands.exported_models import Question, evaluate_models, measure_models
from tf_unravel.commands.reliability import Asked
from tf_unravel.commands.reports import Reading, Tasks, evaluate_runs, measure_runs

__all__ = ["Asked", "Question", "Reading", "Tasks", "evaluate_models", "evaluate_runs", "export_backbone",
           "export_run", "measure_models", "measure_runs"]
