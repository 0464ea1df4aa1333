"""Labels of variants and methods in tables and figures.

The numbers keep the names that their experiments gave them; some of those are short for the
experiment's own use.
"""

LABELS = {
    # Compositions.
    "sum, strength found": "sum, calibrated strength",
    "fusion, told what stays, rank 8": "fusion with --keep, rank 8",
    "fusion, told what stays, rank 64": "fusion with --keep, rank 64",
    # Layers and learning rate of an entity.
    "values too, 1e-3": "queries, keys and values, 1e-3",
    "values too, 2e-3": "queries, keys and values, 2e-3",
    "values too, 3e-3": "queries, keys and values, 3e-3",
    "values too, 3e-3, batches of 4": "queries, keys and values, 3e-3, batch size 4",
    # Settings.
    "early stop, queries and keys alone": "early stop, queries and keys only",
    # Choices within the method.
    "trajectories of the student": "trajectories from the student",
    "L_attn as released": "L_attn of the released code",
    "L_rsc literal": "L_rsc by the paper's equation",
    "L_rsc as released": "L_rsc of the released code",
    "L_rsc, last block": "L_rsc, last block only",
    "L_lora on the concept's pictures": "L_lora on pictures of the concept",
    "L_lora without the concept": "L_lora on prompts without the concept",
    "L_lora towards noise": "L_lora with the noise target",
    "joint": "both levels as one sum",
    "adaptive": "adaptive weights",
    "queries and keys alone": "queries and keys only",
    "the empty prompt as stand-in": "empty prompt as replacement",
    # Presets.
    "ours": "this project's settings",
    # Swaps of tokens.
    "nothing": "none",
    "the two things' tokens": "the two objects' tokens",
}


def label(name: str) -> str:
    """What tables and figures call a variant or method."""
    return LABELS.get(name, name)
