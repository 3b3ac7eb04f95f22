"""Trainers, training recipes and data sources."""
