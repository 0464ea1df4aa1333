"""Benchmarks: prompt sets from files, their pictures, judges' scores of them, and results."""
