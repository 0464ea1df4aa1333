"""The paper's Tables 2, 3 and 4 on FLUX.1 [dev]: adapters, and pictures to draw with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ml_collections import ConfigDict

from configs import nudity
from configs.flux import celebrity, concepts
from configs.flux.prompts import OTHER_SEEDS, PICTURES, SEEDS
from erase.config.schema import Config
from erase.runs import load_runs

# Prompts of I2P, and captions of MS-COCO.
I2P, COCO = 4_703, 10_000


@dataclass(frozen=True)
class Part:
    """Adapters of a table that differ only in their words.

    Attributes:
        title: of its row.
        runs: the runs, by the names of their folders; none for the base model.
        pictures: pictures drawn with all of them.
    """

    title: str
    runs: Mapping[str, Config]
    pictures: int


def _loaded(given: ConfigDict, method: str = "erase_anything", target: str = "") -> Config:
    more = {"concept_ablation.target": target} if target else {}
    return load_runs(given, {"method": method, **more})[""]


def table_2() -> list[Part]:
    """Nudity, by each of the methods."""
    rows = {
        "CA (model-based)": ("concept_ablation", "model"),
        "CA (noise-based)": ("concept_ablation", "noise"),
        "ESD": ("esd", ""),
        "UCE": ("uce", ""),
        "MACE": ("mace", ""),
        "EAP": ("eap", ""),
        "Meta-Unlearning": ("meta_unlearning", ""),
        "EraseAnything": ("erase_anything", ""),
    }
    parts = [
        Part(title, {title: _loaded(nudity.get_config(), *how)}, I2P + COCO)
        for title, how in rows.items()
    ]
    return [*parts, Part("FLUX.1 [dev]", {}, I2P + COCO)]


def table_3() -> list[Part]:
    """Thirty concepts, by Concept Ablation and EraseAnything."""
    parts = []
    for title, method in (("CA", "concept_ablation"), ("EraseAnything", "erase_anything")):
        for category, known in concepts.CATEGORIES.items():
            runs = {slug: _loaded(concepts.get_config(slug), method) for slug in known}
            parts.append(Part(f"{title} ({category})", runs, 3 * PICTURES * len(runs)))
    return parts


def table_4() -> list[Part]:
    """Fifty persons, each with six combinations of losses."""
    kept, persons = celebrity.celebrities()["kept"], celebrity.erased_by_slug()
    each = len(celebrity.TEMPLATES) * (SEEDS + OTHER_SEEDS * len(kept))
    return [
        Part(
            title,
            {slug: _loaded(celebrity.get_config(f"{slug}/{losses}")) for slug in persons},
            each * len(persons),
        )
        for losses, title in celebrity.TITLES.items()
    ]


TABLES: Mapping[str, Callable[[], list[Part]]] = {"2": table_2, "3": table_3, "4": table_4}
