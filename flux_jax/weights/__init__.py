"""Checkpoints of any layout as Flax trees, and back."""
