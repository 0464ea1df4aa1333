"""Tiny CLIPs of transformers with random weights."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from helpers import tiny

# Text and image sizes; patches that do and do not fill the picture.
SHAPES: dict[str, dict[str, Any]] = {
    "even, quick": {
        "text_config": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2},
        "vision_config": {
            **{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2},
            **{"image_size": 32, "patch_size": 8},
        },
        "projection_dim": 12,
    },
    "uneven, exact": {
        "text_config": {
            **{"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1},
            **{"hidden_act": "gelu", "eos_token_id": 2},
        },
        "vision_config": {
            **{"hidden_size": 20, "num_attention_heads": 5, "num_hidden_layers": 3},
            **{"image_size": 30, "patch_size": 7, "hidden_act": "gelu"},
        },
        "projection_dim": 20,
    },
    "one patch": {
        "text_config": {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1},
        "vision_config": {
            **{"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1},
            **{"image_size": 16, "patch_size": 16},
        },
        "projection_dim": 8,
    },
}


def reference(shape: dict[str, Any], vocabulary: int = 50, end: int = 49) -> Any:
    """A CLIP of transformers whose every parameter is random."""
    usual = {"intermediate_size": 40}
    text = {"vocab_size": vocabulary, "max_position_embeddings": 20, "bos_token_id": 0}
    config = transformers.CLIPConfig(
        text_config={**usual, **text, "eos_token_id": end, **shape["text_config"]},
        vision_config={**usual, **shape["vision_config"]},
        projection_dim=shape["projection_dim"],
    )
    torch.manual_seed(0)
    return tiny.randomise(transformers.CLIPModel(config), 5)


def save(folder: Path) -> Path:
    """Write a tiny CLIP with tokenizer and settings as transformers does; return its folder."""
    tokenizer = tiny.clip_tokenizer()
    shape = SHAPES["even, quick"]
    reference(shape, len(tokenizer), tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder
