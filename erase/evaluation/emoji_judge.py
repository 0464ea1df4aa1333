"""Judge of the small model: a network that recognises entities, a style and a relation.

It is trained only on rendered scenes, never on pictures of the model that it judges.
Axis letters: B pictures, h w picture sides, C channels, A answers on a relation (each relation, or
none).
"""

import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from erase.evaluation.judge import CONFIG, Kind, read_config
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, Verdict, ask, init
from flux_jax.errors import InputError
from flux_jax.models.config import read_fields
from flux_jax.tree import flatten, nest
from flux_jax.weights.safetensors_files import read_file, shown, write_file

WEIGHTS = "judge.safetensors"


THRESHOLD = 0.5


# Largest height and width of the pictures, in pixels.
MOST_SIDE = 4096
# Most channels, and most blocks at a resolution.
MOST_CHANNELS = 4096


# Pictures are judged in chunks of one size, so that each function is compiled only once.
CHUNK = 32


@dataclass(frozen=True)
class NetworkJudge:
    """A trained judge; takes pictures in uint8.

    Attributes:
        config: its labels and sizes.
        params: parameters of the network.
        size: height and width of the pictures, in pixels.
    """

    config: JudgeConfig
    params: PyTree
    size: int = 64

    @classmethod
    def load(cls, folder: str | Path) -> "NetworkJudge":
        """Load a folder written by `save`.

        Raises:
            InputError: a file is missing or damaged, or the two files do not match.
        """
        folder = Path(folder)
        path = folder / CONFIG
        read = read_config(folder)
        size = read.pop("size", 64)
        if missing := sorted({"entities", "styles", "relations"} - read.keys()):
            raise InputError(f"{path} lacks {', '.join(missing)}; restore the file")
        config = read_fields(JudgeConfig, read, str(path))
        if type(size) is not int or not 8 <= size <= MOST_SIDE:
            raise InputError(f"{path}: size = {size!r:.40} must be from 8 to {MOST_SIDE} pixels")
        if not (config.entities and config.styles):
            raise InputError(f"{path}: entities and styles must not be empty")
        if len(config.widths) != len(config.blocks) or not config.widths:
            raise InputError(
                f"{path}: widths = {config.widths} and blocks = {config.blocks} must have the same "
                "number of entries"
            )
        if not all(0 < each <= MOST_CHANNELS for each in (*config.widths, *config.blocks)):
            raise InputError(
                f"{path}: widths = {config.widths!s:.40} and blocks = {config.blocks!s:.40} must "
                f"be from 1 to {MOST_CHANNELS}"
            )
        wanted = jax.eval_shape(lambda: init(JudgeNetwork(config), jax.random.key(0), size))
        shapes = {path: leaf.shape for path, leaf in flatten(wanted).items()}
        tensors = read_file(folder / WEIGHTS)
        if odd := sorted(p for p in shapes.keys() | tensors if not _fits(p, shapes, tensors)):
            raise InputError(
                f"{folder / WEIGHTS} does not fit {CONFIG}; missing, surplus or misshapen: "
                f"{shown(odd)}"
            )
        params = nest({path: jnp.asarray(leaf, jnp.float32) for path, leaf in tensors.items()})
        return cls(config, params, size)

    def save(self, folder: str | Path) -> None:
        """Write `config.json`, and the weights in bfloat16 to `judge.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        flat = flatten(self.params)
        tensors = {path: np.asarray(leaf.astype(jnp.bfloat16)) for path, leaf in flat.items()}
        write_file(folder / WEIGHTS, tensors, {"format": "flax"})
        (folder / CONFIG).write_text(json.dumps(asdict(self.config) | {"size": self.size}) + "\n")

    def __call__(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Verdict:
        """Recognise the entities and the style of pictures.

        Raises:
            InputError: the pictures do not have the judge's size.
        """
        return self._chunked(_judge, pictures)

    def relation(
        self,
        pictures: UInt8[np.ndarray, "B h w 3"],
        subject: Int[np.ndarray, "B"],
        object: Int[np.ndarray, "B"],
    ) -> Float[np.ndarray, "B A"]:
        """Return logits of the relation of ordered pairs (subject, object); the last means none."""
        return self._chunked(_relate, pictures, np.asarray(subject), np.asarray(object))

    def label(self, concept: str) -> str:
        """Return the label by which a concept is judged.

        This is the concept itself, or a relation of several words that it starts with: "back to
        back with" is judged as "back to back".

        Raises:
            InputError: there is no such label; the message suggests the nearest ones.
        """
        config = self.config
        labels = [*config.entities, *config.styles, *config.relations]
        if concept in labels:
            return concept
        for relation in config.relations:
            if " " in relation and concept.startswith(f"{relation} "):
                return relation
        near = difflib.get_close_matches(concept, labels, cutoff=0.0)
        raise InputError(
            f"concept = {concept!r} is not among the judge's labels; the nearest are "
            f"{', '.join(map(repr, near))}"
        )

    def labels(self, kind: Kind) -> Sequence[str]:
        """Return all labels of a kind, in the order of the network's outputs."""
        config = self.config
        names = {
            "entity": config.entities,
            "style": config.styles,
            "relation": config.relations,
        }
        return names[kind]

    def kind(self, concept: str) -> Kind:
        """Return whether a concept is an entity, a style or a relation.

        Raises:
            InputError: it is none of the three.
        """
        label = self.label(concept)
        if label in self.config.entities:
            return "entity"
        return "style" if label in self.config.styles else "relation"

    def shows(self, pictures: UInt8[np.ndarray, "B h w 3"], entity: str) -> np.ndarray:
        """Whether each picture shows an entity; bool [B].

        Raises:
            InputError: the judge does not know the entity.
        """
        return self.shows_each(pictures, [entity] * len(pictures))

    def shows_each(self, pictures: UInt8[np.ndarray, "B h w 3"], labels: list[str]) -> np.ndarray:
        """Whether each picture shows its own label, an entity or a style; bool [B].

        Raises:
            InputError: a label is not one of them. A relation needs its pair: see `relation`.
        """
        kinds = {label: self.kind(label) for label in set(labels)}
        if related := sorted(label for label, kind in kinds.items() if kind == "relation"):
            raise InputError(f"{related[0]!r} is a relation; name its subject and object")
        verdict = self(pictures)
        shown = np.asarray(jax.nn.sigmoid(verdict.entities)) > THRESHOLD
        style = np.asarray(verdict.style).argmax(-1)
        return np.array(
            [
                shown[i, self.config.entities.index(label)]
                if kinds[label] == "entity"
                else style[i] == self.config.styles.index(label)
                for i, label in enumerate(labels)
            ],
            bool,
        )

    def check_prompt(self, label: str, prompt: str) -> None:
        """Refuse the prompt of a relation that does not name the subject and the object.

        Raises:
            InputError: the prompt names fewer than two entities.
        """
        if self.kind(label) == "relation":
            self.named_pair(prompt)

    def finds(
        self, pictures: UInt8[np.ndarray, "B h w 3"], labels: Sequence[str], prompts: Sequence[str]
    ) -> Bool[np.ndarray, "B"]:
        """Judge whether each picture shows its label.

        A relation is judged between the first two entities that the prompt names.

        Raises:
            InputError: a label is unknown, or a relation's prompt does not name a pair.
        """
        kinds = [self.kind(label) for label in labels]
        hits = np.zeros(len(labels), bool)
        plain = [i for i, kind in enumerate(kinds) if kind != "relation"]
        if plain:
            hits[plain] = self.shows_each(pictures[plain], [labels[i] for i in plain])
        related = [i for i, kind in enumerate(kinds) if kind == "relation"]
        if related:
            pairs = np.array([self.named_pair(prompts[i]) for i in related])
            wanted = [self.config.relations.index(labels[i]) for i in related]
            logits = self.relation(pictures[related], pairs[:, 0], pairs[:, 1])
            hits[related] = logits.argmax(-1) == np.array(wanted)
        return hits

    def features(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[np.ndarray, "B C"]:
        """Return the features before the heads, averaged over the picture."""
        return np.asarray(self(pictures).features, np.float64).mean(axis=(1, 2))

    def named_pair(self, prompt: str) -> tuple[int, int]:
        """Return the indices of the first two entities in a prompt; longer names match first.

        Raises:
            InputError: the prompt names fewer than two.
        """
        names = sorted(self.config.entities, key=len, reverse=True)
        pattern = rf"\b({'|'.join(map(re.escape, names))})s?\b"
        named = [match.group(1) for match in re.finditer(pattern, prompt)]
        if len(named) < 2:
            raise InputError(
                f"prompt = {prompt!r}: a relation needs two entities that the judge knows, "
                'for instance "a cat {} a dog"'
            )
        first, second = (self.config.entities.index(name) for name in named[:2])
        return first, second

    def _chunked(self, function: Any, pictures: np.ndarray, *pair: np.ndarray) -> Any:
        if pictures.shape[1:] != (self.size, self.size, 3) or pictures.dtype != np.uint8:
            raise InputError(
                f"pictures of shape {pictures.shape} and dtype {pictures.dtype}: the judge takes "
                f"uint8 pictures of {self.size} x {self.size} pixels"
            )
        network, chunks = JudgeNetwork(self.config), []
        for start in range(0, len(pictures), CHUNK):
            rows = [array[start : start + CHUNK] for array in (pictures, *pair)]
            padded = [np.concatenate([r, np.repeat(r[:1], CHUNK - len(r), 0)]) for r in rows]
            out = function(network, self.params, *padded)
            chunks.append(jax.tree.map(np.asarray, out))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(pictures)], *chunks)


def to_float(pictures: UInt8[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
    """Scale values from 0..255 to [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1


@functools.partial(jax.jit, static_argnums=0)
def _judge(network: JudgeNetwork, params: PyTree, pictures: Array) -> Verdict:
    return cast(Verdict, network.apply({"params": params}, to_float(pictures)))


@functools.partial(jax.jit, static_argnums=0)
def _relate(
    network: JudgeNetwork, params: PyTree, pictures: Array, subject: Array, object: Array
) -> Array:
    return ask(network, params, to_float(pictures), subject, object)[1]


def _fits(path: str, shapes: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bool:
    return path in shapes and path in tensors and shapes[path] == tensors[path].shape
