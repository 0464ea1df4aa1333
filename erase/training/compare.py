"""Train the same concepts with several methods, and compare erasure, time, memory and size.

`erase.cli.compare` describes what is compared, and how.
Axis letters: N pictures, F features.
"""

import base64
import functools
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Float

from erase.attacks import disguises
from erase.config.schema import Config
from erase.evaluation import evaluate, statistics
from erase.evaluation.eval_prompts import (
    EvalPrompt,
    base_settings,
    configured_judge,
    draw_cases,
    judge_pictures,
)
from erase.evaluation.judge import Judge
from erase.evaluation.statistics import wilson_interval
from erase.methods import method_of
from erase.model.open import open_model
from erase.runtime.cache import Cache, digest_of
from erase.runtime.files import write
from erase.runtime.results import AdapterSize, ComparedRow, Comparison, MethodResult
from erase.runtime.run_folder import PICTURES
from erase.training import memory_plan
from erase.training.export import write_adapter
from erase.training.prepare import runs_with_synonyms, shared_settings
from erase.training.variants import (
    Intermediate,
    resume_results,
    runs_digest,
    train_variant,
    unmeasured,
)
from flux_jax import progress
from flux_jax.errors import InputError
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline

KEPT = "Acc_ir"


# Features of a run's pictures to preserve, before and after erasing.
Features = tuple[Float[np.ndarray, "N F"], Float[np.ndarray, "N F"]]
# Of the frozen model, by concept: the judge's hits, and features of the pictures to preserve.
Base = dict[str, tuple[np.ndarray, np.ndarray]]


def seeded(runs: Mapping[str, Config], seeds: int) -> dict[str, Config]:
    """Repeat each run for the seeds 0, 1, ..., with the seed appended to its name."""
    return {
        f"{name or 'run'}-{seed}": replace(config, seed=seed)
        for name, config in runs.items()
        for seed in range(seeds)
    }


def compare(
    methods: Mapping[str, Mapping[str, Config]], out: Path, attacks: int = 32
) -> Comparison:
    """Measure the methods that the file does not contain yet; resumes after an interruption.

    Adapters, counts and batches of pictures are saved in a folder beside the file, which is named
    like it with `.cache`, until all methods are measured.

    Args:
        methods: the runs of each method, by method and run.
        out: JSON file of the results.
        attacks: number of pictures of each family of attacks.

    Returns:
        Content of the file: the device, and the measurements of each method, with a row for each
        run.

    Raises:
        InputError: there is no judge, a setting cannot be used, or the file contains a comparison
            of other runs or another model.
        PreemptedError: the system requested a stop; everything so far is saved.
    """
    runs = next(iter(methods.values()))
    first = shared_settings(runs)
    if first.evaluation.judge is None:
        raise InputError("evaluation.judge = None: a comparison needs a judge; name its folder")
    settings = first.evaluation
    head = {
        "runs": {name: config.concept for name, config in runs.items()},
        "pictures": settings.pictures,
        "attacks": attacks,
        "model": first.model.path,
    }
    result = resume_results(Comparison, out, head, "methods", "comparison")
    fresh = unmeasured(out, result["methods"], methods)
    if not fresh:
        return result
    for config in runs.values():
        configured_judge(config)
    for name, config in runs_with_synonyms(runs).items():
        if not config.synonyms:
            raise InputError(f"{name}: synonyms = (): Acc_g is measured with synonyms; name some")
    every = {f"{m} {n}": c for m, configs in methods.items() for n, c in configs.items()}
    intermediate = Intermediate.of(out, cast(dict[str, Any], result), every)
    pipe = open_model(first)
    intermediate.repeat_encoding(pipe)
    base: Base = {}
    for name, settings_written in progress.bar(fresh.items(), desc="methods"):
        measured = measure(pipe, runs_with_synonyms(methods[name]), base, attacks, intermediate)
        result["methods"][name] = {**measured, "settings": settings_written}
        result["device"] = jax.devices()[0].device_kind or platform.machine()
        result["jax"] = jax.__version__
        write(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    intermediate.remove()
    return result


def measure(
    pipe: Pipeline,
    configs: Mapping[str, Config],
    base: Base,
    attacks: int,
    intermediate: Intermediate,
) -> MethodResult:
    """Train a method's adapters, generate pictures and count the judge's hits.

    Args:
        pipe: the frozen model.
        configs: configurations of the runs by name, with their synonyms.
        base: results of the frozen model; extended in place, so that each is computed only once.
        attacks: number of pictures of each family of attacks.
        intermediate: saves what is done.
    """
    first = shared_settings(configs)
    adapters: Mapping[str, Adapter] = {}
    seconds, needed = 0.0, 0
    if method_of(first).exports is not None:
        adapters, _, seconds = train_variant(configs, pipe, intermediate)
        needed = memory_plan.of_a_run(configs, pipe)
    rows: list[ComparedRow] = []
    features_of: dict[int, list[Features]] = {}
    counts = intermediate.part("counts", [runs_digest(configs), attacks])
    for name, config in configs.items():
        adapter, cache = adapters.get(name), counts.part(name)
        base_of(pipe, config, base, intermediate)
        drawn = cache.part(PICTURES)
        counted = functools.partial(count, pipe, adapter, config, base, attacks, drawn)
        row, features = saved_count(pipe, cache, intermediate, counted)
        rows.append({"name": name, **row})
        features_of.setdefault(config.seed, []).append(features)
    distances = [
        statistics.frechet_distance(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
        for pairs in features_of.values()
    ]
    hits, pictures = (sum(row["attacks"][key] for row in rows) for key in ("found", "of"))
    return {
        "title": method_of(first).title,
        "cells": statistics.pooled(row["cells"] for row in rows),
        "intervals": statistics.over_concepts(rows),
        "attacks": wilson_interval(hits, pictures),
        "frechet": {"mean": float(np.mean(distances)), "seeds": distances},
        **size_of(adapters, first, intermediate.root / "size"),
        "seconds": round(seconds / len(configs), 2),
        "memory": needed,
        "rows": rows,
    }


def saved_count(
    pipe: Pipeline,
    cache: Cache,
    intermediate: Intermediate,
    counted: Callable[[], tuple[ComparedRow, Features]],
) -> tuple[ComparedRow, Features]:
    """Return a run's row and features, from the cache if they are there."""

    def made() -> dict[str, Any]:
        row, features = counted()
        intermediate.save_encoding(pipe)
        return {"row": row, "features": [to_json(side) for side in features]}

    saved = cache.value("row", made)
    cache.part(PICTURES).remove()
    before, after = map(from_json, saved["features"])
    return saved["row"], (before, after)


def base_of(pipe: Pipeline, config: Config, base: Base, intermediate: Intermediate) -> None:
    """Add a concept's results of the frozen model to `base`, unless they are there."""
    if config.concept in base:
        return
    judge, prompts = evaluate.plan_evaluation(config, pipe)
    assert judge is not None, "checked by compare"
    # Of all concepts, so that none is removed before the comparison is finished.
    cache = intermediate.part("base", None).part(
        digest_of([base_settings(config), [asdict(case) for case in prompts]])
    )
    pictures_cache = cache.part(PICTURES)

    def made() -> list[dict[str, Any]]:
        title = f"of {config.concept}, before"
        pictures = draw_cases(pipe, prompts, config, [], title, None, pictures_cache)
        intermediate.save_encoding(pipe)
        return [to_json(values) for values in _seen(judge, pictures, prompts)]

    hits, features = map(from_json, cache.value("base", made))
    pictures_cache.remove()
    base[config.concept] = hits, features


def _seen(
    judge: Judge, pictures: np.ndarray, prompts: Sequence[EvalPrompt]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the judge's hits, and features of the pictures to preserve."""
    rows = [index for index, case in enumerate(prompts) if case.cell == KEPT]
    return judge_pictures(judge, pictures, prompts), judge.features(pictures[rows])


def to_json(values: np.ndarray) -> dict[str, Any]:
    """Convert an array to JSON types, without rounding."""
    content = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "content": content}


def from_json(saved: Mapping[str, Any]) -> np.ndarray:
    """Convert the result of `to_json` back."""
    content = base64.b64decode(saved["content"])
    return np.frombuffer(content, saved["dtype"]).reshape(saved["shape"])


def count(
    pipe: Pipeline,
    adapter: Adapter | None,
    config: Config,
    base: Base,
    attacks: int,
    cache: Cache | None = None,
) -> tuple[ComparedRow, Features]:
    """Count the judge's hits in a run's pictures, and compute features of those to preserve.

    Args:
        pipe: the frozen model.
        adapter: the run's adapter; with None, the concept's tokens are muted instead.
        config: the run's configuration, with its synonyms.
        base: results of the frozen model, with those of the concept.
        attacks: number of pictures of each family of attacks.
        cache: saves each batch of pictures.

    Returns:
        The run's row, and the features before and after erasing.
    """
    judge, prompts = evaluate.plan_evaluation(config, pipe)
    assert judge is not None, "checked by compare"
    before, features = base[config.concept]
    asked = disguises.attacks(config, attacks, ordered=judge.kind(config.concept) == "relation")
    pairs = [(adapter, config.evaluation.strength)] if adapter else []
    silenced = None if adapter else config.concept
    # All in one call, for few and full batches.
    cases, title = [*prompts, *asked], f"of {config.concept}, after"
    pictures = draw_cases(pipe, cases, config, pairs, title, silenced, cache)
    after, changed = _seen(judge, pictures[: len(prompts)], prompts)
    hits = judge_pictures(judge, pictures[len(prompts) :], asked)
    sides = {"before": before, "after": after}
    row: ComparedRow = {
        "concept": config.concept,
        "kind": judge.kind(config.concept),
        "seed": config.seed,
        "cells": evaluate.evaluation_cells(prompts, sides),
        "synonyms": evaluate.by_synonym(prompts, sides),
        "attacks": wilson_interval(int(hits.sum()), len(asked)),
    }
    return row, (features, changed)


def size_of(adapters: Mapping[str, Adapter], config: Config, folder: Path) -> AdapterSize:
    """Return the number of trainable parameters and the bytes on disk of one adapter.

    Args:
        adapters: adapters of a method.
        config: configuration of any of its runs.
        folder: folder for temporary files.
    """
    if not adapters:
        return {"parameters": 0, "bytes": 0}
    adapter = next(iter(adapters.values()))
    size = write_adapter(adapter, config, folder).stat().st_size
    return {"parameters": sum(leaf.size for leaf in jax.tree.leaves(adapter.lora)), "bytes": size}
