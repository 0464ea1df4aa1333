"""Quantised weights, dequantised when they are read."""
