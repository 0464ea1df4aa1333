"""Tensor layouts: PyTorch files on one side, Flax trees on the other; no torch needed."""
