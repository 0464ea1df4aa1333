"""Relatives of FLUX.1 that are not read, told by configurations and by tensors' names.

Kontext, lite and models with other training are read as what they share with [dev]: drawing from
text. A model whose transformer takes more than noise, or is built differently, is refused by name.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flux_jax.errors import InputError

INDEX = "model_index.json"
CLASS = "_class_name"
READ = "only text-to-image models of FLUX.1 are read: take [dev], [schnell], Kontext or the like"
# Pipelines whose transformer and weights are those of FluxPipeline.
PIPELINES = (
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxKontextPipeline",
    "FluxKontextInpaintPipeline",
)
TRANSFORMERS = ("FluxTransformer2DModel", "FluxTransformer2DModelWithMasking")
# Other models by how their classes' names begin; the first that fits counts.
CLASSES = {
    "FluxFill": "FLUX.1 Fill, which paints into pictures",
    "FluxControlNet": "a ControlNet of FLUX.1",
    "FluxMultiControlNet": "a ControlNet of FLUX.1",
    "FluxControl": "FLUX.1 Depth or Canny, which follow a control picture",
    "FluxPriorRedux": "FLUX.1 Redux, which takes pictures as prompts",
    "Redux": "FLUX.1 Redux, which takes pictures as prompts",
    "Flux2": "FLUX.2",
    "Chroma": "Chroma",
    "SD3": "Stable Diffusion 3",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion": "Stable Diffusion",
    "UNet2DCondition": "Stable Diffusion",
    "HunyuanVideo": "HunyuanVideo",
    "QwenImage": "Qwen-Image",
    "ZImage": "Z-Image",
    "Lumina": "Lumina",
    "AuraFlow": "AuraFlow",
    "PixArt": "PixArt",
    "HiDream": "HiDream",
    "Wan": "Wan",
}
# Models by a part of a tensor's name that none of FLUX.1's transformers has.
NAMES = {
    "distilled_guidance_layer.": "Chroma",
    "double_stream_modulation_img.": "FLUX.2",
    "redux_up.": "FLUX.1 Redux, which takes pictures as prompts",
    "controlnet_blocks.": "a ControlNet of FLUX.1",
    "controlnet_x_embedder.": "a ControlNet of FLUX.1",
    "ip_adapter": "an IP-Adapter of FLUX.1",
    "individual_token_refiner.": "HunyuanVideo",
    "joint_blocks.0.": "Stable Diffusion 3",
    "transformer_blocks.0.img_mod.": "Qwen-Image",
    "conditioner.embedders.": "Stable Diffusion XL",
    "input_blocks.0.": "Stable Diffusion",
    "cond_stage_model.": "Stable Diffusion",
    ".smooth_factor": "a model in SVDQuant's four bits",
    "lora_A.": "an adapter (LoRA) and not a model",
    "lora_down.": "an adapter (LoRA) and not a model",
}
_NAMES = re.compile("|".join(map(re.escape, NAMES)))


class OtherModelError(InputError):
    """What was given is a model that is not read."""


def kind_of(names: Collection[str]) -> str | None:
    """What a file with tensors of these names holds in the place of FLUX.1's transformer."""
    kinds = {match[0] for name in names if (match := _NAMES.search(name))}
    return next((kind for part, kind in NAMES.items() if part in kinds), None)


def check_names(where: Path, names: Collection[str]) -> None:
    """Refuses tensors of another model.

    Raises:
        OtherModelError: they are; it is named.
    """
    kind = kind_of(names)
    if kind is not None:
        raise OtherModelError(f"{where}: this is {kind}; {READ}")


def check_config(where: Path, config: Mapping[str, Any]) -> None:
    """Refuses another model's transformer.

    Args:
        where: it lies, for messages.
        config: its sizes, under the names of diffusers' `config.json`.

    Raises:
        OtherModelError: it is another's, or takes more than noise; it is named.
    """
    name = config.get(CLASS, TRANSFORMERS[0])
    if name not in TRANSFORMERS:
        raise OtherModelError(f"{where}: this is {_named(name)} ({CLASS} {_short(name)}); {READ}")
    inputs, outputs = config.get("in_channels", 64), config.get("out_channels")
    if outputs not in (None, inputs):
        kind = {
            6: "FLUX.1 Fill, which paints into pictures",
            2: "FLUX.1 Depth or Canny, which follow a control picture",
        }.get(inputs / outputs if _whole(inputs) and _whole(outputs) else 0)
        raise OtherModelError(
            f"{where}: this is {kind or 'a model that takes more than noise'} (in_channels = "
            f"{_short(inputs)}, out_channels = {_short(outputs)}); {READ}"
        )


def check_index(root: Path, index: Mapping[str, Any]) -> None:
    """Refuses a folder which says that it is another pipeline.

    Args:
        root: the folder.
        index: its parsed `model_index.json`.

    Raises:
        OtherModelError: it says so; the pipeline is named.
    """
    name = index.get(CLASS, PIPELINES[0])
    if name not in PIPELINES:
        raise OtherModelError(
            f"{root}: this is {_named(name)} ({INDEX} says {_short(name)}); {READ}"
        )


def _named(name: Any) -> str:
    kinds = (kind for start, kind in CLASSES.items() if str(name).startswith(start))
    return next(kinds, "another model")


def _short(value: Any) -> str:
    """A file's value for a message."""
    text = repr(value)
    return text if len(text) < 50 else f"{text[:49]}..."


def _whole(value: Any) -> bool:
    return isinstance(value, int) and value > 0
