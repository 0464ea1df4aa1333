"""Find which tokens of a sentence carry a relation, by swapping them with those of its converse.

    python -m benchmarks.experiments.relation_tokens --out docs/results/relation_tokens.json

"A left of B" and "A right of B" have the same tokens except for one word. Some of the first
sentence's encoded tokens are replaced by the second's, and a judge reports which relation the
picture then shows.
Axis letters: B sentences, T text tokens, E text width.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array, Bool, Float

from benchmarks.results.schemas import RelationShares, RelationsResult
from erase.cli.flags import begin, parse_flags
from erase.data.words.word_tokens import marks
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.statistics import wilson_interval
from erase.runtime.files import write
from flux_jax.errors import exits_cleanly
from flux_jax.pipeline import Conditioning, Pipeline, load

MODEL, SIZE, SEED = "models/emoji-flux", 64, 2_500_000
CONVERSES = (("left of", "right of"), ("above", "below"))
SUBJECTS = ("cat", "rabbit", "banana", "horse", "dog", "apple", "fish", "crown")
OBJECTS = ("jeans", "car", "house", "grapes", "globe", "shoe", "key", "star")


def measure(pictures: int) -> RelationsResult:
    """Generate pictures of every relation with every swap.

    Args:
        pictures: per relation and swap.

    Returns:
        By relation and swap, the shares that show the relation (`own`) and its `converse`.
    """
    pipe, judge = load(MODEL), NetworkJudge.load(f"{MODEL}/judge")
    every = itertools.cycle(itertools.product(SUBJECTS, OBJECTS))
    pairs = list(itertools.islice(every, 0, 2 * pictures, 2))
    shares: dict[str, dict[str, RelationShares]] = {}
    for first, second in CONVERSES:
        for relation, converse in ((first, second), (second, first)):
            shares[relation] = {
                swap: count(pipe, judge, pairs, conditioning, (relation, converse))
                for swap, conditioning in swaps(pipe, pairs, relation, converse).items()
            }
    return {"seed": SEED, "relations": shares}


def swaps(
    pipe: Pipeline, pairs: Sequence[tuple[str, str]], relation: str, converse: str
) -> dict[str, Conditioning]:
    """Encoded sentences of a relation, with parts replaced by its converse's."""
    sentences = [f"a {a} {relation} a {b}" for a, b in pairs]
    others = [f"a {a} {converse} a {b}" for a, b in pairs]
    encoded, encoded_others = pipe.encode(sentences), pipe.encode(others)
    word = marks(pipe.tokenizer_2, sentences, relation) > 0
    nouns = zip(*pairs, strict=True)
    things = np.maximum(*(marks(pipe.tokenizer_2, sentences, each) for each in nouns)) > 0
    assert np.array_equal(word, marks(pipe.tokenizer_2, others, converse) > 0), "the same places"
    return {
        "nothing": encoded,
        "the relation's tokens": swap_tokens(encoded, encoded_others, word),
        "the two things' tokens": swap_tokens(encoded, encoded_others, things),
        "the pooled vector": replace(encoded, pooled=encoded_others.pooled),
    }


def swap_tokens(
    encoded: Conditioning, others: Conditioning, places: Bool[np.ndarray, "B T"]
) -> Conditioning:
    """Replace the tokens of encoded sentences at some positions by those of others."""
    text: Float[Array, "B T E"] = jnp.where(places[..., None], others.text, encoded.text)
    return replace(encoded, text=text)


def count(
    pipe: Pipeline,
    judge: NetworkJudge,
    pairs: Sequence[tuple[str, str]],
    conditioning: Conditioning,
    relations: tuple[str, str],
) -> RelationShares:
    """How often the pictures show a relation, and its converse."""
    ids = pipe.image_ids(SIZE, SIZE)
    noise = pipe.noise(range(SEED, SEED + len(pairs)), SIZE, SIZE)
    pictures = pipe.decode(pipe.denoise(noise, conditioning, ids, 28, 3.5), SIZE, SIZE)
    entities = judge.config.entities
    subject, thing = (np.array([*map(entities.index, nouns)]) for nouns in zip(*pairs, strict=True))
    answers = judge.relation(pictures, subject, thing).argmax(-1)
    own, converse = (
        wilson_interval(int((answers == judge.config.relations.index(relation)).sum()), len(pairs))
        for relation in relations
    )
    return {"own": own, "converse": converse}


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    result = measure(flags.FLAGS.pictures)
    write(Path(flags.FLAGS.out), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_integer("pictures", 64, "Pictures per relation and swap.", lower_bound=1)
    app.run(main, flags_parser=parse_flags)
