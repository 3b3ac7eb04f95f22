"""Metrics, benchmarks, reports and pictures."""
