"""The MMDiT in PyTorch and in Flax with the same random weights, in several sizes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from flux_jax.models.transformer import FluxConfig, FluxTransformer
from flux_jax.weights.mapping import to_flax
from flux_jax.weights.tables import TRANSFORMER

SHAPES = {
    # depth of both streams, heads, head width, guidance, text tokens, image tokens, RoPE axes
    "guided-16": ((1, 3), 2, 16, True, 5, (3, 4), (4, 6, 6)),
    "plain-32": ((3, 1), 3, 32, False, 16, (4, 4), (8, 12, 12)),
    "guided-64": ((2, 2), 1, 64, True, 33, (2, 5), (0, 32, 32)),
}
BATCH = 2


@partial(jax.jit, static_argnums=0, static_argnames=("attention", "stop_after"))
def run(config, variables, arguments, token_masks, **options):
    model = FluxTransformer(config)
    return model.apply(variables, *arguments, token_masks=token_masks, **options)


@dataclass
class Case:
    torch_model: Any
    config: FluxConfig
    params: Any
    inputs: dict[str, np.ndarray]
    image_ids: np.ndarray

    def torch_inputs(self):
        ids = torch.zeros(self.inputs["text"].shape[1], 3)
        guidance = torch.tensor(self.inputs["guidance"]) if self.config.guidance_embeds else None
        return dict(
            hidden_states=torch.tensor(self.inputs["latents"]),
            encoder_hidden_states=torch.tensor(self.inputs["text"]),
            pooled_projections=torch.tensor(self.inputs["pooled"]),
            timestep=torch.tensor(self.inputs["timestep"]),
            img_ids=torch.tensor(self.image_ids),
            txt_ids=ids,
            guidance=guidance,
        )

    def flax_arguments(self):
        guidance = self.inputs["guidance"] if self.config.guidance_embeds else None
        parts = [self.inputs[name] for name in ("latents", "text", "pooled", "timestep")]
        return (*parts, self.image_ids, guidance)

    def apply(self, lora_tree=None, token_masks=None, attention=None, stop_after=None):
        variables = {"params": self.params} | ({} if lora_tree is None else {"lora": lora_tree})
        arguments = (variables, self.flax_arguments(), token_masks)
        return run(self.config, *arguments, attention=attention, stop_after=stop_after)


@pytest.fixture(scope="module", params=list(SHAPES))
def case(request) -> Case:
    depths, heads, dim, guided, tokens, (height, width), axes = SHAPES[request.param]
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=8,
        num_layers=depths[0],
        num_single_layers=depths[1],
        attention_head_dim=dim,
        num_attention_heads=heads,
        joint_attention_dim=20,
        pooled_projection_dim=12,
        guidance_embeds=guided,
        axes_dims_rope=axes,
    ).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias") or "norm_" in name:
                tensor.add_(0.3 * torch.randn_like(tensor))
    config = FluxConfig.from_dict(dict(model.config))
    rng = np.random.default_rng(1)
    ids = np.zeros((height, width, 3), np.float32)
    ids[..., 1] = np.arange(height)[:, None]
    ids[..., 2] = np.arange(width)[None]
    ids = ids.reshape(-1, 3)
    inputs = {
        "latents": rng.normal(size=(BATCH, len(ids), 8)),
        "text": rng.normal(size=(BATCH, tokens, 20)),
        "pooled": rng.normal(size=(BATCH, 12)),
        "timestep": np.array([0.731, 0.05]),
        "guidance": np.array([3.5, 1.25]),
    }
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    flax_model = FluxTransformer(config)
    guidance = inputs["guidance"] if config.guidance_embeds else None
    shapes = jax.eval_shape(
        flax_model.init,
        jax.random.key(0),
        *(inputs[name] for name in ("latents", "text", "pooled", "timestep")),
        ids,
        guidance,
    )["params"]
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return Case(model, config, to_flax(TRANSFORMER, state, shapes), inputs, ids)


def assert_close(ours, reference, bound=2e-5):
    reference = reference.detach().numpy() if isinstance(reference, torch.Tensor) else reference
    assert ours.shape == reference.shape
    assert np.max(np.abs(np.asarray(ours) - reference)) <= bound * np.max(np.abs(reference))


def masks_of(case, seed=3):
    text = case.inputs["text"].shape[1]
    rng = np.random.default_rng(seed)
    return (rng.random((BATCH, text, 3)) < 0.4).astype(np.float32)
