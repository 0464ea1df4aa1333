"""Experiments on the shipped small model."""
