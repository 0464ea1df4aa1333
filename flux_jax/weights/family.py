"""Refuses unsupported relatives of FLUX.1, recognised by their configurations and tensor names.

Kontext, lite and fine-tuned models are read as far as they agree with [dev]: text-to-image. A model
whose transformer takes inputs besides noise, or has another architecture, is refused by name.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flux_jax.errors import InputError

INDEX = "model_index.json"
CLASS = "_class_name"
READ = "only text-to-image models of FLUX.1 are supported: use [dev], [schnell], Kontext or similar"
# Pipelines that share the transformer and the weights of FluxPipeline.
PIPELINES = (
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxKontextPipeline",
    "FluxKontextInpaintPipeline",
)
TRANSFORMERS = ("FluxTransformer2DModel", "FluxTransformer2DModelWithMasking")
# Other models by the beginning of their class names; the first match counts.
CLASSES = {
    "FluxFill": "FLUX.1 Fill, which is for inpainting",
    "FluxControlNet": "a ControlNet of FLUX.1",
    "FluxMultiControlNet": "a ControlNet of FLUX.1",
    "FluxControl": "FLUX.1 Depth or Canny, which need a control image",
    "FluxPriorRedux": "FLUX.1 Redux, which takes images as prompts",
    "Redux": "FLUX.1 Redux, which takes images as prompts",
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
# Models by a part of a tensor name that does not occur in FLUX.1's transformers.
NAMES = {
    "distilled_guidance_layer.": "Chroma",
    "double_stream_modulation_img.": "FLUX.2",
    "redux_up.": "FLUX.1 Redux, which takes images as prompts",
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
    "lora_A.": "an adapter (LoRA), not a model",
    "lora_down.": "an adapter (LoRA), not a model",
}
_NAMES = re.compile("|".join(map(re.escape, NAMES)))


class OtherModelError(InputError):
    """The model is of a kind that is not supported."""


def kind_of(names: Collection[str]) -> str | None:
    """The unsupported kind of model that tensors of these names belong to, or None."""
    kinds = {match[0] for name in names if (match := _NAMES.search(name))}
    return next((kind for part, kind in NAMES.items() if part in kinds), None)


def check_names(where: Path, names: Collection[str]) -> None:
    """Refuses tensors of another model.

    Raises:
        OtherModelError: they belong to another model; the message names it.
    """
    kind = kind_of(names)
    if kind is not None:
        raise OtherModelError(f"{where}: this is {kind}; {READ}")


def check_config(where: Path, config: Mapping[str, Any]) -> None:
    """Refuses another model's transformer.

    Args:
        where: its file or folder, for messages.
        config: its sizes, with the names of diffusers' `config.json`.

    Raises:
        OtherModelError: it is another model, or takes inputs besides noise; the message names it.
    """
    name = config.get(CLASS, TRANSFORMERS[0])
    if name not in TRANSFORMERS:
        raise OtherModelError(f"{where}: this is {_named(name)} ({CLASS} {_short(name)}); {READ}")
    inputs, outputs = config.get("in_channels", 64), config.get("out_channels")
    if outputs not in (None, inputs):
        kind = {
            6: "FLUX.1 Fill, which is for inpainting",
            2: "FLUX.1 Depth or Canny, which need a control image",
        }.get(inputs / outputs if _whole(inputs) and _whole(outputs) else 0)
        raise OtherModelError(
            f"{where}: this is {kind or 'a model with inputs besides noise'} (in_channels = "
            f"{_short(inputs)}, out_channels = {_short(outputs)}); {READ}"
        )


def check_index(root: Path, index: Mapping[str, Any]) -> None:
    """Refuses a folder whose index names another pipeline.

    Args:
        root: the folder.
        index: its parsed `model_index.json`.

    Raises:
        OtherModelError: it does; the message names the pipeline.
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
    """A value from a file, shortened for a message."""
    text = repr(value)
    return text if len(text) < 50 else f"{text[:49]}..."


def _whole(value: Any) -> bool:
    return isinstance(value, int) and value > 0
