"""Adapters in every layout that diffusers loads change its velocity as they change ours."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils, lora_pipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from helpers.adapters import only, random_layers, shapes_in
from helpers.flux_case import assert_close

import flux_jax
from convert.adapters.files import read_lora, write_layers
from convert.adapters.names import label
from flux_jax.lora import Adapter
from flux_jax.models.transformer import FluxTransformer

SHIPPED = Path(__file__).parent.parent / "models" / "emoji-flux"
LAYOUTS = ("diffusers", "kohya", "original")
TEXT = ("add_q_proj", "add_k_proj")
FLUX_1 = "[3072, 3072, 3072, 12288]"


@pytest.fixture(scope="module", params=["tiny", pytest.param("shipped", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tiny_folder: Path) -> Path:
    return tiny_folder if request.param == "tiny" else SHIPPED


@pytest.fixture
def any_width(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers splits `linear1` at FLUX.1's widths: patch in those of the model in the folder."""
    width = shapes_in(folder)["single_blocks/attn/to_q", 0][0]
    source = inspect.getsource(lora_conversion_utils._convert_kohya_flux_lora_to_diffusers)
    assert source.count(FLUX_1) == 1
    names: dict[str, Any] = dict(vars(lora_conversion_utils))
    exec(source.replace(FLUX_1, str([width, width, width, 4 * width])), names)
    name = "_convert_kohya_flux_lora_to_diffusers"
    monkeypatch.setattr(lora_pipeline, name, names[name])


def inputs_of(config: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    image_ids = torch.zeros(4, 3)
    image_ids[:, 1], image_ids[:, 2] = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    return {
        "hidden_states": noise(1, 4, config.in_channels),
        "encoder_hidden_states": noise(1, 5, config.joint_attention_dim),
        "pooled_projections": noise(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": image_ids,
        "txt_ids": torch.zeros(5, 3),
    }


def pipeline_of(folder: Path) -> FluxPipeline:
    """Diffusers' pipeline with its transformer alone, which is all that the files change."""
    others = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return FluxPipeline.from_pretrained(folder, **dict.fromkeys(others))


@torch.no_grad()
def theirs(folder: Path, file: Path | None = None) -> torch.Tensor:
    """The velocity of diffusers' pipeline after loading the file."""
    pipeline = pipeline_of(folder)
    if file:
        pipeline.load_lora_weights(file)
    return pipeline.transformer(**inputs_of(pipeline.transformer.config)).sample


@partial(jax.jit, static_argnames="transformer")
def velocity(transformer: FluxTransformer, variables: Any, inputs: Any) -> jax.Array:
    return transformer.apply(variables, *inputs)[0]


def ours(folder: Path, file: Path) -> np.ndarray:
    """The velocity of this project with the file's adapter."""
    pipe = flux_jax.load(folder, dtype=jnp.float32)
    adapter = Adapter(*read_lora(file))
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections")
    names += ("timestep", "img_ids", "guidance")
    inputs = inputs_of(pipe.transformer.config)
    variables = {"params": pipe.params["transformer"], "lora": pipe.adapted([(adapter, 1.0)])}
    return np.asarray(velocity(pipe.transformer, variables, [inputs[n].numpy() for n in names]))


@pytest.mark.parametrize("targets", [TEXT, ("blocks",)], ids=["text", "all"])
@pytest.mark.usefixtures("any_width")
@pytest.mark.slow
def test_diffusers_gives_our_velocity_from_each_layout(folder, tmp_path, targets):
    shapes = {place: shape for place, shape in shapes_in(folder).items() if place[1] is not None}
    layers = only(random_layers(shapes, alphas=(6.0,), size=0.1), targets)
    files = {name: write_layers(tmp_path / name, name, layers) for name in LAYOUTS}
    expected = ours(folder, files["kohya"])
    base = theirs(folder)
    assert np.abs(expected - base.numpy()).max() > 0.1 * base.abs().max()
    for layout in LAYOUTS:
        assert_close(expected, theirs(folder, files[layout]))


@torch.no_grad()
@pytest.mark.usefixtures("any_width")
@pytest.mark.parametrize(
    ("targets", "blocks"),
    [
        (("blocks",), (0, 1, 2)),
        (("to_q", "add_k", "proj_mlp"), (0, 1, 2)),
        (("to_v",), (1,)),
        (("x_embed", "context_embed", "pooled_embed", "norm_out", "attn/to_q"), (None, 1)),
    ],
    ids=["blocks", "some", "one-block", "outside"],
)
@pytest.mark.slow
def test_layers_of_different_ranks_and_alphas_keep_their_change(folder, tmp_path, targets, blocks):
    shapes = {place: shape for place, shape in shapes_in(folder).items() if place[1] in blocks}
    layers = only(random_layers(shapes, ranks=(2, 3), alphas=(1, 5, 2), size=0.1), targets)
    merged = pipeline_of(folder).transformer
    weights = dict(merged.named_parameters())
    for place, pair in layers.items():
        change = float(pair.alpha) / pair.rank * pair.up @ pair.down
        weights[f"{label(place)}.weight"] += torch.tensor(change)
    expected = merged(**inputs_of(merged.config)).sample
    for layout in LAYOUTS:
        file = write_layers(tmp_path / layout, layout, layers)
        assert_close(ours(folder, file), expected)
        # Outside the blocks diffusers reads only its own layout.
        if layout == "diffusers" or None not in blocks:
            assert_close(theirs(folder, file).numpy(), expected)
