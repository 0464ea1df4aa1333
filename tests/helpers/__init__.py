"""Tiny models, files and servers shared by several tests."""
