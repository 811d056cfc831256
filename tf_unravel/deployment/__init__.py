"""Deployment: a trained backbone and a head as a SavedModel, and pictures classified with one."""

from tf_unravel.deployment.classifying import Classification, classify
from tf_unravel.deployment.model import Model
from tf_unravel.deployment.pictures import Labelled, read_labelled
from tf_unravel.deployment.saved_model import export

__all__ = ["Classification", "Labelled", "Model", "classify", "export", "read_labelled"]
