"""Generators of the documentation site: pages and pictures that `make docs` makes."""
