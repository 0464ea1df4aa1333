"""Complete diffusers FluxPipeline folders with tiny random weights, for tests.

Every tensor is randomised, including those that a new model initialises to zero or one.
"""

from pathlib import Path
from typing import Any

import jax
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from erase.config.schema import AdapterConfig, BankConfig, Config, Evaluation, Model
from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, init
from erase.methods.settings.erase_anything import Upper
from erase.runs import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models" / "emoji-flux"
CLIP_TOKENS = 77
T5_TOKENS = 32
LABELS = JudgeConfig(
    ("cat", "dog", "apple"), ("plain", "dark"), ("on",), (8, 8), blocks=(1, 1), embedding=4
)
SENTENCES = (
    "a soccer ball left of a red apple in flat style",
    "a football above a green tree in outline style",
    "a happy dog below a slice of pizza, watercolor",
    "two cats, one rocket and the sun on a blue field",
)


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Randomise every parameter: matrices scaled by fan-in, norms near 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(values / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * values)
            else:
                parameter.copy_(1 + 0.1 * values)
    return model.eval()


def transformer(
    *,
    guidance: bool = True,
    axes: tuple[int, int, int] = (4, 6, 6),
    heads: int = 2,
    dual: int = 2,
    single: int = 3,
    channels: int = 4,
    text_width: int = 24,
    pooled_width: int = 16,
    seed: int = 0,
) -> FluxTransformer2DModel:
    """A tiny transformer for latents of `channels` channels; its head width is sum(axes)."""
    model = FluxTransformer2DModel(
        in_channels=4 * channels,
        num_layers=dual,
        num_single_layers=single,
        attention_head_dim=sum(axes),
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        pooled_projection_dim=pooled_width,
        guidance_embeds=guidance,
        axes_dims_rope=axes,
    )
    return randomise(model, seed)  # pyright: ignore[reportReturnType]


def clip(
    vocabulary: int,
    *,
    tokens: int = CLIP_TOKENS,
    start: int = 0,
    end: int = 1,
    width: int = 16,
    depth: int = 2,
    seed: int = 1,
) -> CLIPTextModel:
    """A tiny CLIP text encoder; start and end are the ids around a text."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    return randomise(CLIPTextModel(config), seed)  # pyright: ignore[reportReturnType]


def t5(vocabulary: int, *, width: int = 24, depth: int = 2, seed: int = 2) -> T5EncoderModel:
    """A tiny T5 encoder."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=depth,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return randomise(T5EncoderModel(config), seed)  # pyright: ignore[reportReturnType]


def vae(
    *, channels: int = 4, widths: tuple[int, ...] = (8, 16), layers: int = 1, seed: int = 3
) -> AutoencoderKL:
    """A tiny autoencoder that halves the picture len(widths) - 1 times."""
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
    }
    model = AutoencoderKL(
        **blocks,
        layers_per_block=layers,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.7,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return randomise(model, seed)  # pyright: ignore[reportReturnType]


def clip_tokenizer() -> CLIPTokenizer:
    """The shipped model's CLIP tokenizer, or a byte-level one if that is missing."""
    if (SHIPPED / "tokenizer").is_dir():
        return CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocabulary, [], model_max_length=CLIP_TOKENS)


def t5_tokenizer() -> T5Tokenizer:
    """The shipped model's T5 tokenizer, or a small one if that is missing."""
    if (SHIPPED / "tokenizer_2").is_dir():
        return T5Tokenizer.from_pretrained(SHIPPED / "tokenizer_2")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    pieces = [(piece, 0.0 if number < 3 else -float(number)) for piece, number in vocabulary]
    return T5Tokenizer(pieces, extra_ids=0, model_max_length=T5_TOKENS)


def run_config(folder: Path, **changes: Any) -> Config:
    """The smallest run on a tiny pipeline, without L_rsc and evaluation."""
    usual: dict[str, Any] = {
        "concept": "cat",
        "irrelevant": ("tree", "sun", "key"),
        "model": Model(str(folder)),
        "height": 16,
        "width": 16,
        "steps": 2,
        "iterations": 1,
        "adapter": AdapterConfig(rank=2),
        "bank": BankConfig(sentences=2, trajectories=2),
        "upper": Upper(pictures=2, rsc=0.0),
        "evaluation": Evaluation(pictures=0),
    }
    return RunConfig(**usual | changes)


def judge(folder: Path) -> Path:
    """Write a judge with random weights, which prefers no entity, and return its folder."""
    params = init(JudgeNetwork(LABELS), jax.random.key(3), 16)
    params["entity_head"]["bias"] *= 0
    NetworkJudge(LABELS, params, 16).save(folder)
    return folder


def adapter_values(*, rank: int = 8, dual: int = 2, width: int = 32) -> int:
    """Number of values in the default adapter of `transformer`: A and B of two layers per block."""
    layers = dual * len(("add_q_proj", "add_k_proj"))
    return layers * (rank * width + width * rank)


def counted(folder: Path, judge: Path) -> dict[str, Any]:
    """Configuration of the smallest run that a judge evaluates, without the concept."""
    return {
        "model": {"path": str(folder)},
        "height": 16,
        "width": 16,
        "steps": 2,
        "iterations": 1,
        "synonyms": ("kitty",),
        "irrelevant": ("tree", "sun", "key"),
        "bank": {"sentences": 2, "trajectories": 2},
        "upper": {"pictures": 2, "rsc": 0.0},
        "evaluation": {"judge": str(judge), "pictures": 2, "steps": 2, "batch": 6},
    }


def build(folder: Path, *, max_shard_size: str = "10GB", **sizes: Any) -> Path:
    """Write a pipeline folder with diffusers and return it.

    Args:
        folder: of the pipeline.
        max_shard_size: maximum size of a weight file, for instance "20KB".
        **sizes: arguments of `transformer`; the other parts follow its channels and widths.
    """
    channels = sizes.get("channels", 4)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    ends: dict[str, Any] = {"start": tokenizer.bos_token_id, "end": tokenizer.eos_token_id}
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(channels=channels),
        text_encoder=clip(
            len(tokenizer),
            tokens=tokenizer.model_max_length,
            width=sizes.get("pooled_width", 16),
            **ends,
        ),
        tokenizer=tokenizer,
        text_encoder_2=t5(len(tokenizer_2), width=sizes.get("text_width", 24)),
        tokenizer_2=tokenizer_2,
        transformer=transformer(**sizes),
    )
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
