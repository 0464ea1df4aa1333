"""Quantised weights, computed when they are read."""
