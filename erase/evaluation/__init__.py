"""Counting what was erased and what was kept."""
