"""Kernels in Pallas, for one kind of accelerator each."""
