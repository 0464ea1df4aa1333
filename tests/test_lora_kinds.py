"""Every kind of adapter change on the MMDiT against PEFT, and against changed weights."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.flux_case import assert_close
from helpers.kinds import difference, mixed, random_pairs
from peft import LoraConfig

from convert.adapters.layers import Layers
from convert.adapters.names import Place, label, parse
from convert.adapters.stacked import stack
from flux_jax import lora
from flux_jax.lora import Adapter
from flux_jax.models import dora
from flux_jax.models.quantize import quantized_params
from flux_jax.tree import flatten, nest

# Sizes do not matter here.
pytestmark = pytest.mark.parametrize("case", ["guided-16"], indirect=True)

FILE = Path("file")
OUTSIDE = (
    "x_embedder",
    "context_embedder",
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.text_embedder.linear_2",
    "norm_out.linear",
    "proj_out",
)
INSIDE = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.norm1.linear",
    "transformer_blocks.0.ff_context.net.2",
    "single_transformer_blocks.0.proj_mlp",
    "single_transformer_blocks.1.attn.to_v",
    "single_transformer_blocks.0.proj_out",
)


def layers_of(model: Any) -> dict[Place, torch.nn.Linear]:
    """A PyTorch model's dense layers."""
    found = {}
    for name, module in model.named_modules():
        key = parse(f"transformer.{name}.lora_A.weight")
        if key and isinstance(module, torch.nn.Linear):
            found[key.layer.targets[0], key.block] = module
    return found


def weights(case, names: Sequence[str] | None = None) -> dict[Place, np.ndarray]:
    """Weights [O, I] of the dense layers, or of those with these names."""
    layers = layers_of(case.torch_model)
    found = {place: layer.weight.detach().numpy() for place, layer in layers.items()}
    named = {label(place): place for place in found}
    return found if names is None else {named[name]: found[named[name]] for name in names}


def adapted(case, *adapters: tuple[Layers, float], params=None) -> Any:
    """The combined tree of adapters, as a pipeline builds it."""
    params = case.params if params is None else params
    read = []
    for layers, strength in adapters:
        tree, alpha = stack(FILE, layers)
        fitted = lora.fitted(Adapter(tree, float(alpha)), params)
        read.append((dora.resolve(fitted, params), strength))
    return lora.combine(read)


@torch.no_grad()
def with_peft(case, *adapters: tuple[Layers, float], kinds=()) -> torch.Tensor:
    """The velocity of diffusers' model with the same adapters in PEFT's layers."""
    model = copy.deepcopy(case.torch_model)
    for index, (layers, _) in enumerate(adapters):
        names = {f"^{re.escape(label(place))}": pair for place, pair in layers.items()}
        config = LoraConfig(
            target_modules="|".join(re.escape(label(place)) for place in layers),
            rank_pattern={name: pair.rank for name, pair in names.items()},
            alpha_pattern={name: float(pair.alpha) for name, pair in names.items()},
            use_dora="dora" in kinds,
            lora_bias="bias" in kinds,
        )
        model.add_adapter(config, f"{index}")
        for place, pair in layers.items():
            module, name = model.get_submodule(label(place)), f"{index}"
            module.lora_A[name].weight.copy_(torch.tensor(pair.down))
            module.lora_B[name].weight.copy_(torch.tensor(pair.up))
            if pair.bias is not None:
                module.lora_B[name].bias.copy_(torch.tensor(pair.bias) / float(pair.scale))
            if pair.magnitude is not None:
                vector = module.lora_magnitude_vector[name]
                vector.weight.copy_(torch.tensor(pair.magnitude))
    model.set_adapters([str(i) for i in range(len(adapters))], [s for _, s in adapters])
    return model(**case.torch_inputs()).sample


@torch.no_grad()
def changed(case, *adapters: tuple[Layers, float]) -> torch.Tensor:
    """The velocity of diffusers' model with the changes added to its weights and biases."""
    model = copy.deepcopy(case.torch_model)
    base = weights(case)
    for place, layer in layers_of(model).items():
        for layers, strength in adapters:
            if place in layers:
                weight, bias = difference(layers[place], base[place])
                layer.weight += strength * torch.tensor(weight, dtype=torch.float32)
                layer.bias += strength * torch.tensor(bias, dtype=torch.float32)
    return model(**case.torch_inputs()).sample


def assert_changes(ours, case):
    base = case.apply()[0]
    assert np.abs(np.asarray(ours) - base).max() > 0.02 * np.abs(base).max()


@pytest.mark.slow
@pytest.mark.parametrize("names", [INSIDE, OUTSIDE], ids=["blocks", "outside"])
@pytest.mark.parametrize("kinds", [(), ("bias",), ("dora",)], ids=["ranks", "bias", "dora"])
def test_ranks_alphas_and_some_blocks_equal_peft(case, names, kinds):
    layers = random_pairs(weights(case, names), kinds=kinds)
    ours = case.apply(adapted(case, (layers, 1.0)))[0]
    assert_changes(ours, case)
    assert_close(ours, with_peft(case, (layers, 1.0), kinds=kinds), bound=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("kinds", [(), ("bias",)], ids=["ranks", "bias"])
def test_adapters_of_different_layers_and_ranks_add_up_as_in_peft(case, kinds):
    one = random_pairs(weights(case, INSIDE + OUTSIDE[:2]), kinds=kinds)
    other = random_pairs(
        weights(case, INSIDE[:3] + OUTSIDE[2:]), seed=1, ranks=(2,), alphas=(3.0,), kinds=kinds
    )
    given = (one, 0.7), (other, -1.25)
    ours = case.apply(adapted(case, *given))[0]
    # PEFT scales its biases with the strength, too.
    assert_close(ours, with_peft(case, *given, kinds=kinds), bound=1e-5)


@pytest.mark.slow
def test_kinds_mixed_in_a_target_equal_changed_weights(case):
    given = (mixed(weights(case)), 0.5), (mixed(weights(case), 2), -0.75)
    ours = case.apply(adapted(case, *given))[0]
    assert_changes(ours, case)
    assert_close(ours, changed(case, *given), bound=1e-5)


@pytest.mark.slow
def test_strength_zero_of_any_kind_is_the_base_bit_for_bit(case):
    tree = adapted(case, (mixed(weights(case)), 0.0))
    names = {path.rpartition("/")[2] for path in flatten(tree)}
    assert names == {"A", "B", "D", "b", "gain"}
    np.testing.assert_array_equal(case.apply(tree)[0], case.apply()[0])


@pytest.mark.slow
def test_on_int8_kernels_every_kind_changes_the_rounded_weights(case):
    rounded = flatten(quantized_params(case.params, "int8"))
    plain = {}
    for path, leaf in rounded.items():
        scale = rounded.get(path.replace("kernel", "scale"))
        if path.endswith("kernel") and scale is not None:
            leaf = leaf.astype(jnp.float32) * scale[..., None, :]
        if not (path.endswith("/scale") and path.replace("scale", "kernel") in rounded):
            plain[path] = np.array(leaf)
    layers = mixed(weights(case))
    tree = adapted(case, (layers, 0.5), params=nest(rounded))
    for (target, block), change in layers.items():
        kernel, bias = (
            plain[f"{target}/{name}"][() if block is None else block] for name in ("kernel", "bias")
        )
        weight, more = difference(change, np.array(kernel).T)
        kernel += 0.5 * weight.T
        bias += 0.5 * more
    case = copy.copy(case)
    case.params = nest(plain)
    wanted = case.apply()[0]
    case.params = nest(rounded)
    assert_close(case.apply(tree)[0], wanted, bound=1e-5)
