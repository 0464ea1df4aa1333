"""The Flax MMDiT against diffusers, part by part, in float32."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from peft import LoraConfig

from convert.errors import InputError
from convert.mapping import to_flax
from convert.tables import TRANSFORMER
from flux_jax import lora
from flux_jax.attention import rope_tables
from flux_jax.blocks import DualStreamBlock, Shared, SingleStreamBlock
from flux_jax.layers import MLP, Dense, Modulation, modulate, sinusoid
from flux_jax.transformer import FluxConfig, FluxTransformer

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


def masks_of(case, seed=3):
    text = case.inputs["text"].shape[1]
    rng = np.random.default_rng(seed)
    return (rng.random((BATCH, text, 3)) < 0.4).astype(np.float32)


def test_attention_weights_equal_pytorch(case):
    velocity, out = case.apply(attention="weights")
    assert_close(out["attention"], torch_attention(case))
    np.testing.assert_array_equal(velocity, case.apply()[0])


def test_attention_mass_equals_sums_of_weights(case):
    masks = masks_of(case)
    weights = case.apply(attention="weights")[1]["attention"]
    mass = case.apply(token_masks=masks)[1]["attention"]
    text = masks.shape[1]
    assert_close(mass, np.einsum("lbhqt,btg->lbhqg", weights[..., :text], masks))


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


def test_unrolled_blocks_give_the_same_values_and_gradients(case):
    tree = jax.tree.map(lambda leaf: leaf + 0.1, lora.init(jax.random.key(0), case.params, rank=2))
    masks = masks_of(case)

    def value(unroll, tree):
        velocity, out = FluxTransformer(case.config, unroll=unroll).apply(
            {"params": case.params, "lora": tree}, *case.flax_arguments(), token_masks=masks
        )
        return jnp.sum(jnp.square(velocity)) + jnp.sum(jnp.square(out["attention"]))

    looped, unrolled = (
        jax.jit(jax.value_and_grad(partial(value, unroll))).lower(tree).compile()
        for unroll in (False, True)
    )
    for one, other in zip(*(jax.tree.leaves(f(tree)) for f in (looped, unrolled)), strict=True):
        assert_close(one, np.asarray(other))
    loops = [str(f.as_text()).count(" while(") for f in (looped, unrolled)]
    assert loops[1] < loops[0]


def test_stop_after_dual_gives_the_same_attention_and_no_velocity(case):
    masks = masks_of(case)
    velocity, out = case.apply(token_masks=masks, stop_after="dual")
    assert velocity is None
    np.testing.assert_array_equal(out["attention"], case.apply(token_masks=masks)[1]["attention"])


def test_fresh_adapter_gives_the_base_bit_for_bit(case):
    tree = lora.init(jax.random.key(1), case.params, rank=4)
    np.testing.assert_array_equal(case.apply(tree)[0], case.apply()[0])


def test_strength_is_traced_and_zero_gives_the_base(case):
    tree = lora.init(jax.random.key(1), case.params, rank=4)
    adapter = lora.Adapter(jax.tree.map(lambda leaf: leaf + 0.1, tree), alpha=4.0)
    run = jax.jit(lambda strength: case.apply(adapter.scaled(strength))[0])
    base = jax.jit(lambda: case.apply()[0])()
    np.testing.assert_array_equal(run(0.0), base)
    assert np.any(np.asarray(run(1.0)) != base)
    assert run._cache_size() == 1


@torch.no_grad()
@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_adapter_equals_peft(case, alpha):
    targets = (*lora.TEXT_QUERY_KEY, "dual_blocks/attn/to_q", "single_blocks/attn/to_k")
    tree = lora.init(jax.random.key(2), case.params, targets, rank=4)
    tree = jax.tree.map(lambda leaf: leaf + 0.05, tree)
    model = case.torch_model
    names = r"transformer_blocks\.\d+\.attn\.(add_q_proj|add_k_proj|to_q)"
    names = rf"({names})|(single_transformer_blocks\.\d+\.attn\.to_k)"
    model.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=names), "test")
    try:
        blocks = {"dual_blocks": model.transformer_blocks}
        blocks["single_blocks"] = model.single_transformer_blocks
        for target in targets:
            stream, _, layer = target.split("/")
            for index, block in enumerate(blocks[stream]):
                module = getattr(block.attn, layer)
                pair = tree[stream]["attn"][layer]
                module.lora_A["test"].weight.copy_(torch.tensor(np.asarray(pair["A"][index].T)))
                module.lora_B["test"].weight.copy_(torch.tensor(np.asarray(pair["B"][index].T)))
        theirs = model(**case.torch_inputs()).sample
    finally:
        model.delete_adapters("test")
        model.unload_lora()
    ours = case.apply(lora.Adapter(tree, alpha).scaled())[0]
    assert np.max(np.abs(ours - np.asarray(case.apply()[0]))) > 1e-3
    assert_close(ours, theirs)


def test_combined_adapters_add_up(case):
    first, second = (
        lora.Adapter(jax.tree.map(lambda leaf: leaf + 0.1, tree), alpha=5.0)
        for tree in (
            lora.init(jax.random.key(0), case.params, rank=2),
            lora.init(jax.random.key(1), case.params, rank=3),
        )
    )
    pair = lora.combine([(first, 0.5), (second, 2.0)])["dual_blocks"]["attn"]["add_q_proj"]
    expected = sum(
        strength
        * (5.0 / a.rank)
        * jnp.einsum(
            "lir,lro->lio",
            *(a.lora["dual_blocks"]["attn"]["add_q_proj"][part] for part in ("A", "B")),
        )
        for a, strength in ((first, 0.5), (second, 2.0))
    )
    assert_close(jnp.einsum("lir,lro->lio", pair["A"], pair["B"]), np.asarray(expected))
    assert lora.combine([]) is None


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


def test_adapter_target_must_exist(case):
    with pytest.raises(InputError, match="add_z_proj"):
        lora.init(jax.random.key(0), case.params, ("dual_blocks/attn/add_z_proj",))


def test_config_must_be_whole_and_consistent(case):
    config = dict(case.torch_model.config)
    with pytest.raises(InputError, match="num_layers"):
        FluxConfig.from_dict({k: v for k, v in config.items() if k != "num_layers"})
    with pytest.raises(InputError, match="axes_dims_rope"):
        FluxConfig.from_dict(config | {"axes_dims_rope": [2, 2, 2]})
