"""FLUX.2's Flax MMDiT against diffusers, part by part, in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.flux2_case import Flux2Case, position_ids
from helpers.flux_case import BATCH, assert_close, masks_of

from flux_jax.errors import InputError
from flux_jax.models.attention import rope_tables
from flux_jax.models.blocks import Shared
from flux_jax.models.flux2.transformer import (
    Flux2Config,
    Flux2DualStreamBlock,
    Flux2SingleStreamBlock,
    Flux2Transformer,
    Modulations,
)
from flux_jax.models.layers import MLP, Dense, Modulation, modulate, sinusoid
from flux_jax.weights.mapping import to_torch
from flux_jax.weights.tables import FLUX2_TRANSFORMER

# Their whole inputs: image, text, the vector of time and guidance, modulations in both forms.
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray, Modulations, dict[str, Any]]


def block_inputs(case: Flux2Case) -> Inputs:
    rng = np.random.default_rng(2)
    width, text, image = case.config.width, case.inputs["text"].shape[1], len(case.image_ids)

    def sample(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    conditioning, rotary = sample(BATCH, width), sample(0)
    ids = np.concatenate([case.text_ids.numpy(), case.image_ids])
    cos, sin = rope_tables(jnp.asarray(ids), case.config.axes_dims_rope, case.config.rope_theta)
    model, ours, theirs = case.torch_model, [], {}
    for name, count in (
        ("double_stream_modulation_img", 6),
        ("double_stream_modulation_txt", 6),
        ("single_stream_modulation", 3),
    ):
        layer = Modulation(count, bias=False)
        ours.append(layer.apply({"params": case.params[name]}, conditioning))
        theirs[name] = getattr(model, name)(torch.tensor(conditioning))
        assert_close(np.concatenate(ours[-1], axis=-1), theirs[name])
    rotary = model.pos_embed(torch.tensor(ids))
    shared = Modulations(*ours, Shared(jnp.asarray(conditioning), cos, sin, None, None))
    return (
        sample(BATCH, image, width),
        sample(BATCH, text, width),
        conditioning,
        shared,
        theirs | {"rotary": rotary},
    )


@torch.no_grad()
def test_embedders(case2: Flux2Case):
    model, params, x, width = case2.torch_model, case2.params, case2.inputs, case2.config.width
    total = MLP(width, width, "silu", bias=False).apply(
        {"params": params["time_embedder"]}, sinusoid(jnp.asarray(x["timestep"]))
    )
    reference = [torch.tensor(x["timestep"]) * 1000, None]
    if case2.config.guidance_embeds:
        total += MLP(width, width, "silu", bias=False).apply(
            {"params": params["guidance_embedder"]}, sinusoid(jnp.asarray(x["guidance"]))
        )
        reference[1] = torch.tensor(x["guidance"]) * 1000
    assert_close(total, model.time_guidance_embed(*reference))
    for name, data in (("x_embedder", x["latents"]), ("context_embedder", x["text"])):
        ours = Dense(width, bias=False).apply({"params": params[name]}, data)
        assert_close(ours, getattr(model, name)(torch.tensor(data)))


@torch.no_grad()
def test_rope_tables_of_large_positions(case2: Flux2Case):
    ids = np.array([[0, 0, 0, 511], [10, 63, 127, 0], [40, 255, 3, 0]], np.float32)
    cos, sin = rope_tables(jnp.asarray(ids), case2.config.axes_dims_rope, case2.config.rope_theta)
    theirs = case2.torch_model.pos_embed(torch.tensor(ids))
    # Half a unit in the last place of an angle of 511 rad is 1.5e-5 rad.
    assert_close(np.repeat(cos, 2, axis=-1), theirs[0], bound=4e-5)
    assert_close(np.repeat(sin, 2, axis=-1), theirs[1], bound=4e-5)


@pytest.mark.slow
@torch.no_grad()
def test_each_dual_stream_block(case2: Flux2Case):
    image, text, _, shared, theirs = block_inputs(case2)
    config = case2.config
    block = Flux2DualStreamBlock(config.num_attention_heads, config.hidden, None, jnp.float32)
    for index, reference in enumerate(case2.torch_model.transformer_blocks):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], case2.params["dual_blocks"])
        ours, _ = block.apply({"params": params}, (image, text), shared)
        wanted = reference(
            hidden_states=torch.tensor(image),
            encoder_hidden_states=torch.tensor(text),
            temb_mod_img=theirs["double_stream_modulation_img"],
            temb_mod_txt=theirs["double_stream_modulation_txt"],
            image_rotary_emb=theirs["rotary"],
        )
        assert_close(ours[0], wanted[1])
        assert_close(ours[1], wanted[0])


@pytest.mark.slow
@torch.no_grad()
def test_each_single_stream_block(case2: Flux2Case):
    image, text, _, shared, theirs = block_inputs(case2)
    config = case2.config
    block = Flux2SingleStreamBlock(config.num_attention_heads, config.hidden, None, jnp.float32)
    joined = np.concatenate([text, image], axis=1)
    for index, reference in enumerate(case2.torch_model.single_transformer_blocks):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], case2.params["single_blocks"])
        ours, _ = block.apply({"params": params}, joined, shared)
        wanted = reference(
            hidden_states=torch.tensor(joined),
            encoder_hidden_states=None,
            temb_mod=theirs["single_stream_modulation"],
            image_rotary_emb=theirs["rotary"],
        )
        assert_close(ours, wanted)


@torch.no_grad()
def test_final_layer(case2: Flux2Case):
    image, _, conditioning, _, _ = block_inputs(case2)
    params, model = case2.params, case2.torch_model
    scale, shift = Modulation(2, bias=False).apply({"params": params["norm_out"]}, conditioning)
    channels = case2.config.in_channels
    ours = Dense(channels, bias=False).apply(
        {"params": params["proj_out"]}, modulate(image, shift, scale)
    )
    theirs = model.proj_out(model.norm_out(torch.tensor(image), torch.tensor(conditioning)))
    assert_close(ours, theirs)


@torch.no_grad()
def test_whole_transformer(case2: Flux2Case):
    velocity, out = case2.apply()
    assert out == {}
    assert_close(velocity, case2.torch_model(**case2.torch_inputs()).sample)


@pytest.mark.slow
@torch.no_grad()
def test_reference_pictures_are_tokens_at_other_positions(case2: Flux2Case):
    """A reference picture's tokens come after the picture's, at t = 10."""
    reference = position_ids(2, 3)
    reference[:, 0] = 10
    ids = np.concatenate([case2.image_ids, reference])
    rng = np.random.default_rng(4)
    latents = rng.normal(size=(BATCH, len(ids), case2.config.in_channels)).astype(np.float32)
    _, *rest, _, guidance = case2.flax_arguments()
    ours, _ = Flux2Transformer(case2.config).apply(
        {"params": case2.params}, latents, *rest, ids, guidance
    )
    inputs = case2.torch_inputs() | {
        "hidden_states": torch.tensor(latents),
        "img_ids": torch.tensor(ids),
    }
    assert_close(ours, case2.torch_model(**inputs).sample)


@pytest.mark.slow
def test_attention_mass_equals_sums_of_weights_in_all_blocks(case2: Flux2Case):
    masks = masks_of(case2)
    weights = case2.apply(attention="weights")[1]
    mass = case2.apply(token_masks=masks)[1]
    text = masks.shape[1]
    for name, depth in (
        ("attention", case2.config.num_layers),
        ("single_attention", case2.config.num_single_layers),
    ):
        assert len(mass[name]) == depth
        np.testing.assert_allclose(np.sum(weights[name], axis=-1), 1, rtol=1e-5)
        assert_close(mass[name], np.einsum("lbhqt,btg->lbhqg", weights[name][..., :text], masks))


@pytest.mark.slow
def test_stop_after_dual_gives_the_same_attention_and_no_velocity(case2: Flux2Case):
    masks = masks_of(case2)
    velocity, out = case2.apply(token_masks=masks, stop_after="dual")
    assert velocity is None
    assert list(out) == ["attention"]
    np.testing.assert_array_equal(out["attention"], case2.apply(token_masks=masks)[1]["attention"])


@pytest.mark.slow
def test_silenced_tokens_count_nowhere(case2: Flux2Case):
    """With all text silenced, other text changes nothing but the text stream itself."""
    everything = np.ones(case2.inputs["text"].shape[:2], np.float32)
    velocity, _ = case2.apply(silenced=everything)
    assert np.all(np.isfinite(velocity))
    assert np.max(np.abs(velocity - case2.apply()[0])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case2", ["klein-16"], indirect=True)
def test_bfloat16_compute_stays_near_float32(case2: Flux2Case):
    half = Flux2Transformer(case2.config, dtype=jnp.bfloat16)
    velocity, _ = jax.jit(half.apply)({"params": case2.params}, *case2.flax_arguments())
    assert velocity is not None
    assert velocity.dtype == jnp.bfloat16
    exact = np.asarray(case2.apply()[0])
    assert np.linalg.norm(velocity.astype(np.float32) - exact) < 0.05 * np.linalg.norm(exact)


def test_all_tensors_go_to_pytorch_and_back(case2: Flux2Case):
    state = {name: tensor.numpy() for name, tensor in case2.torch_model.state_dict().items()}
    back = dict(to_torch(FLUX2_TRANSFORMER, case2.params))
    assert sorted(back) == sorted(state)
    for name, tensor in back.items():
        np.testing.assert_array_equal(np.asarray(tensor), state[name])


def test_guidance_must_fit_the_model(case2: Flux2Case):
    *arguments, guidance = case2.flax_arguments()
    wrong = np.ones(BATCH, np.float32) if guidance is None else None
    with pytest.raises(InputError, match="guidance"):
        Flux2Transformer(case2.config).apply({"params": case2.params}, *arguments, wrong)


def test_config_must_be_consistent(case2: Flux2Case):
    config = dict(case2.torch_model.config)
    assert Flux2Config.from_dict(config) == case2.config
    with pytest.raises(InputError, match=r"axes_dims_rope .* must sum to attention_head_dim"):
        Flux2Config.from_dict(config | {"axes_dims_rope": [2, 2, 2, 2]})
    with pytest.raises(InputError, match=r"axes_dims_rope .* must have 4 entries"):
        Flux2Config.from_dict(config | {"axes_dims_rope": [16, 56, 56]})
    with pytest.raises(InputError, match="timestep_guidance_channels"):
        Flux2Config.from_dict(config | {"timestep_guidance_channels": 128})
