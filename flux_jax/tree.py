"""Conversion between nested dictionaries of arrays and flat ones with paths as keys."""

from collections.abc import Mapping
from typing import Any

Params = Mapping[str, Any]


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by path, the keys joined by "/"."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
