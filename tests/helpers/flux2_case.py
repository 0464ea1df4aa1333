"""FLUX.2's MMDiT in PyTorch and in Flax with the same random weights, in several sizes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

from flux_jax.models.flux2.transformer import Flux2Config, Flux2Transformer
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.tables import FLUX2_TRANSFORMER
from helpers.flux_case import BATCH

SHAPES = {
    # depth of both streams, heads, head width, guidance, text tokens, image tokens, RoPE axes, base
    "klein-16": ((1, 3), 2, 16, False, 5, (3, 4), (4, 4, 4, 4), 2000),
    "guided-32": ((3, 1), 3, 32, True, 16, (4, 4), (8, 8, 8, 8), 2000),
    "klein-64": ((2, 2), 1, 64, False, 33, (2, 5), (0, 24, 24, 16), 500),
}
CHANNELS, TEXT_WIDTH = 12, 20


@partial(jax.jit, static_argnums=0, static_argnames=("attention", "stop_after"))
def run(config, variables, arguments, **options):
    return Flux2Transformer(config).apply(variables, *arguments, **options)


@dataclass
class Flux2Case:
    torch_model: Any
    config: Flux2Config
    params: Any
    inputs: dict[str, np.ndarray]
    image_ids: np.ndarray

    @property
    def text_ids(self):
        ids = torch.zeros(self.inputs["text"].shape[1], 4)
        ids[:, 3] = torch.arange(len(ids))
        return ids

    def torch_inputs(self):
        guidance = torch.tensor(self.inputs["guidance"]) if self.config.guidance_embeds else None
        return dict(
            hidden_states=torch.tensor(self.inputs["latents"]),
            encoder_hidden_states=torch.tensor(self.inputs["text"]),
            timestep=torch.tensor(self.inputs["timestep"]),
            img_ids=torch.tensor(self.image_ids),
            txt_ids=self.text_ids,
            guidance=guidance,
        )

    def flax_arguments(self):
        guidance = self.inputs["guidance"] if self.config.guidance_embeds else None
        parts = [self.inputs[name] for name in ("latents", "text", "timestep")]
        return (*parts, self.image_ids, guidance)

    def apply(self, lora_tree=None, **options):
        variables = {"params": self.params} | ({} if lora_tree is None else {"lora": lora_tree})
        return run(self.config, variables, self.flax_arguments(), **options)


def randomise_norms(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm_" in name and tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))


def position_ids(height: int, width: int) -> np.ndarray:
    ids = np.zeros((height, width, 4), np.float32)
    ids[..., 1] = np.arange(height)[:, None]
    ids[..., 2] = np.arange(width)[None]
    return ids.reshape(-1, 4)


@pytest.fixture(scope="module", params=list(SHAPES))
def case2(request) -> Flux2Case:
    depths, heads, dim, guided, tokens, grid, axes, base = SHAPES[request.param]
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(
        in_channels=CHANNELS,
        num_layers=depths[0],
        num_single_layers=depths[1],
        attention_head_dim=dim,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        guidance_embeds=guided,
        axes_dims_rope=axes,
        rope_theta=base,
    ).eval()
    randomise_norms(model)
    config = Flux2Config.from_dict(dict(model.config))
    rng = np.random.default_rng(1)
    ids = position_ids(*grid)
    inputs = {
        "latents": rng.normal(size=(BATCH, len(ids), CHANNELS)),
        "text": rng.normal(size=(BATCH, tokens, TEXT_WIDTH)),
        "timestep": np.array([0.731, 0.05]),
        "guidance": np.array([4.0, 1.25]),
    }
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    case = Flux2Case(model, config, None, inputs, ids)
    shapes = jax.eval_shape(
        Flux2Transformer(config).init, jax.random.key(0), *case.flax_arguments()
    )["params"]
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    case.params = to_flax(FLUX2_TRANSFORMER, state, shapes)
    return case
