"""Deployment: a trained backbone and a head as a SavedModel, and images classified with it."""

from tf_unravel.deployment.classifying.classification import Classification
from tf_unravel.deployment.classifying.classify import classify
from tf_unravel.deployment.exporting.saved_model import export
from tf_unravel.deployment.labelled_images import Labelled, read_labelled
from tf_unravel.deployment.model import Model, load

__all__ = ["Classification", "Labelled", "Model", "classify", "export", "load", "read_labelled"]
