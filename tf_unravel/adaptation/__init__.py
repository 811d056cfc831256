"""Adaptation: how a classifier comes from a task's support set, and how a network is fine-tuned to it."""
