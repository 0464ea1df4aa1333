"""The questionnaire as one HTML file that works without a network."""

import json
from collections.abc import Sequence
from importlib import resources

from markupsafe import Markup

from erase.report.plain_text import page_environment
from erase.survey.questions import Key, Trial


def render(trials: Sequence[Trial], key: Key, seed: int) -> str:
    """Render the page.

    Args:
        trials: of the questionnaire.
        key: its key, of which the page gets only the study's digest.
        seed: with a rater's number, decides the order of trials and items.
    """
    folder = resources.files("erase.survey")
    template = page_environment().from_string(folder.joinpath("page.html.j2").read_text())
    data = {"study": key["study"], "seed": seed, "trials": trials}
    # Inside a script element only "<" could end it.
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    script = folder.joinpath("page.js").read_text()
    # JSON without "<", and a file of this package: neither may be escaped.
    values = {"data": Markup(text), "script": Markup(script)}  # nosec B704
    return template.render(values)
