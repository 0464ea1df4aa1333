"""Layouts of adapter files."""
