"""The adapters of a figure: each with its concept, and the method or losses that made it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.adapters.files import read_adapter
from convert.adapters.paths import find_adapter, split_strength
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.system.json_files import parse_json

METHOD = "EraseAnything"
# Its losses and the field with the weight of each.
LOSSES = (("lower", "esd"), ("lower", "attn"), ("upper", "lora"), ("upper", "rsc"))


@dataclass(frozen=True)
class FigureAdapter:
    """An adapter in a figure.

    Attributes:
        label: name of its row or column; empty if none was given.
        concept: what it erases.
        path: its file or folder.
        strength: factor of its effect.
        adapter: its weights, on the host.
        metadata: entries of the file's header.
    """

    label: str
    concept: str
    path: Path
    strength: float
    adapter: Adapter
    metadata: Mapping[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run that made it; empty if they are unknown."""
        try:
            found = parse_json(self.metadata.get("settings", ""))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def method(self) -> str:
        """The label, by default the method's name."""
        return self.label or self.metadata.get("method", "adapter")

    @property
    def losses(self) -> str:
        """The label, by default the losses of the run, such as "esd + lora"."""
        used = []
        for part, loss in LOSSES:
            weights = self.settings.get(part)
            # Runs of other methods have these fields too.
            if self.method == METHOD and isinstance(weights, dict) and weights.get(loss):
                used.append(loss)
        return self.label or " + ".join(used) or self.method

    @property
    def prompt(self) -> str:
        """A prompt for the concept, from the run's own sentences if they are known."""
        prompts = self.settings.get("prompts")
        first = prompts[0] if isinstance(prompts, list) and prompts else None
        if isinstance(first, str) and "{}" in first:
            return first.replace("{}", self.concept)
        return f"a photo of a {self.concept}"


def read_adapters(texts: Sequence[str]) -> list[FigureAdapter]:
    """Read adapters from "PATH", "PATH:STRENGTH" or "LABEL=PATH"; a path may hold several runs.

    Raises:
        InputError: there are none, or one cannot be read or does not say what it erases.
    """
    found: list[FigureAdapter] = []
    for text in texts:
        label, equals, rest = text.partition("=")
        if not equals or os.path.exists(text):
            label, rest = "", text
        path, strength = split_strength(rest)
        for each in runs_in(path):
            found.append(_read(label, each, strength))
    if not found:
        raise InputError("adapter is missing: name a run's folder, --adapter runs/cat")
    return found


def runs_in(path: Path) -> list[Path]:
    """Return a path that has an adapter, or the folders in it that have one.

    Raises:
        InputError: there is no adapter.
    """
    inner = find_adapter(path)
    if inner != path or path.is_file() or any(path.glob("*.safetensors")):
        return [path]
    if runs := sorted(each for each in path.iterdir() if (each / "adapter").is_dir()):
        return runs
    raise InputError(f"adapter = {str(path)!r:.200} has no adapter; name a run's folder")


def _read(label: str, path: Path, strength: float) -> FigureAdapter:
    file = read_adapter(find_adapter(path))
    concept = file.metadata.get("concept", "").strip()
    if not concept:
        raise InputError(
            f"{path} does not say in its header what it erases; name an adapter of a run"
        )
    adapter = Adapter(file.lora, file.alpha)
    return FigureAdapter(label, concept, path, strength, adapter, file.metadata)


def described(adapter: FigureAdapter) -> dict[str, Any]:
    """Return what identifies an adapter, of JSON types."""
    return {
        "label": adapter.label,
        "concept": adapter.concept,
        "path": str(adapter.path),
        "strength": adapter.strength,
    }
