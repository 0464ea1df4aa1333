"""Tables of all tensor names in diffusers' and transformers' layouts, with the Flax leaves."""

from collections.abc import Mapping

from flux_jax.weights.rules import CONV, LINEAR, SAME, SCALAR, VECTOR, Row, Table


def _dense(torch: str, flax: str) -> list[Row]:
    return [
        Row(f"{torch}.weight", (f"{flax}/kernel",), LINEAR),
        Row(f"{torch}.bias", (f"{flax}/bias",), VECTOR),
    ]


def _conv(torch: str, flax: str) -> list[Row]:
    return [
        Row(f"{torch}.weight", (f"{flax}/kernel",), CONV),
        Row(f"{torch}.bias", (f"{flax}/bias",), VECTOR),
    ]


def _norm(torch: str, flax: str) -> list[Row]:
    return [
        Row(f"{torch}.weight", (f"{flax}/scale",), VECTOR),
        Row(f"{torch}.bias", (f"{flax}/bias",), VECTOR),
    ]


def _scale(torch: str, flax: str) -> list[Row]:
    return [Row(f"{torch}.weight", (f"{flax}/scale",), VECTOR)]


def _kernel(torch: str, flax: str) -> list[Row]:
    return [Row(f"{torch}.weight", (f"{flax}/kernel",), LINEAR)]


def _embedding(torch: str, flax: str) -> list[Row]:
    return [Row(f"{torch}.weight", (f"{flax}/embedding",), SAME)]


def _transformer() -> tuple[Row, ...]:
    """Names of diffusers' FluxTransformer2DModel."""
    rows = []
    for name in ("x_embedder", "context_embedder", "norm_out.linear", "proj_out"):
        rows += _dense(name, name.replace(".", "/"))
    for torch, flax in (
        ("timestep_embedder", "time_embedder"),
        ("guidance_embedder", "guidance_embedder"),
        ("text_embedder", "pooled_embedder"),
    ):
        for layer in ("linear_1", "linear_2"):
            rows += _dense(f"time_text_embed.{torch}.{layer}", f"{flax}/{layer}")

    dual = {"attn.to_out.0": "attn/to_out"}
    for part in ("ff", "ff_context"):
        dual |= {f"{part}.net.0.proj": f"{part}/linear_1", f"{part}.net.2": f"{part}/linear_2"}
    for name in ("norm1.linear", "norm1_context.linear", "attn.to_q", "attn.to_k", "attn.to_v"):
        dual[name] = name.replace(".", "/")
    for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
        dual[f"attn.{name}"] = f"attn/{name}"
    for torch, flax in dual.items():
        rows += _dense(f"transformer_blocks.{{i}}.{torch}", f"dual_blocks/{flax}")
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        rows += _scale(f"transformer_blocks.{{i}}.attn.{name}", f"dual_blocks/attn/{name}")

    for name in ("norm.linear", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"):
        flax = name.replace(".", "/")
        rows += _dense(f"single_transformer_blocks.{{i}}.{name}", f"single_blocks/{flax}")
    for name in ("norm_q", "norm_k"):
        rows += _scale(f"single_transformer_blocks.{{i}}.attn.{name}", f"single_blocks/attn/{name}")
    return tuple(rows)


def _flux2_transformer() -> tuple[Row, ...]:
    """Names of diffusers' Flux2Transformer2DModel."""
    rows = []
    for name in ("x_embedder", "context_embedder", "norm_out.linear", "proj_out"):
        rows += _kernel(name, name.replace(".", "/"))
    for name in (
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
    ):
        rows += _kernel(f"{name}.linear", f"{name}/linear")
    for torch, flax in (
        ("timestep_embedder", "time_embedder"),
        ("guidance_embedder", "guidance_embedder"),
    ):
        for layer in ("linear_1", "linear_2"):
            rows += _kernel(f"time_guidance_embed.{torch}.{layer}", f"{flax}/{layer}")

    dual = {"attn.to_out.0": "attn/to_out"}
    for part in ("ff", "ff_context"):
        dual |= {f"{part}.{name}": f"{part}/{name}" for name in ("linear_in", "linear_out")}
    for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
        dual[f"attn.{name}"] = f"attn/{name}"
    for torch, flax in dual.items():
        rows += _kernel(f"transformer_blocks.{{i}}.{torch}", f"dual_blocks/{flax}")
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        rows += _scale(f"transformer_blocks.{{i}}.attn.{name}", f"dual_blocks/attn/{name}")

    single = "single_transformer_blocks.{i}.attn"
    for name in ("to_qkv_mlp_proj", "to_out"):
        rows += _kernel(f"{single}.{name}", f"single_blocks/attn/{name}")
    for name in ("norm_q", "norm_k"):
        rows += _scale(f"{single}.{name}", f"single_blocks/attn/{name}")
    return tuple(rows)


def _t5() -> tuple[Row, ...]:
    """Names of transformers' T5EncoderModel."""
    first, block = "encoder.block.0.layer.0", "encoder.block.{i}"
    rows = [
        *_embedding("shared", "token_embedder"),
        *_embedding(f"{first}.SelfAttention.relative_attention_bias", "relative_attention_bias"),
        *_scale("encoder.final_layer_norm", "final_norm"),
        *_scale(f"{block}.layer.0.layer_norm", "blocks/attn_norm"),
        *_scale(f"{block}.layer.1.layer_norm", "blocks/ff_norm"),
    ]
    for name in ("q", "k", "v", "o"):
        rows += _kernel(f"{block}.layer.0.SelfAttention.{name}", f"blocks/attn/{name}")
    for name in ("wi_0", "wi_1", "wo"):
        rows += _kernel(f"{block}.layer.1.DenseReluDense.{name}", f"blocks/ff/{name}")
    return tuple(rows)


def _clip() -> tuple[Row, ...]:
    """Names of transformers' CLIPTextModel."""
    block = "encoder.layers.{i}"
    rows = [
        *_embedding("embeddings.token_embedding", "token_embedder"),
        *_embedding("embeddings.position_embedding", "position_embedder"),
        *_norm("final_layer_norm", "final_norm"),
        *_norm(f"{block}.layer_norm1", "blocks/norm1"),
        *_norm(f"{block}.layer_norm2", "blocks/norm2"),
    ]
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        rows += _dense(f"{block}.self_attn.{name}", f"blocks/attn/{name}")
    for name in ("fc1", "fc2"):
        rows += _dense(f"{block}.mlp.{name}", f"blocks/mlp/{name}")
    return tuple(rows)


def _clip_model() -> tuple[Row, ...]:
    """Names of transformers' CLIPModel."""
    text, vision = "text_model.", "vision_model."
    rows = [
        Row(text + row.torch, tuple(f"text/{leaf}" for leaf in row.flax), row.rule)
        for row in _clip()
    ]
    # The blocks of both towers have the same names.
    rows += [
        Row(vision + row.torch, tuple(f"vision/{leaf}" for leaf in row.flax), row.rule)
        for row in _clip()
        if row.torch.startswith("encoder.")
    ]
    embeddings = f"{vision}embeddings"
    rows += [
        Row(f"{embeddings}.class_embedding", ("vision/class_embedder",), VECTOR),
        Row(f"{embeddings}.patch_embedding.weight", ("vision/patch_embedder/kernel",), CONV),
        *_embedding(f"{embeddings}.position_embedding", "vision/position_embedder"),
        *_norm(f"{vision}pre_layrnorm", "vision/first_norm"),
        *_norm(f"{vision}post_layernorm", "vision/final_norm"),
        *_kernel("text_projection", "text_projection"),
        *_kernel("visual_projection", "visual_projection"),
        Row("logit_scale", ("logit_scale",), SCALAR),
    ]
    return tuple(rows)


def _resnet(torch: str, flax: str) -> list[Row]:
    rows = []
    for name in ("norm1", "norm2"):
        rows += _norm(f"{torch}.{name}", f"{flax}/{name}")
    for name in ("conv1", "conv2", "conv_shortcut"):
        rows += _conv(f"{torch}.{name}", f"{flax}/{name}")
    return rows


def _vae() -> tuple[Row, ...]:
    """Names of diffusers' AutoencoderKL."""
    rows = [
        *_conv("quant_conv", "quant_conv"),
        *_conv("post_quant_conv", "post_quant_conv"),
    ]
    for side, direction in (("encoder", "down"), ("decoder", "up")):
        torch, flax = f"{side}.{direction}_blocks.{{a}}", f"{side}/{direction}_blocks_{{a}}"
        rows += _resnet(f"{torch}.resnets.{{b}}", f"{flax}/resnets_{{b}}")
        sampler = f"{direction}samplers"
        rows += _conv(f"{torch}.{sampler}.{{b}}.conv", f"{flax}/{sampler}_{{b}}/conv")

        torch, flax = f"{side}.mid_block", f"{side}/mid_block"
        rows += _resnet(f"{torch}.resnets.{{a}}", f"{flax}/resnets_{{a}}")
        torch, flax = f"{torch}.attentions.{{a}}", f"{flax}/attentions_{{a}}"
        rows += _norm(f"{torch}.group_norm", f"{flax}/group_norm")
        for name in ("to_q", "to_k", "to_v"):
            rows += _dense(f"{torch}.{name}", f"{flax}/{name}")
        rows += _dense(f"{torch}.to_out.0", f"{flax}/to_out")

        for name in ("conv_in", "conv_out"):
            rows += _conv(f"{side}.{name}", f"{side}/{name}")
        rows += _norm(f"{side}.conv_norm_out", f"{side}/conv_norm_out")
    return tuple(rows)


def _flux2_vae() -> tuple[Row, ...]:
    """Names of diffusers' AutoencoderKLFlux2."""
    return (
        *_vae(),
        Row("bn.running_mean", ("bn/mean",), VECTOR),
        Row("bn.running_var", ("bn/var",), VECTOR),
    )


def _qwen3() -> tuple[Row, ...]:
    """Names of transformers' Qwen3Model."""
    block = "layers.{i}"
    rows = [
        *_embedding("embed_tokens", "token_embedder"),
        *_scale(f"{block}.input_layernorm", "blocks/attn_norm"),
        *_scale(f"{block}.post_attention_layernorm", "blocks/mlp_norm"),
    ]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        rows += _kernel(f"{block}.self_attn.{name}", f"blocks/attn/{name}")
    for name in ("q_norm", "k_norm"):
        rows += _scale(f"{block}.self_attn.{name}", f"blocks/attn/{name}")
    for name in ("gate_proj", "up_proj", "down_proj"):
        rows += _kernel(f"{block}.mlp.{name}", f"blocks/mlp/{name}")
    return tuple(rows)


def qwen3(blocks: int, used: int) -> Table:
    """Names of a Qwen3 model of so many blocks, of which FLUX.2 uses the first ones alone.

    It uses neither the last norm nor the head of the language model.
    """
    rows = _qwen3()
    unused = ["norm.weight", "lm_head.weight"] + [
        row.torch.replace("{i}", str(index))
        for row in rows
        for index in range(used, blocks)
        if "{i}" in row.torch
    ]
    ignored = frozenset(f"model.{name}" for name in unused)
    return Table(rows, "model.", ignored=ignored, stem="model")


TRANSFORMER = Table(_transformer())
FLUX2_TRANSFORMER = Table(_flux2_transformer())
T5 = Table(_t5(), copies={"encoder.embed_tokens.weight": "shared.weight"}, stem="model")
# transformers 4 writes this prefix and 5 does not; both read files with it.
CLIP = Table(
    _clip(),
    prefix="text_model.",
    ignored=frozenset({"text_model.embeddings.position_ids"}),
    stem="model",
)
# Text and image tower with their projections: no part of FLUX.1.
CLIP_MODEL = Table(
    _clip_model(),
    ignored=frozenset(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision")),
    stem="model",
)
VAE = Table(_vae())
# The number of training batches behind the statistics is not used.
FLUX2_VAE = Table(_flux2_vae(), ignored=frozenset({"bn.num_batches_tracked"}))

# The sub-folders of a pipeline that hold weights.
COMPONENTS: Mapping[str, Table] = {
    "transformer": TRANSFORMER,
    "text_encoder": CLIP,
    "text_encoder_2": T5,
    "vae": VAE,
}
