"""Evaluation: declarations of benchmarks, one runner, pure scorers that read files only, and reports."""
