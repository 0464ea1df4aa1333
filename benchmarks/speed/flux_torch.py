"""Time diffusers' transformer at FLUX.1 [dev]'s size, on one GPU.

    python -m benchmarks.speed.flux_torch --out flux.json --side eager --works forward-512

`benchmarks.speed.flux` runs this and this project's own side. The model is run as diffusers and
PEFT are used: bfloat16 weights, attention by PyTorch's `scaled_dot_product_attention`, inputs as
FluxPipeline passes them, a LoRA in float32 under fused AdamW, `torch.compile` of the whole model.
Training steps exclude cuDNN's attention. Text encoders and autoencoder are not included. Times are
measured by CUDA events; memory is the allocator's peak.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import torch
from absl import app, flags
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from peft import LoraConfig

from benchmarks.speed import cases as shared
from benchmarks.speed.cases import (
    DECAY,
    GUIDANCE,
    RANK,
    RATE,
    SIDES,
    SIZES,
    UNFINISHED,
    WARM_UPS,
    Record,
    Work,
    add,
    attempt,
    chosen,
    times,
)
from erase.cli.flags import begin, parse_flags
from flux_jax import progress
from flux_jax.errors import InputError, exits_cleanly

TARGETS = ["add_q_proj", "add_k_proj"]


@dataclass(frozen=True)
class Inputs:
    """The model's keyword arguments, and the target velocity of a step."""

    given: dict[str, Any]
    target: torch.Tensor


def random_model(
    sizes: Mapping[str, Any], device: torch.device, seed: int = 0
) -> FluxTransformer2DModel:
    """A frozen transformer in bfloat16 with random weights as in `benchmarks.make_checkpoint`.

    Args:
        sizes: its `config.json`.
        device: where the weights are generated.
        seed: of the weights.
    """
    with torch.device("meta"):
        made: Any = FluxTransformer2DModel.from_config(dict(sizes))
    model = made.bfloat16().to_empty(device=device).requires_grad_(False)
    assert not list(model.buffers()), "uninitialised buffers are left"
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            mean = 0.0 if name.endswith("bias") else 1.0
            parameter.normal_(mean, 0.02, generator=generator)
    return model


def random_inputs(
    sizes: Mapping[str, Any], work: Work, device: torch.device, seed: int = 1
) -> Inputs:
    """Random inputs of a workload."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    latents = work.batch, work.image_tokens, sizes["in_channels"]
    side = round(work.image_tokens**0.5)
    image_ids = torch.zeros(side, side, 3, device=device, dtype=torch.bfloat16)
    image_ids[..., 1] += torch.arange(side, device=device)[:, None]
    image_ids[..., 2] += torch.arange(side, device=device)
    given = {
        "hidden_states": normal(*latents),
        "encoder_hidden_states": normal(work.batch, work.text_tokens, sizes["joint_attention_dim"]),
        "pooled_projections": normal(work.batch, sizes["pooled_projection_dim"]),
        "timestep": torch.full((work.batch,), 0.5, device=device, dtype=torch.bfloat16),
        "img_ids": image_ids.reshape(-1, 3),
        "txt_ids": torch.zeros(work.text_tokens, 3, device=device, dtype=torch.bfloat16),
        "guidance": torch.full((work.batch,), GUIDANCE, device=device),
        "return_dict": False,
    }
    return Inputs(given, normal(*latents))


def add_lora(model: FluxTransformer2DModel) -> list[torch.nn.Parameter]:
    """Add a LoRA, unless the model has one, and return its parameters, in float32."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        lora = LoraConfig(
            r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights="gaussian"
        )
        model.add_adapter(lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained


def forward(model: Any, call: Any, inputs: Inputs, work: Work) -> Callable[[], torch.Tensor]:
    """A function that computes one velocity."""
    return torch.no_grad()(lambda: call(**inputs.given)[0])


def sample(model: Any, call: Any, inputs: Inputs, work: Work) -> Callable[[], torch.Tensor]:
    """A function that runs the Euler steps of a picture."""
    levels = torch.tensor(work.sigmas, device=inputs.target.device)
    changes = levels.diff()
    given = {key: value for key, value in inputs.given.items() if key != "hidden_states"}

    @torch.no_grad()
    def picture() -> torch.Tensor:
        latents = inputs.given["hidden_states"]
        for level, change in zip(levels, changes, strict=False):
            given["timestep"] = level.expand(work.batch).to(latents.dtype)
            velocity = call(hidden_states=latents, **given)[0]
            latents = (latents.float() + change * velocity).to(latents.dtype)
        return latents

    return picture


def step(model: Any, call: Any, inputs: Inputs, work: Work) -> Callable[[], torch.Tensor]:
    """A function that runs an AdamW step of a LoRA towards a velocity and returns the loss."""
    trained = add_lora(model)
    # Its gradient fails in PyTorch 2.11 with an illegal memory access; the others are still used.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if work.checkpointed:
        model.enable_gradient_checkpointing()
    else:
        model.disable_gradient_checkpointing()
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY, fused=True)

    def update() -> torch.Tensor:
        velocity = call(**inputs.given)[0]
        loss = torch.nn.functional.mse_loss(velocity.float(), inputs.target.float())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return update


def record(
    model: FluxTransformer2DModel, work: Work, side: str, device: torch.device, repeats: int
) -> Record:
    """Time a workload, without the effects of earlier compilations.

    Args:
        model: the model; steps add a LoRA to it.
        work: the workload.
        side: "eager" or "compiled".
        device: the model's.
        repeats: number of timed calls.
    """
    torch.compiler.reset()
    call = torch.compile(model, dynamic=False) if side == "compiled" else model
    kind = {"forward": forward, "sample": sample, "step": step}[work.kind]
    run = kind(model, call, random_inputs(model.config, work, device), work)
    began = time.perf_counter()
    finite = bool(run().isfinite().all())
    first = time.perf_counter() - began
    for _ in range(WARM_UPS - 1):
        run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    durations = times([timed(run, device) for _ in range(repeats)])
    return {
        **durations,
        "compile_seconds": max(0.0, first - durations["seconds"]),
        "memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "finite": finite,
    }


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, by CUDA events if CUDA is available."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def measure(
    works: Mapping[str, Work],
    sizes: Mapping[str, Any],
    side: str,
    device: torch.device,
    repeats: int,
) -> Iterator[tuple[str, Record]]:
    """Measure workloads one after another, forward passes before steps.

    Args:
        works: by name.
        sizes: the transformer's `config.json`.
        side: "eager" or "compiled".
        device: of the model.
        repeats: of each workload.

    Yields:
        A workload's name with `UNFINISHED`, and then with its record.
    """
    model = random_model(sizes, device)
    for name, work in progress.bar(works.items(), desc=f"diffusers, {side}"):
        yield name, UNFINISHED
        yield name, attempt(partial(record, model, work, side, device, repeats))
        # Left by a workload that ran out of memory.
        for parameter in model.parameters():
            parameter.grad = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    # Shared code imports JAX, which must not allocate memory on the GPU.
    jax.config.update("jax_platforms", "cpu")
    given = flags.FLAGS
    file, works = Path(given.out), chosen(given.works, given.side)
    if not torch.cuda.is_available():
        raise InputError("PyTorch finds no GPU; it needs one with 80 GB")
    packages = {name: version(name) for name in ("torch", "diffusers", "peft")}
    entry = {"machine": {"device": torch.cuda.get_device_name(), **packages}, "works": {}}
    add(file, given.side, entry)
    for name, record in measure(works, SIZES, given.side, torch.device("cuda"), given.repeats):
        add(file, given.side, entry | {"works": {name: record}})


if __name__ == "__main__":
    shared.define_flags()
    flags.adopt_module_key_flags(shared)
    flags.DEFINE_enum("side", None, SIDES[1:], "How the model runs.", required=True)
    app.run(main, flags_parser=parse_flags)
