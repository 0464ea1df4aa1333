"""Identifies files that are not an adapter of FLUX.1's transformer, or contain more than that.

Messages have one line: what the file is, at most three keys, and the number of keys.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from flux_jax.errors import LONGEST, InputError, counted, shortened

# Maximum length of a key in a message.
SHOWN = 80
EXAMPLES = 3

_ENCODERS = re.compile(
    r"(lora_prior_te|lora_te\d?|lycoris_te\d?|te\d?|text_encoder(_\d)?|text_encoders|clip_[lg]"
    r"|t5(xxl)?|cond_stage_model|conditioner|lora_clip_[lg]|lora_t5(xxl)?"
    r"|((base_model\.model\.|lycoris_|transformer\.)?text_model))[._]"
)
_T5 = re.compile(r"t5|te[23]|text_encoder_[23]|SelfAttention|DenseReluDense", re.IGNORECASE)
_EMBEDDINGS = re.compile(r"bundle_emb\.")
_NORM = re.compile(r"(query_norm|key_norm|norm_(added_)?[qk])([._]|$)")
# Prefix of a pattern for tensors of a model, which are not part of an adapter.
_WHOLE = r"^(?!.*(lora_[AB]|lora_down|lora_up|\.down\.|\.up\.)).*"
_WEIGHT = r"\.(weight|bias|scale)$"
_FLUX_LAYER = (
    r"((single_)?transformer_blocks\.\d+\.(attn|norm|proj|ff)|(double|single)_blocks\.\d+\."
    r"(img|txt|linear|modulation|norm)|img_in|txt_in|time_in|vector_in|guidance_in|final_layer"
    r"|x_embedder|context_embedder|time_text_embed|norm_out|proj_out)"
)
# (pattern of a key, what the file is, what to do), most reliable first.
_OTHERS = (
    (r"ip_adapter|image_proj\.|to_[kv]_ip", "an IP adapter", "it needs an image encoder"),
    (
        r"controlnet|input_hint_block|control_add_embedder|control_model\.|zero_convs",
        "a ControlNet",
        "it is a network beside the model",
    ),
    (r"^(first_stage_model|encoder|decoder)\.(encoder|decoder|down|up|mid|conv)", "a VAE", ""),
    (r"redux_(up|down)", "FLUX.1 Redux", "it needs an image encoder"),
    (r"distilled_guidance_layer", "of another model, Chroma", ""),
    (
        r"double_stream_modulation|single_stream_modulation|to_qkv_mlp_proj|\.ff(_context)?\.linear_in"
        r"|time_guidance_embed",
        "of another model, FLUX.2",
        "",
    ),
    (
        r"(input|output|middle|down|up|mid)_blocks?[._]|label_emb",
        "of another model, SDXL or Stable Diffusion 1.5",
        "",
    ),
    (
        r"img_mlp[._]fc|txt_mlp[._]fc|img_mod[._]linear|individual_token_refiner"
        r"|modulation[._]linear",
        "of another model, Hunyuan Video",
        "",
    ),
    (
        r"(transformer_)?blocks[._]\d+[._]((img|txt)_mlp[._]net|(img|txt)_mod[._]1)",
        "of another model, Qwen-Image",
        "",
    ),
    (r"joint_blocks|transformer_blocks[._]\d+[._]attn2[._]add_", "of another model, SD3", ""),
    (r"joint_transformer_blocks", "of another model, AuraFlow", ""),
    (r"(double|single)_stream_blocks", "of another model, HiDream", ""),
    (
        r"(^|(?<!transformer)[._])blocks[._]\d+[._](self_attn|cross_attn|attn[12]|ffn)|lora_unet__?blocks_\d",
        "of another model, Wan",
        "",
    ),
    (r"transformer_blocks[._]\d+[._]attn[12][._]", "of another model, SD3, LTX or PixArt", ""),
    (
        r"(noise_refiner|context_refiner|cap_embedder)|layers[._]\d+[._](attention|feed_forward)",
        "of another model, Lumina or Z-Image",
        "",
    ),
    (
        r"layers[._]\d+[._](self_attn|mlp)|(^|\.)lm_head|(^|\.)h\.\d+\.attn",
        "of a language model",
        "",
    ),
    (
        r"^(emb_params|string_to_param|string_to_token|clip_[lg]|t5(xxl)?|<.*>)$",
        "a textual inversion",
        "put the words that it stands for in the prompt",
    ),
    (
        rf"{_WHOLE}{_FLUX_LAYER}.*{_WEIGHT}",
        "a whole model",
        "give it as the model",
    ),
)
_OTHERS_FOUND = [(re.compile(text), what, mend) for text, what, mend in _OTHERS]
# Unsupported parts of changes, by the endings of keys.
_FORMS = (
    (r"\.(lora_mid\.weight|lokr_t2|hada_t[12])$", "convolutions' factors"),
    (r"\.(oft_blocks|oft_diag|oft_R|vera_lambda_\w+|boft\w*)(\.|$)", "OFT, BOFT or VeRA"),
    (r"\.([ab][12]\.weight|on_input)$", "GLoRA or IA3"),
    (r"\.lora_E$", "AdaLoRA"),
    (r"\.(set_weight|reshape_weight)$", "weights that replace the model's"),
    (rf"{_WHOLE}({_WEIGHT}|\.modules_to_save\.)", "full weights"),
    (r"\.lora_A(\.[^.]+)?\.bias$|\.lora_down\.bias$", "biases between the matrices"),
)
_FORMS_FOUND = [(re.compile(text), what) for text, what in _FORMS]
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_CONTENTS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (
        _PICKLES,
        "is a pickle, which can run arbitrary code when opened; load it with "
        "torch.load(..., weights_only=True) and save its tensors with safetensors.torch.save_file",
    ),
    ((b"GGUF",), "is a GGUF file; give the adapter as safetensors"),
    ((b"version https://git-lfs",), "is a Git LFS pointer; fetch the file (git lfs pull)"),
    ((b"<", b"\n<"), "is a web page; download the file itself"),
)


def refuse_content(file: Path) -> None:
    """Refuses a file whose first bytes show that it is not a safetensors file.

    Raises:
        InputError: the message says what it is.
    """
    if not file.is_file():
        return
    with file.open("rb") as opened:
        begin = opened.read(64)
    if not begin:
        raise InputError(f"{file}: is empty, not a safetensors file; copy or download it again")
    # The file starts with the header's length, 8 bytes of any value, and then the header.
    if begin[5:9] == b"\0\0\0{":
        return
    for starts, what in _CONTENTS:
        if begin.startswith(starts):
            raise InputError(f"{file}: {what}")


def split_encoders(names: Collection[str]) -> tuple[list[str], str]:
    """Separates tensors of text encoders from the others.

    Args:
        names: names of all tensors.

    Returns:
        The other names, and a line such as "144 tensors of the text encoder CLIP", or "".
    """
    counts = {"the text encoder CLIP": 0, "the text encoder T5": 0, "embeddings of words": 0}
    rest = []
    for name in names:
        if _EMBEDDINGS.match(name):
            counts["embeddings of words"] += 1
        elif _ENCODERS.match(name):
            encoder = "T5" if _T5.search(name) and "text_model" not in name else "CLIP"
            counts[f"the text encoder {encoder}"] += 1
        else:
            rest.append(name)
    said = [f"{counted(count, 'tensor')} of {what}" for what, count in counts.items() if count]
    return rest, " and ".join(said)


def is_norm(name: str) -> bool:
    """Whether a key belongs to a norm of queries or keys."""
    return bool(_NORM.search(name))


def refuse_unknown(file: Path, unknown: Sequence[str], known: int) -> None:
    """Refuses keys that belong to no layout, with a message that says what the file is.

    Args:
        file: the file.
        unknown: the keys.
        known: number of keys that belong to an adapter of FLUX.1's transformer.

    Raises:
        InputError: there are unknown keys, or no keys at all.
    """
    if not unknown and known:
        return
    if not unknown:
        raise InputError(f"{file}: holds no tensor; copy or download it again")
    norms = [name for name in unknown if is_norm(name)]
    if norms and known:
        raise listed(
            f"{file}: a control LoRA of FLUX.1 (Canny, Depth), or one that changes norms",
            norms,
            "only changes of dense layers are supported",
        )
    if known:
        for pattern, what in _FORMS_FOUND:
            matches = [name for name in unknown if pattern.search(name)]
            if matches:
                raise listed(f"{file}: an adapter with {what}", matches, "these are not supported")
    for pattern, what, mend in _OTHERS_FOUND:
        matches = [name for name in unknown if pattern.search(name)]
        if matches:
            said = f"{file}: {what}, not an adapter of FLUX.1's transformer"
            raise listed(said, matches, mend or "give one that was made for FLUX.1")
    for pattern, what in _FORMS_FOUND:
        matches = [name for name in unknown if pattern.search(name)]
        if matches:
            raise listed(
                f"{file}: {what}", matches, "these are not supported; give a LoRA of FLUX.1"
            )
    said = "no known adapter layout"
    if known:
        said = (
            f"{counted(known, 'key')} {'belongs' if known == 1 else 'belong'} to an "
            "adapter but these do not"
        )
    example = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    raise listed(f"{file}: {said}", unknown, f"expected keys such as {example}")


def listed(said: str, items: Sequence[str], mend: str, most: int = SHOWN) -> InputError:
    """An error of one line, with the number of items and as many examples as fit.

    Args:
        said: file name and problem.
        items: the items that have the problem.
        mend: what to do.
        most: maximum length of an example.
    """
    shown = [shortened(item, most) for item in items[:EXAMPLES]]
    while True:
        more = len(items) - len(shown)
        count = f" and {more} more" if more else ""
        message = f"{said}: {', '.join(shown)}{count}; {mend}"
        if len(message) <= LONGEST or len(shown) == 1:
            return InputError(message)
        shown.pop()
