"""Conversion between checkpoints of any layout and Flax trees."""
