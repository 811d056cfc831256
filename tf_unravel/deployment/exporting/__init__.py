"""A backbone and a head as a SavedModel."""
