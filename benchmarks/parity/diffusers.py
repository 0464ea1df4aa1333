"""Diffusers' side of `benchmarks.parity.parity`: velocities, and inputs and outputs of every block.

The model and its LoRA are opened as diffusers' users do it. When the functions return, both are
garbage; `free` then returns their GPU memory.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from benchmarks.parity.case import GUIDANCES, TIMESTEP, Block, Inputs, Kind, Streams, Velocities


def device() -> torch.device:
    """The GPU, or the CPU if PyTorch finds none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free() -> None:
    """Return unused GPU memory, so that JAX can use it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(folder: Path, lora: Path, inputs: Inputs, dtype: str) -> tuple[Velocities, list[Block]]:
    """Velocities without and with a LoRA, and the inputs and outputs of its blocks with it.

    Args:
        folder: the pipeline's.
        lora: file of the LoRA.
        inputs: inputs of the model.
        dtype: of weights and products.
    """
    model = open_model(folder, dtype)
    by_scale = velocities(model, inputs, False)
    add_lora(model, lora)
    by_scale |= velocities(model, inputs, True)
    with watched(model) as blocks:
        velocity(model, inputs, GUIDANCES[0])
    return by_scale, blocks


def measure_exactly(
    folder: Path, lora: Path, inputs: Inputs, blocks: Sequence[Block]
) -> tuple[Velocities, list[Streams]]:
    """The same in float32, and its blocks' outputs for the inputs of recorded blocks.

    Args:
        folder: the pipeline's.
        lora: file of the LoRA.
        inputs: inputs of the model.
        blocks: recorded blocks, whose inputs the float32 blocks are run on.
    """
    model = open_model(folder, "float32")
    found = velocities(model, inputs, False)
    add_lora(model, lora)
    found |= velocities(model, inputs, True)
    return found, [again(model, block, inputs) for block in blocks]


def open_model(folder: Path, dtype: str) -> FluxTransformer2DModel:
    """Load the pipeline's transformer to the device."""
    # A local folder; nothing is downloaded.
    model = FluxTransformer2DModel.from_pretrained(  # nosec B615
        folder, subfolder="transformer", torch_dtype=getattr(torch, dtype)
    )
    return model.to(device())  # pyright: ignore[reportCallIssue, reportArgumentType]


def add_lora(model: FluxTransformer2DModel, file: Path) -> None:
    """Load a LoRA as `FluxPipeline.load_lora_weights` does; that method needs text encoders too."""
    found: Any = FluxPipeline.lora_state_dict(
        str(file.parent), weight_name=file.name, return_alphas=True, return_lora_metadata=True
    )
    state, alphas, metadata = found
    FluxPipeline.load_lora_into_transformer(state, alphas, model, metadata=metadata)


def velocities(model: FluxTransformer2DModel, inputs: Inputs, adapted: bool) -> Velocities:
    """Velocities of the model in its present state, with a LoRA or without."""
    return {(adapted, scale): velocity(model, inputs, scale) for scale in GUIDANCES}


@torch.no_grad()
def velocity(model: FluxTransformer2DModel, inputs: Inputs, guidance: float) -> np.ndarray:
    """One velocity, from arguments as FluxPipeline passes them."""
    place: Any = {"device": model.device, "dtype": model.dtype}
    text_ids, image_ids = positions(model, inputs)
    scale = torch.full((1,), guidance, device=model.device, dtype=torch.float32)
    output = model(
        hidden_states=torch.tensor(inputs.latents, **place),
        encoder_hidden_states=torch.tensor(inputs.text, **place),
        pooled_projections=torch.tensor(inputs.pooled, **place),
        timestep=torch.full((1,), TIMESTEP, **place),
        img_ids=image_ids,
        txt_ids=text_ids,
        guidance=scale if model.config["guidance_embeds"] else None,
        return_dict=False,
    )
    return as_array(output[0])


def positions(model: FluxTransformer2DModel, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of text and image tokens."""
    place: Any = {"device": model.device, "dtype": model.dtype}
    image_ids = FluxPipeline._prepare_latent_image_ids(1, inputs.side, inputs.side, **place)
    return torch.zeros(inputs.text.shape[1], 3, **place), image_ids


@contextmanager
def watched(model: FluxTransformer2DModel) -> Iterator[list[Block]]:
    """A list that records each block's inputs and outputs during forward passes."""
    found: list[Block] = []

    def note(
        kind: Kind, index: int, block: Any, args: Any, given: dict[str, Any], made: Any
    ) -> None:
        before = Streams(as_array(given["hidden_states"]), as_array(given["encoder_hidden_states"]))
        text, image = made
        after = Streams(as_array(image), as_array(text))
        found.append(Block(kind, index, before, as_array(given["temb"]), after))

    hooks = [
        block.register_forward_hook(partial(note, kind, index), with_kwargs=True)
        for kind in ("dual", "single")
        for index, block in enumerate(stack(model, kind))
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def again(model: FluxTransformer2DModel, block: Block, inputs: Inputs) -> Streams:
    """Output of the model's own block for a recorded block's inputs."""
    place: Any = {"device": model.device, "dtype": model.dtype}
    text, image = stack(model, block.kind)[block.index](
        hidden_states=torch.tensor(block.given.image, **place),
        encoder_hidden_states=torch.tensor(block.given.text, **place),
        temb=torch.tensor(block.conditioning, **place),
        image_rotary_emb=model.pos_embed(torch.cat(positions(model, inputs))),
    )
    return Streams(as_array(image), as_array(text))


def stack(model: FluxTransformer2DModel, kind: Kind) -> Sequence[torch.nn.Module]:
    """The model's blocks of one kind."""
    blocks: Any = model.transformer_blocks if kind == "dual" else model.single_transformer_blocks
    return blocks


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as an array in the host's memory, without rounding."""
    return tensor.float().cpu().numpy()
