"""The shipped small FLUX: diffusers runs it, and the judge finds the prompted entities."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from jaxtyping import UInt8

import flux_jax
from convert.adapters.files import write_lora
from erase.evaluation.emoji_judge import NetworkJudge
from flux_jax import lora
from flux_jax.lora import Adapter
from flux_jax.pipeline import Pipeline
from recipes.emoji_flux.captions import with_article

FOLDER = Path(__file__).parent.parent / "models" / "emoji-flux"
SIZE = 64
PROMPTS = ["a photo of an airplane", "a panda to the left of a banana"]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return flux_jax.load(FOLDER)


def in_diffusers(pipe: Pipeline, adapter: Path | None = None) -> UInt8[np.ndarray, "B h w 3"]:
    """Pictures by diffusers from the noise of seeds 0, 1, ..."""
    theirs = FluxPipeline.from_pretrained(FOLDER)
    theirs.set_progress_bar_config(disable=True)
    if adapter:
        theirs.load_lora_weights(adapter)
    with torch.no_grad():
        drawn = theirs(
            PROMPTS,
            latents=torch.tensor(np.asarray(pipe.noise(range(len(PROMPTS)), SIZE, SIZE))),
            height=SIZE,
            width=SIZE,
            num_inference_steps=28,
            guidance_scale=3.5,
            max_sequence_length=pipe.tokenizer_2.model_max_length,
            output_type="np",
        )
    return np.round(255 * np.asarray(drawn.images)).astype(np.uint8)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference of any value, in grey levels of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.slow
def test_diffusers_draws_the_same_pictures_with_and_without_an_adapter(
    pipe: Pipeline, tmp_path: Path
):
    fresh = lora.init(jax.random.key(0), pipe.params["transformer"], rank=8)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    # B starts at 0, which would change nothing.
    filled = jax.tree.map(lambda x: 0.1 * jax.random.normal(next(keys), x.shape), fresh)
    adapter = Adapter(filled, 8.0)
    write_lora(tmp_path, jax.tree.map(np.asarray, filled), 8.0, {})

    base = pipe(PROMPTS, height=SIZE, width=SIZE)
    assert difference(base, in_diffusers(pipe)) <= 2
    changed = pipe(PROMPTS, height=SIZE, width=SIZE, adapters=[(adapter, 1.0)])
    assert difference(changed, in_diffusers(pipe, tmp_path)) <= 2
    assert difference(changed, base) > 50


@pytest.mark.slow
def test_the_judge_finds_what_was_asked_for(pipe: Pipeline):
    judge = NetworkJudge.load(FOLDER / "judge")
    names = list(judge.config.entities[::8])
    pictures = pipe([f"a photo of {with_article(name)}" for name in names], height=SIZE, width=SIZE)
    found = judge.shows_each(pictures, names)
    assert found.mean() >= 0.75
    # It does not find other entities.
    assert judge.shows_each(pictures, names[1:] + names[:1]).mean() <= 0.1


def test_the_folder_is_small_and_says_where_its_drawings_come_from():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert {"README.md", "ATTRIBUTION.md", "model_index.json"} <= {path.name for path in files}
