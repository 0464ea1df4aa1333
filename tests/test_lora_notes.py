"""Notes about adapter files that are read in part, or by a guess."""

import numpy as np
import pytest
from helpers.adapters import WIDTH, square_tensors
from safetensors.numpy import save_file

from convert.adapters.files import read_layers

RNG = np.random.default_rng(0)
LEFT_OUT = {
    "kohya": ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "CLIP"),
    "kohya's one": ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "CLIP"),
    "kohya's t5": ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight", "T5"),
    "kohya's second": ("lora_te2_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight", "T5"),
    "diffusers": ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "CLIP"),
    "diffusers' t5": ("text_encoder_2.encoder.block.0.layer.1.wo.lora_A.weight", "T5"),
    "comfyui": ("text_encoders.clip_l.transformer.text_model.layers.0.fc1.lora_A.weight", "CLIP"),
    "comfyui's t5": ("text_encoders.t5xxl.transformer.encoder.block.0.wo.lora_A.weight", "T5"),
    "onetrainer": ("clip_l.text_model.encoder.layers.0.mlp.fc1.lora_down.weight", "CLIP"),
    "onetrainer's t5": ("t5xxl.encoder.block.0.layer.1.wo.lora_down.weight", "T5"),
    "lycoris": ("lycoris_text_model_encoder_layers_0_mlp_fc1.lokr_w1", "CLIP"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_text_encoders_are_left_out_with_a_line(tmp_path, capsys, kind):
    name, encoder = LEFT_OUT[kind]
    extra = {
        name: np.ones((2, 2), np.float32),
        name.replace("0", "1", 1): np.ones((2, 2), np.float32),
    }
    file = tmp_path / "a.safetensors"
    save_file(square_tensors(RNG) | extra, file)
    assert list(read_layers(file).layers) == [("dual_blocks/attn/to_q", 0)]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("note: ")
    assert f"left out 2 tensors of the text encoder {encoder};" in said
    read_layers(file)
    assert not capsys.readouterr().err


def test_layers_without_a_change_are_left_out_with_a_line(tmp_path, capsys):
    stem = "diffusion_model.double_blocks.{}.img_attn.proj"
    tensors = square_tensors(RNG, 0, stem=stem) | square_tensors(RNG, 1, alpha=0, stem=stem)
    tensors[f"{stem.format(0)}.diff_b"] = np.zeros(WIDTH, np.float32)
    tensors[f"{stem.format(2)}.diff"] = np.zeros((WIDTH, WIDTH), np.float32)
    tensors["diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff"] = np.zeros(4, "f4")
    file = tmp_path / "a.safetensors"
    save_file(tensors, file)
    (layer,) = read_layers(file).layers.values()
    assert layer.bias is None
    said = capsys.readouterr().err
    assert "left out 2 layers with an alpha of 0 or only zeros" in said
    assert "left out 1 difference of norms, all zeros" in said


def test_peft_s_file_without_its_configuration_says_what_is_guessed(tmp_path, capsys):
    tensors = square_tensors(RNG, stem="base_model.model.transformer_blocks.{}.attn.to_q")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert len(read_layers(tmp_path).layers) == 1
    assert "no adapter_config.json beside it" in capsys.readouterr().err
