"""Evaluation: measure what was erased and what was preserved."""
