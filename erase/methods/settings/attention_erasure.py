"""Attention map erasure has no settings."""

from erase.methods.settings.base import MethodFields

FIELDS = MethodFields(None)
