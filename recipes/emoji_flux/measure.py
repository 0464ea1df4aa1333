"""Measure how well the model follows its prompts: the judge on the model's own samples.

Axis letters: B pictures, h w picture sides, E entities, S styles.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8

from erase.evaluation.emoji_judge import THRESHOLD, NetworkJudge
from erase.evaluation.statistics import wilson_interval
from erase.model.draw import draw, png, sheet
from erase.runtime.files import write
from flux_jax.pipeline import Pipeline
from flux_jax.settings import SamplingOptions
from recipes.emoji_flux.captions import RELATED, misspell, plural, shuffle, with_article
from recipes.emoji_flux.world import ENTITIES, RELATIONS, STYLES

SIZE = 64
# Separate from all other seeds.
FIRST_SEED = 5_000_000
SHEET = 12


@dataclass(frozen=True)
class Probe:
    """A prompt and what its picture has to show.

    Attributes:
        group: the table it counts for.
        name: the class within the table.
        prompt: of the picture.
        entities: indices of the entities that must be shown.
        style: index, or None if any style is correct.
        relation: subject, object and relation, or None.
    """

    group: str
    name: str
    prompt: str
    entities: tuple[int, ...] = ()
    style: int | None = None
    relation: tuple[int, int, int] | None = None


def probes(per_class: int, available: Bool[np.ndarray, "E S"] | None = None) -> Iterator[Probe]:
    """All prompts: every entity, style and relation `per_class` times, and harder ones.

    Args:
        per_class: prompts per class; styles and relations, which are few, get ten times as many.
        available: whether each entity has a drawing in each style; None if all have.
    """
    rng = np.random.default_rng(0)
    for index, entity in enumerate(ENTITIES):
        for number in range(per_class):
            said = with_article(entity.name)
            yield Probe("entity", entity.name, f"a photo of {said}", (index,))
            if entity.synonyms:
                synonym = entity.synonyms[number % len(entity.synonyms)]
                prompt = f"a photo of {with_article(synonym)}"
                yield Probe("synonym", entity.name, prompt, (index,))
            wrong = misspell(rng, entity.name)
            yield Probe("misspelt", entity.name, f"a photo of {with_article(wrong)}", (index,))
            mixed = shuffle(rng, f"a photo of {said}")
            yield Probe("shuffled", entity.name, mixed, (index,))
    for number in range(10 * per_class):
        for index, style in enumerate(STYLES):
            drawable = np.flatnonzero(available[:, index]) if available is not None else None
            entity = int(rng.choice(len(ENTITIES) if drawable is None else drawable))
            prompt = f"{with_article(ENTITIES[entity].name)} in the style of {style}"
            yield Probe("style", style, prompt, style=index)
        for index, relation in enumerate(RELATIONS):
            first, second = (int(i) for i in rng.choice(len(ENTITIES), 2, replace=False))
            template = RELATED[relation][number % len(RELATED[relation])]
            x, y = (ENTITIES[i].name for i in (first, second))
            prompt = template.format(x=with_article(x), y=with_article(y), ys=plural(y))
            yield Probe("relation", relation, prompt, relation=(first, second, index))
        first, second = (int(i) for i in rng.choice(len(ENTITIES), 2, replace=False))
        x, y = (with_article(ENTITIES[i].name) for i in (first, second))
        yield Probe("two objects", "both", f"{x} and {y}", (first, second))


def correct(
    judge: NetworkJudge, pictures: UInt8[np.ndarray, "B h w 3"], asked: list[Probe]
) -> Bool[np.ndarray, "B"]:
    """Whether each picture shows everything that its probe requires."""
    verdict = judge(pictures)
    shown = np.asarray(jax.nn.sigmoid(verdict.entities)) > THRESHOLD
    style = np.asarray(verdict.style).argmax(-1)
    triples = np.array([probe.relation or (0, 0, -1) for probe in asked])
    relation = judge.relation(pictures, triples[:, 0], triples[:, 1]).argmax(-1)
    return np.array(
        [
            all(shown[i, entity] for entity in probe.entities)
            and probe.style in (None, style[i])
            and (probe.relation is None or relation[i] == probe.relation[2])
            for i, probe in enumerate(asked)
        ]
    )


def without_pooled(pipe: Pipeline) -> Pipeline:
    """Zero the pooled vector, so that content comes only through the joint attention.

    The pooled vector is the output of CLIP's final norm, whose scale and bias become 0.
    """
    encoder = dict(pipe.params["text_encoder"])
    encoder["final_norm"] = jax.tree.map(jnp.zeros_like, encoder["final_norm"])
    return replace(pipe, params={**pipe.params, "text_encoder": encoder})


def of_group(names: Sequence[str], hits: Bool[np.ndarray, "N"]) -> dict[str, Any]:
    """The `accuracy` of a group's probes, and of each of its `classes` by name."""
    classes: dict[str, list[bool]] = defaultdict(list)
    for name, hit in zip(names, hits, strict=True):
        classes[name].append(bool(hit))
    return {
        "accuracy": wilson_interval(int(hits.sum()), len(names)),
        "classes": {name: float(np.mean(each)) for name, each in classes.items()},
    }


def measure(
    pipe: Pipeline,
    judge: NetworkJudge,
    out: Path,
    *,
    per_class: int = 4,
    available: Bool[np.ndarray, "E S"] | None = None,
    steps: int = 28,
    guidance: float = 3.5,
    batch: int = 256,
) -> dict[str, Any]:
    """Measure the accuracy of the model's own samples, by group and class.

    Writes `measure.json` to `out` and, for every group, a contact sheet of evenly spaced pictures.

    Args:
        pipe: the model.
        judge: knows the entities, styles and relations of `world`, in that order.
        out: output folder.
        per_class: see `probes`.
        available: see `probes`.
        steps: Euler steps.
        guidance: distilled guidance scale.
        batch: pictures generated at once.

    Returns:
        For every group `accuracy` (a share with its interval) and `classes` (shares by name). The
        group "entity, no pooled vector" repeats the prompts and seeds of "entity".
    """
    asked = list(probes(per_class, available))
    seeds = range(FIRST_SEED, FIRST_SEED + len(asked))
    entity = [i for i, probe in enumerate(asked) if probe.group == "entity"]
    blind = [replace(asked[i], group="entity, no pooled vector") for i in entity]
    results: dict[str, Any] = {}
    for model, part, noise in (
        (pipe, asked, seeds),
        (without_pooled(pipe), blind, [seeds[i] for i in entity]),
    ):
        pictures = draw(
            model,
            [probe.prompt for probe in part],
            noise,
            SamplingOptions(steps, guidance, SIZE, SIZE, batch),
            title="measuring",
        )
        hits = correct(judge, pictures, part)
        for group in dict.fromkeys(probe.group for probe in part):
            rows = [i for i, probe in enumerate(part) if probe.group == group]
            results[group] = of_group([part[i].name for i in rows], hits[rows])
            shown = min(len(rows), SHEET**2)
            spread = [rows[i] for i in np.linspace(0, len(rows) - 1, shown, dtype=int)]
            write(
                out / f"{group.replace(', ', '-').replace(' ', '-')}.png",
                png(sheet(pictures[spread], SHEET)),
            )
    settings = {"per_class": per_class, "steps": steps, "guidance": guidance}
    write(out / "measure.json", json.dumps({"settings": settings, **results}, indent=2) + "\n")
    return results
