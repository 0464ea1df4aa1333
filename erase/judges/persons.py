"""The paper's judge of persons: a softmax layer on MobileNetV2's features, averaged over a picture.

By the paper's recipe it is trained with Adam at a rate of 1e-4 on 80 % of about 50 pictures a
person; the trunk is not changed.
Axis letters: N B pictures, h w picture sides, C features, K persons.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt8
from typing_extensions import TypedDict

from erase.judges.mobilenet import SOURCE, Trunk, check_features
from erase.judges.named import Classes, softmax
from erase.judges.protocol import Figure, Scores
from flux_jax.errors import InputError
from flux_jax.system.json_files import read_typed
from flux_jax.weights.safetensors_files import read_file, replacing, write_file

CONFIG, WEIGHTS, TRUNK = "config.json", "head.safetensors", "trunk.safetensors"


class HeadRecord(TypedDict):
    """The file beside a head's weights; its type is that of `erase.evaluation.judge.JUDGES`."""

    type: Literal["persons"]
    names: list[str]
    trunk: str
    layer: str
    side: int
    test_accuracy: float | None


class Head(flax.struct.PyTreeNode):
    """A dense layer from features to logits."""

    kernel: Float[Array, "C K"]
    bias: Float[Array, "K"]


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
        epochs: passes over the training pictures.
        batch: pictures of a step.
        rate: of Adam.
        seed: of the first weights and of the order.
    """

    epochs: int = 300
    batch: int = 32
    rate: float = 1e-4
    seed: int = 0


def logits(head: Head, features: Float[Array, "N C"]) -> Float[Array, "N K"]:
    """Logits of each person."""
    return features @ head.kernel + head.bias


def loss(head: Head, features: Float[Array, "N C"], labels: Int[Array, "N"]) -> Float[Array, ""]:
    """Mean cross-entropy."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits(head, features), labels)
    return each.mean()


def first_head(seed: int, width: int, persons: int) -> Head:
    """Random weights by Glorot's uniform rule, as Keras's dense layers have."""
    glorot = jax.nn.initializers.glorot_uniform()
    return Head(glorot(jax.random.key(seed), (width, persons)), jnp.zeros(persons))


def train_head(
    features: Float[np.ndarray, "N C"], labels: Int[np.ndarray, "N"], persons: int, recipe: Recipe
) -> Head:
    """Train a head.

    Args:
        features: of the training pictures.
        labels: index of the person in each.
        persons: number of persons.
        recipe: rate, epochs, batch and seed.
    """
    head = first_head(recipe.seed, features.shape[1], persons)
    batch = min(recipe.batch, len(features))
    random = np.random.default_rng(recipe.seed)
    steps = len(features) // batch
    order = np.stack(
        [random.permutation(len(features))[: steps * batch] for _ in range(recipe.epochs)]
    )
    rows = jnp.asarray(order.reshape(-1, batch))
    return _trained(head, jnp.asarray(features), jnp.asarray(labels), rows, recipe.rate)


@functools.partial(jax.jit, static_argnums=4)
def _trained(head: Head, features: Array, labels: Array, rows: Array, rate: float) -> Head:
    adam: Any = optax.adam(rate)

    def step(state: PyTree, chosen: Array) -> tuple[PyTree, None]:
        head, moments = state
        gradient = jax.grad(loss)(head, features[chosen], labels[chosen])
        change, moments = adam.update(gradient, moments)
        return (jax.tree.map(jnp.add, head, change), moments), None

    (head, _), _ = jax.lax.scan(step, (head, adam.init(head)), rows)
    return head


def split(
    pictures: UInt8[np.ndarray, "N h w 3"],
    labels: Int[np.ndarray, "N"],
    share: float = 0.8,
    seed: int = 0,
) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "test"]]:
    """Split pictures at random into training and test, each person in the same share.

    Pictures with equal pixels come to the same side: otherwise the test would know its pictures.

    Args:
        pictures: in the order of their labels.
        labels: index of the person in each.
        share: of the different pictures of a person that are for training; at least one is, and
            at least one is not.
        seed: of the choice.

    Returns:
        Indices for training, and for test.

    Raises:
        InputError: a person has a single picture, or persons have the same picture.
    """
    random = np.random.default_rng(seed)
    sides: list[list[int]] = [[], []]
    owner: dict[bytes, int] = {}
    for person in np.unique(labels).tolist():
        groups: dict[bytes, list[int]] = {}
        for index in np.flatnonzero(labels == person).tolist():
            content = pictures[index].tobytes()
            groups.setdefault(content, []).append(index)
            if owner.setdefault(content, person) != person:
                raise InputError(
                    f"picture {index}: persons {owner[content]} and {person} have the same picture"
                )
        if len(groups) < 2:
            raise InputError(
                f"person {person} has one picture without copies; training and test need one each"
            )
        drawings = list(groups.values())
        first = min(max(round(share * len(drawings)), 1), len(drawings) - 1)
        for place, chosen in enumerate(random.permutation(len(drawings)).tolist()):
            sides[place >= first] += drawings[chosen]
    train, test = (np.array(sorted(side)) for side in sides)
    return train, test


def read_record(folder: str | Path) -> HeadRecord:
    """Read the file beside a head's weights.

    Raises:
        InputError: it is missing or damaged.
    """
    return read_typed(HeadRecord, Path(folder) / CONFIG, "train the judge, or check the path")


@dataclass(frozen=True)
class PersonJudge:
    """Names the person in each picture.

    Attributes:
        trunk: for features.
        head: trained on them.
        classes: names of the persons, in the head's order.
        test_accuracy: share of the test pictures that it names rightly; None if unknown.
    """

    trunk: Trunk
    head: Head
    classes: Classes
    test_accuracy: float | None = None

    @classmethod
    def train(
        cls,
        trunk: Trunk,
        pictures: UInt8[np.ndarray, "N h w 3"],
        labels: Int[np.ndarray, "N"],
        classes: Classes,
        recipe: Recipe | None = None,
    ) -> "PersonJudge":
        """Train on 80 % of the pictures, and test on the others.

        Raises:
            InputError: a label is of no person, or pictures cannot be split (see `split`).
        """
        recipe = recipe or Recipe()
        if sorted(set(labels.tolist())) != list(range(len(classes.names))):
            raise InputError(
                f"labels of pictures must be all of 0 to {len(classes.names) - 1}, one for each of "
                "the persons"
            )
        train, test = split(pictures, labels, seed=recipe.seed)
        features = trunk.features(pictures)
        head = train_head(features[train], labels[train], len(classes.names), recipe)
        best = np.asarray(logits(head, jnp.asarray(features[test]))).argmax(-1)
        return cls(trunk, head, classes, float((best == labels[test]).mean()))

    def save(self, folder: Path) -> None:
        """Write the head and the persons' names; the trunk stays in its own file."""
        tensors = {"kernel": np.asarray(self.head.kernel), "bias": np.asarray(self.head.bias)}
        write_file(folder / WEIGHTS, tensors, {"format": "flax"})
        names, trunk = list(self.classes.names), self.trunk.digest
        record: HeadRecord = {
            "type": "persons",
            "names": names,
            "trunk": trunk,
            "layer": self.trunk.layer,
            "side": self.trunk.side,
            "test_accuracy": self.test_accuracy,
        }
        with replacing(folder / CONFIG) as file:
            file.write((json.dumps(record) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path, trunk: Trunk, erased: Sequence[str] = ()) -> "PersonJudge":
        """Open a folder that `save` wrote.

        Args:
            folder: with the head.
            trunk: the one that the head was trained on.
            erased: persons whose accuracy is counted apart.

        Raises:
            InputError: a file is missing or damaged, or the head belongs to another trunk.
        """
        path, record = Path(folder) / CONFIG, read_record(folder)
        if record["trunk"] != trunk.digest:
            raise InputError(
                f"{path}: trained on a trunk with other weights, layer or side than this one "
                f"({record['trunk']:.20}, not {trunk.digest}); give that one or train again"
            )
        if not (Path(folder) / WEIGHTS).is_file():
            raise InputError(f"{Path(folder) / WEIGHTS}: not found; train the judge again")
        tensors = read_file(Path(folder) / WEIGHTS)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        persons = len(record["names"])
        channels = trunk.features(np.empty((0, trunk.side, trunk.side, 3), np.uint8)).shape[1]
        if shapes != {"kernel": (channels, persons), "bias": (persons,)}:
            raise InputError(
                f"{Path(folder) / WEIGHTS}: not a kernel [{channels}, {persons}] with its bias; "
                "train the judge again"
            )
        head = Head(**{name: jnp.asarray(tensor, jnp.float32) for name, tensor in tensors.items()})
        classes = Classes(tuple(record["names"]), erased=tuple(erased))
        return cls(trunk, head, classes, record["test_accuracy"])

    @classmethod
    def open(
        cls, folder: str | Path, weights: str | Path | None = None, erased: Sequence[str] = ()
    ) -> "PersonJudge":
        """Open a folder with the trunk that its head was trained on.

        Args:
            folder: with the head.
            weights: the trunk's file; by default `trunk.safetensors` in the folder.
            erased: persons whose accuracy is counted apart.

        Raises:
            InputError: a file is missing or damaged, or the files do not belong together.
        """
        record = read_record(folder)
        path = Path(weights or Path(folder) / TRUNK)
        if not path.is_file():
            raise InputError(
                f"trunk = {str(path)!r} is no file; the judge of persons needs {SOURCE}"
            )
        try:
            check_features(record["layer"], record["side"])
        except InputError as error:
            raise InputError(f"{Path(folder) / CONFIG}: {error}; train the judge again") from error
        trunk = Trunk.load(path, record["layer"], record["side"])
        return cls.load(folder, trunk, erased)

    @property
    def description(self) -> Mapping[str, str | float]:
        """Trunk, number of persons, and accuracy on test pictures in percent."""
        accuracy = self.test_accuracy
        known = {} if accuracy is None else {"accuracy on test pictures, %": 100 * accuracy}
        return {
            "judge": "MobileNetV2 classifier",
            "trunk": self.trunk.digest,
            "layer": self.trunk.layer,
            "side": self.trunk.side,
            "persons": len(self.classes.names),
            **known,
        }

    def scores(
        self, pictures: UInt8[np.ndarray, "B h w 3"], prompts: Sequence[str]
    ) -> list[Scores]:
        """See `Classes.scores`."""
        out = np.asarray(logits(self.head, jnp.asarray(self.trunk.features(pictures))), np.float64)
        return self.classes.scores(softmax(out), prompts)

    def figures(self, scores: Sequence[Scores]) -> list[Figure]:
        """Return Acc_e and Acc_ir, or one accuracy if no person is erased."""
        return self.classes.figures(scores, "Accuracy")
