"""The Flax MMDiT against diffusers, part by part, in float32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from helpers.flux_case import BATCH, assert_close, masks_of

from flux_jax import lora
from flux_jax.errors import InputError
from flux_jax.models.attention import rope_tables
from flux_jax.models.blocks import DualStreamBlock, Shared, SingleStreamBlock
from flux_jax.models.layers import MLP, Dense, Modulation, modulate, sinusoid
from flux_jax.models.transformer import FluxConfig, FluxTransformer


@pytest.mark.slow
@torch.no_grad()
def test_embedders(case):
    model, params, x = case.torch_model, case.params, case.inputs
    width = case.config.width
    time = MLP(width, width, "silu").apply(
        {"params": params["time_embedder"]}, sinusoid(jnp.asarray(x["timestep"]))
    )
    embed = model.time_text_embed
    sinusoids = embed.time_proj(torch.tensor(x["timestep"]) * 1000)
    # One unit in the last place of a frequency is 6e-5 rad at an angle of 1000 rad.
    assert_close(sinusoid(jnp.asarray(x["timestep"])), sinusoids, bound=6e-5)
    assert_close(time, embed.timestep_embedder(sinusoids))
    pooled = MLP(width, width, "silu").apply({"params": params["pooled_embedder"]}, x["pooled"])
    assert_close(pooled, embed.text_embedder(torch.tensor(x["pooled"])))
    total = time + pooled
    reference = (torch.tensor(x["timestep"]) * 1000, torch.tensor(x["pooled"]))
    if case.config.guidance_embeds:
        total += MLP(width, width, "silu").apply(
            {"params": params["guidance_embedder"]}, sinusoid(jnp.asarray(x["guidance"]))
        )
        reference = (reference[0], torch.tensor(x["guidance"]) * 1000, reference[1])
    assert_close(total, embed(*reference))
    for ours, theirs, data in (
        ("x_embedder", model.x_embedder, x["latents"]),
        ("context_embedder", model.context_embedder, x["text"]),
    ):
        assert_close(Dense(width).apply({"params": params[ours]}, data), theirs(torch.tensor(data)))


@torch.no_grad()
def test_rope_tables_of_large_positions(case):
    ids = np.array([[0, 0, 0], [1, 63, 127], [0, 255, 3]], np.float32)
    cos, sin = rope_tables(jnp.asarray(ids), case.config.axes_dims_rope)
    theirs = case.torch_model.pos_embed(torch.tensor(ids))
    assert_close(np.repeat(cos, 2, axis=-1), theirs[0])
    assert_close(np.repeat(sin, 2, axis=-1), theirs[1])


def blocks_inputs(case):
    rng = np.random.default_rng(2)
    width, text, image = case.config.width, case.inputs["text"].shape[1], len(case.image_ids)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return draw(BATCH, image, width), draw(BATCH, text, width), draw(BATCH, width)


def shared_of(case, conditioning):
    ids = np.concatenate([np.zeros((case.inputs["text"].shape[1], 3), np.float32), case.image_ids])
    cos, sin = rope_tables(jnp.asarray(ids), case.config.axes_dims_rope)
    return Shared(conditioning, cos, sin, None, None), case.torch_model.pos_embed(torch.tensor(ids))


@torch.no_grad()
@pytest.mark.slow
def test_each_dual_stream_block(case):
    image, text, conditioning = blocks_inputs(case)
    shared, rotary = shared_of(case, conditioning)
    for index, block in enumerate(case.torch_model.transformer_blocks):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], case.params["dual_blocks"])
        ours, _ = DualStreamBlock(case.config.num_attention_heads, None, jnp.float32).apply(
            {"params": params}, (image, text), shared
        )
        theirs = block(
            hidden_states=torch.tensor(image),
            encoder_hidden_states=torch.tensor(text),
            temb=torch.tensor(conditioning),
            image_rotary_emb=rotary,
        )
        assert_close(ours[0], theirs[1])
        assert_close(ours[1], theirs[0])


@pytest.mark.slow
@torch.no_grad()
def test_each_single_stream_block(case):
    image, text, conditioning = blocks_inputs(case)
    shared, rotary = shared_of(case, conditioning)
    for index, block in enumerate(case.torch_model.single_transformer_blocks):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], case.params["single_blocks"])
        ours, _ = SingleStreamBlock(case.config.num_attention_heads, jnp.float32).apply(
            {"params": params}, np.concatenate([text, image], axis=1), shared
        )
        theirs = block(
            hidden_states=torch.tensor(image),
            encoder_hidden_states=torch.tensor(text),
            temb=torch.tensor(conditioning),
            image_rotary_emb=rotary,
        )
        assert_close(ours, torch.cat(theirs, dim=1))


@torch.no_grad()
def test_final_layer(case):
    image, _, conditioning = blocks_inputs(case)
    scale, shift = Modulation(2).apply({"params": case.params["norm_out"]}, conditioning)
    ours = Dense(8).apply({"params": case.params["proj_out"]}, modulate(image, shift, scale))
    model = case.torch_model
    theirs = model.proj_out(model.norm_out(torch.tensor(image), torch.tensor(conditioning)))
    assert_close(ours, theirs)


@torch.no_grad()
def test_whole_transformer(case):
    velocity, out = case.apply()
    assert out == {}
    assert_close(velocity, case.torch_model(**case.torch_inputs()).sample)


@torch.no_grad()
def torch_attention(case):
    """Joint attention of every dual-stream block, written out."""
    found = []

    def write_out(block, arguments):
        image, text = arguments["hidden_states"], arguments["encoder_hidden_states"]
        attn, heads = block.attn, case.config.num_attention_heads
        image = block.norm1(image, emb=arguments["temb"])[0]
        text = block.norm1_context(text, emb=arguments["temb"])[0]
        parts = []
        for of_text, of_image, norm_text, norm_image in (
            (attn.add_q_proj, attn.to_q, attn.norm_added_q, attn.norm_q),
            (attn.add_k_proj, attn.to_k, attn.norm_added_k, attn.norm_k),
        ):
            joined = torch.cat(
                [
                    norm_text(of_text(text).unflatten(-1, (heads, -1))),
                    norm_image(of_image(image).unflatten(-1, (heads, -1))),
                ],
                dim=1,
            )
            parts.append(
                apply_rotary_emb(joined, arguments["image_rotary_emb"], sequence_dim=1).double()
            )
        scores = torch.einsum("bqhd,bkhd->bhqk", *parts) / np.sqrt(parts[0].shape[-1])
        found.append(torch.softmax(scores, dim=-1).numpy())

    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: write_out(module, kwargs), with_kwargs=True
        )
        for block in case.torch_model.transformer_blocks
    ]
    case.torch_model(**case.torch_inputs())
    for hook in hooks:
        hook.remove()
    return np.stack(found)


def test_attention_weights_equal_pytorch(case):
    velocity, out = case.apply(attention="weights")
    assert_close(out["attention"], torch_attention(case))
    np.testing.assert_array_equal(velocity, case.apply()[0])


@pytest.mark.slow
def test_attention_mass_equals_sums_of_weights(case):
    masks = masks_of(case)
    weights = case.apply(attention="weights")[1]["attention"]
    mass = case.apply(token_masks=masks)[1]["attention"]
    text = masks.shape[1]
    assert_close(mass, np.einsum("lbhqt,btg->lbhqg", weights[..., :text], masks))


@pytest.mark.slow
def test_gradient_of_mass_equals_gradient_of_weights(case):
    masks = masks_of(case)
    tree = lora.init(jax.random.key(0), case.params, rank=2)
    tree = jax.tree.map(lambda leaf: leaf + 0.1, tree)
    text = masks.shape[1]

    def by_mass(tree):
        mass = case.apply(tree, token_masks=masks, stop_after="dual")[1]["attention"]
        return jnp.sum(jnp.square(mass))

    def by_weights(tree):
        weights = case.apply(tree, attention="weights")[1]["attention"]
        return jnp.sum(jnp.square(jnp.einsum("lbhqt,btg->lbhqg", weights[..., :text], masks)))

    ours, theirs = jax.jit(jax.grad(by_mass))(tree), jax.jit(jax.grad(by_weights))(tree)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(theirs))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(one, np.asarray(other))


def compiled_gradients(case, model, params, tree):
    """Compiled value and gradients by the adapter, for a function of velocity and attention."""

    def value(tree):
        velocity, out = model.apply(
            {"params": params, "lora": tree}, *case.flax_arguments(), token_masks=masks_of(case)
        )
        return jnp.sum(jnp.square(velocity)) + jnp.sum(jnp.square(out["attention"]))

    return jax.jit(jax.value_and_grad(value)).lower(tree).compile()


def assert_same_results(functions, tree):
    for one, other in zip(*(jax.tree.leaves(f(tree)) for f in functions), strict=True):
        assert_close(one, np.asarray(other))


@pytest.mark.slow
def test_unrolled_blocks_give_the_same_values_and_gradients(case):
    tree = jax.tree.map(lambda leaf: leaf + 0.1, lora.init(jax.random.key(0), case.params, rank=2))
    looped, unrolled = (
        compiled_gradients(case, FluxTransformer(case.config, unroll=unroll), case.params, tree)
        for unroll in (False, True)
    )
    assert_same_results((looped, unrolled), tree)
    loops = [str(f.as_text()).count(" while(") for f in (looped, unrolled)]
    assert loops[1] < loops[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["guided-16"], indirect=True)
def test_remat_gives_the_same_gradients_from_less_memory(case):
    # Enough blocks that their saved values are most of the memory.
    config = replace(case.config, num_layers=4, num_single_layers=8)

    def first_times(count, tree):
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], count, axis=0), tree)

    deep = {"dual_blocks": 4, "single_blocks": 8}
    params = case.params | {n: first_times(count, case.params[n]) for n, count in deep.items()}
    tree = jax.tree.map(lambda leaf: leaf + 0.1, lora.init(jax.random.key(0), params, rank=2))
    kept, anew = (
        compiled_gradients(case, FluxTransformer(config, remat=remat), params, tree)
        for remat in (False, True)
    )
    assert_same_results((kept, anew), tree)
    assert temporary(anew) < 0.6 * temporary(kept)


def temporary(compiled):
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.slow
def test_stop_after_dual_gives_the_same_attention_and_no_velocity(case):
    masks = masks_of(case)
    velocity, out = case.apply(token_masks=masks, stop_after="dual")
    assert velocity is None
    np.testing.assert_array_equal(out["attention"], case.apply(token_masks=masks)[1]["attention"])


@pytest.mark.slow
def test_bfloat16_compute_stays_near_float32(case):
    half = FluxTransformer(case.config, dtype=jnp.bfloat16)
    velocity, _ = jax.jit(half.apply)({"params": case.params}, *case.flax_arguments())
    assert velocity.dtype == jnp.bfloat16
    exact = np.asarray(case.apply()[0])
    assert np.linalg.norm(velocity.astype(np.float32) - exact) < 0.05 * np.linalg.norm(exact)


def test_guidance_must_fit_the_model(case):
    *arguments, guidance = case.flax_arguments()
    wrong = np.ones(BATCH, np.float32) if guidance is None else None
    with pytest.raises(InputError, match="guidance"):
        FluxTransformer(case.config).apply({"params": case.params}, *arguments, wrong)


def test_config_must_be_consistent(case):
    config = dict(case.torch_model.config)
    with pytest.raises(InputError, match="num_layers = 'two' must be of type int"):
        FluxConfig.from_dict(config | {"num_layers": "two"})
    with pytest.raises(InputError, match="axes_dims_rope"):
        FluxConfig.from_dict(config | {"axes_dims_rope": [2, 2, 2]})
