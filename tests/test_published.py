"""Published configurations: omitted fields have the defaults of diffusers and transformers."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from helpers import published

from benchmarks.make_checkpoint import configs
from flux_jax.models.clip.text import CLIPTextConfig
from flux_jax.models.t5 import T5Config
from flux_jax.models.transformer import FluxConfig
from flux_jax.models.vae import VAEConfig
from flux_jax.sampling import Schedule
from flux_jax.weights import original


def listed(fields: Any) -> dict[str, Any]:
    """Fields with lists as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in dict(fields).items()}


@pytest.mark.parametrize("name", published.TRANSFORMERS)
def test_transformers_fields_are_those_of_diffusers(name: str):
    config = published.TRANSFORMERS[name]
    with torch.device("meta"):
        theirs = FluxTransformer2DModel.from_config(config).config
    assert asdict(FluxConfig.from_dict(config)).items() <= listed(theirs).items()


@pytest.mark.parametrize("config", [published.VAE, published.OLD_VAE], ids=["dev", "old"])
def test_autoencoders_fields_are_those_of_diffusers(config: dict):
    with torch.device("meta"):
        theirs = AutoencoderKL.from_config(config).config
    assert asdict(VAEConfig.from_dict(config)).items() <= listed(theirs).items()


@pytest.mark.parametrize("name", published.SCHEDULERS)
def test_schedules_fields_are_those_of_diffusers(name: str):
    config = published.SCHEDULERS[name]
    theirs = FlowMatchEulerDiscreteScheduler.from_config(config).config
    assert asdict(Schedule.from_dict(config)).items() <= listed(theirs).items()


@pytest.mark.parametrize(
    "config", [published.CLIP, published.WHOLE_CLIP, {}], ids=["dev", "openai", "silent"]
)
def test_clips_fields_are_those_of_transformers(config: dict):
    theirs: Any
    if "text_config" in config:
        theirs = transformers.CLIPConfig(**config).text_config
        assert isinstance(theirs, transformers.CLIPTextConfig)
    else:
        theirs = transformers.CLIPTextConfig(**config)
    ours = asdict(CLIPTextConfig.from_dict(config))
    # With text_config_dict, transformers fills in fields that it omits, but a text encoder alone is
    # loaded from text_config, where the end of text is the older number.
    end = config.get("text_config", config).get("eos_token_id", theirs.eos_token_id)
    assert ours.items() <= (listed(theirs.to_dict()) | {"eos_token_id": end}).items()


@pytest.mark.parametrize("config", [published.T5, published.OLD_T5], ids=["dev", "google"])
def test_t5s_fields_are_those_of_transformers(config: dict):
    theirs = transformers.T5Config(**config).to_dict()
    assert asdict(T5Config.from_dict(config)).items() <= listed(theirs).items()


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_made_checkpoints_have_the_published_fields(variant: str):
    made = configs(variant)
    assert made["transformer"] == published.TRANSFORMERS[variant]
    assert made["text_encoder"] == published.CLIP
    assert made["text_encoder_2"] == published.T5
    assert made["vae"].keys() == published.VAE.keys()
    schedule = original.schedule_config(variant == "dev")
    assert schedule | {"_diffusers_version": "0.30.0.dev0"} == published.SCHEDULERS[variant]
