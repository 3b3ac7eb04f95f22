"""Configurations of the models, one file per model."""
