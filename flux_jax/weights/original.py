"""Black Forest Labs' layout: `flux1-dev.safetensors` and the like, and `ae.safetensors`.

These files have no configuration: `flux_jax.weights.sizes` infers the sizes from the shapes.
Queries, keys and values are joined, shift precedes scale in the last modulation, and the
autoencoder's decoder counts its levels from the image up.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flux_jax.weights.rules import (
    CONV,
    LINEAR,
    POINTWISE,
    VECTOR,
    Joined,
    Row,
    Rule,
    Swapped,
    Table,
)
from flux_jax.weights.sizes import levels

# Programs that store several models in one file put this before the transformer's names.
BUNDLED = "model.diffusion_model."


def _rows(
    torch: str, flax: Iterable[str], matrix: Rule = LINEAR, vector: Rule = VECTOR
) -> Iterable[Row]:
    """A dense layer, or several that are joined in the file."""
    flax = tuple(flax)
    yield Row(f"{torch}.weight", tuple(f"{name}/kernel" for name in flax), matrix)
    yield Row(f"{torch}.bias", tuple(f"{name}/bias" for name in flax), vector)


def _joined(torch: str, flax: Iterable[str]) -> Iterable[Row]:
    return _rows(torch, flax, Joined(LINEAR), Joined(VECTOR))


def _transformer() -> Iterable[Row]:
    yield from _rows("img_in", ["x_embedder"])
    yield from _rows("txt_in", ["context_embedder"])
    for torch, flax in (
        ("time_in", "time_embedder"),
        ("guidance_in", "guidance_embedder"),
        ("vector_in", "pooled_embedder"),
    ):
        yield from _rows(f"{torch}.in_layer", [f"{flax}/linear_1"])
        yield from _rows(f"{torch}.out_layer", [f"{flax}/linear_2"])
    streams = {
        "img": ("norm1", ("to_q", "to_k", "to_v"), "to_out", "ff", "norm_{}"),
        "txt": (
            "norm1_context",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            "to_add_out",
            "ff_context",
            "norm_added_{}",
        ),
    }
    for stream, (norm, projections, out, ff, head_norm) in streams.items():
        torch, flax = f"double_blocks.{{i}}.{stream}", "dual_blocks"
        yield from _rows(f"{torch}_mod.lin", [f"{flax}/{norm}/linear"])
        yield from _joined(f"{torch}_attn.qkv", [f"{flax}/attn/{name}" for name in projections])
        yield from _rows(f"{torch}_attn.proj", [f"{flax}/attn/{out}"])
        yield from _rows(f"{torch}_mlp.0", [f"{flax}/{ff}/linear_1"])
        yield from _rows(f"{torch}_mlp.2", [f"{flax}/{ff}/linear_2"])
        yield from _head_norms(f"{torch}_attn.norm", f"{flax}/attn/{head_norm}/scale")
    torch, flax = "single_blocks.{i}", "single_blocks"
    yield from _rows(f"{torch}.modulation.lin", [f"{flax}/norm/linear"])
    joined = ("attn/to_q", "attn/to_k", "attn/to_v", "proj_mlp")
    yield from _joined(f"{torch}.linear1", [f"{flax}/{name}" for name in joined])
    yield from _rows(f"{torch}.linear2", [f"{flax}/proj_out"])
    yield from _head_norms(f"{torch}.norm", f"{flax}/attn/norm_{{}}/scale")
    yield from _rows(
        "final_layer.adaLN_modulation.1", ["norm_out/linear"], Swapped(LINEAR), Swapped(VECTOR)
    )
    yield from _rows("final_layer.linear", ["proj_out"])


def _head_norms(torch: str, flax: str) -> Iterable[Row]:
    for letter, name in (("q", "query_norm"), ("k", "key_norm")):
        yield Row(f"{torch}.{name}.scale", (flax.format(letter),), VECTOR)


def _flux2_transformer() -> Iterable[Row]:
    """FLUX.2's layers have no biases, and its blocks no modulation of their own."""

    def row(torch: str, *flax: str, rule: Rule = LINEAR) -> Row:
        return Row(f"{torch}.weight", tuple(f"{name}/kernel" for name in flax), rule)

    yield row("img_in", "x_embedder")
    yield row("txt_in", "context_embedder")
    for torch, flax in (("time_in", "time_embedder"), ("guidance_in", "guidance_embedder")):
        yield row(f"{torch}.in_layer", f"{flax}/linear_1")
        yield row(f"{torch}.out_layer", f"{flax}/linear_2")
    for name in (
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
    ):
        yield row(f"{name}.lin", f"{name}/linear")
    for stream, projections, out, ff, head_norm in (
        ("img", ("to_q", "to_k", "to_v"), "to_out", "ff", "norm_{}"),
        (
            "txt",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            "to_add_out",
            "ff_context",
            "norm_added_{}",
        ),
    ):
        torch, flax = f"double_blocks.{{i}}.{stream}", "dual_blocks"
        joined = (f"{flax}/attn/{name}" for name in projections)
        yield row(f"{torch}_attn.qkv", *joined, rule=Joined(LINEAR))
        yield row(f"{torch}_attn.proj", f"{flax}/attn/{out}")
        yield row(f"{torch}_mlp.0", f"{flax}/{ff}/linear_in")
        yield row(f"{torch}_mlp.2", f"{flax}/{ff}/linear_out")
        yield from _head_norms(f"{torch}_attn.norm", f"{flax}/attn/{head_norm}/scale")
    torch, flax = "single_blocks.{i}", "single_blocks/attn"
    yield row(f"{torch}.linear1", f"{flax}/to_qkv_mlp_proj")
    yield row(f"{torch}.linear2", f"{flax}/to_out")
    yield from _head_norms(f"{torch}.norm", f"{flax}/norm_{{}}/scale")
    yield row("final_layer.adaLN_modulation.1", "norm_out/linear", rule=Swapped(LINEAR))
    yield row("final_layer.linear", "proj_out")


TRANSFORMER = Table(tuple(_transformer()), stem="flux1")
FLUX2_TRANSFORMER = Table(tuple(_flux2_transformer()), stem="flux2")


def vae_table(levels: int) -> Table:
    """Names of the autoencoder.

    Args:
        levels: number of resolutions, each half as high and wide as the one before.
    """
    return Table(tuple(_vae(levels)), stem="ae")


def table(name: str, config: Mapping[str, Any]) -> Table:
    """Names of a model, "transformer" or "vae", with these sizes."""
    return TRANSFORMER if name == "transformer" else vae_table(levels(config))


def _vae(levels: int) -> Iterable[Row]:
    for side in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            yield from _rows(f"{side}.{name}", [f"{side}/{name}"], CONV)
        yield from _norm(f"{side}.norm_out", f"{side}/conv_norm_out")
        for index in range(2):
            yield from _resnet(f"{side}.mid.block_{index + 1}", f"{side}/mid_block/resnets_{index}")
        torch, flax = f"{side}.mid.attn_1", f"{side}/mid_block/attentions_0"
        yield from _norm(f"{torch}.norm", f"{flax}/group_norm")
        for name, to in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out")):
            yield from _rows(f"{torch}.{name}", [f"{flax}/{to}"], POINTWISE)
    for level in range(levels):
        for torch, flax, sampler in (
            (f"encoder.down.{level}", f"encoder/down_blocks_{level}", "downsample"),
            (f"decoder.up.{levels - 1 - level}", f"decoder/up_blocks_{level}", "upsample"),
        ):
            yield from _resnet(f"{torch}.block.{{b}}", f"{flax}/resnets_{{b}}")
            yield from _rows(f"{torch}.{sampler}.conv", [f"{flax}/{sampler}rs_0/conv"], CONV)


def _norm(torch: str, flax: str) -> Iterable[Row]:
    yield Row(f"{torch}.weight", (f"{flax}/scale",), VECTOR)
    yield Row(f"{torch}.bias", (f"{flax}/bias",), VECTOR)


def _resnet(torch: str, flax: str) -> Iterable[Row]:
    for name in ("norm1", "norm2"):
        yield from _norm(f"{torch}.{name}", f"{flax}/{name}")
    for name in ("conv1", "conv2"):
        yield from _rows(f"{torch}.{name}", [f"{flax}/{name}"], CONV)
    yield from _rows(f"{torch}.nin_shortcut", [f"{flax}/conv_shortcut"], CONV)


def schedule_config(guidance: bool) -> dict[str, Any]:
    """Settings of the sampler: [dev], which embeds guidance, shifts; [schnell] does not."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "use_dynamic_shifting": guidance,
        "shift": 3.0 if guidance else 1.0,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
