"""What all runs on FLUX.1 [dev] share: the model, its sizes, and one sample in a batch."""

from collections.abc import Mapping
from typing import Any

from erase.runs.presets import ONE_SAMPLE

SETTINGS: Mapping[str, Any] = {
    "model": {"path": "black-forest-labs/FLUX.1-dev", "dtype": "bfloat16"},
    "height": 512,
    "width": 512,
    "text_tokens": 256,
    "by_method": ONE_SAMPLE,
}


def split_name(name: str) -> tuple[str, str]:
    """Split "NAME/PART", the text after a configuration's colon.

    Returns:
        The name, and the part; empty if there is none.
    """
    first, _, second = name.partition("/")
    return first, second
