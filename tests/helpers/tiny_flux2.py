"""A complete diffusers Flux2KleinPipeline folder with tiny random weights, for tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from helpers.tiny import SENTENCES, randomise

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
# In the form of Qwen3's, without tools.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
HIDDEN = 16


def make_tokenizer() -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([*SENTENCES, "user assistant"], trainer)
    return Qwen2TokenizerFast(
        tokenizer_object=inner,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        chat_template=TEMPLATE,
        model_max_length=131072,
    )


def make_klein(folder: Path, distilled: bool, **changes: Any) -> Flux2KleinPipeline:
    """Write the pipeline.

    Args:
        folder: where.
        distilled: [klein], or [klein] base.
        **changes: to the transformer's sizes.
    """
    tokenizer = make_tokenizer()
    levels = 2
    parts = {
        "transformer": Flux2Transformer2DModel(
            **{
                "in_channels": 16,
                "num_layers": 2,
                "num_single_layers": 3,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 3 * HIDDEN,
                "guidance_embeds": False,
                "axes_dims_rope": (4, 4, 4, 4),
            }
            | changes
        ),
        "vae": AutoencoderKLFlux2(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        ),
        "text_encoder": Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer) + 3,
                hidden_size=HIDDEN,
                intermediate_size=24,
                num_hidden_layers=29,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            )
        ),
    }
    for seed, (_, part) in enumerate(sorted(parts.items())):
        randomise(part, seed)
    # randomise changes parameters alone, no statistics.
    torch.manual_seed(0)
    torch.nn.init.normal_(parts["vae"].bn.running_mean, 0.0, 0.5)
    torch.nn.init.uniform_(parts["vae"].bn.running_var, 0.5, 2.0)
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        tokenizer=tokenizer,
        is_distilled=distilled,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe
