r"""Serve a playground: a page that draws with a model and adapters at any strength.

    erase-anything play --model models/emoji-flux --adapter runs/soccer-ball \
        --judge models/emoji-flux/judge

The page has a slider from -1 to 2 for each adapter; the base model's picture and the erased one,
from the same noise, are side by side. It is at http://127.0.0.1:7860. Saved pictures hold their
settings and the command that draws them again. Needs `pip install 'erase-anything-jax[play]'`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from convert.adapters.paths import find_adapter
from erase.cli.flags import begin, parse_flags
from flux_jax.errors import InputError, exits_cleanly, note

LOCAL = ("127.0.0.1", "localhost", "::1")
PASSWORD = "ERASE_PLAY_PASSWORD"  # nosec B105


def define_flags() -> None:
    """Declare the command's flags. A function, so that importing this module declares none."""
    flags.DEFINE_string("model", "models/emoji-flux", "Pipeline: folder, file or name on the hub.")
    flags.DEFINE_multi_string("adapter", [], "Adapter file or folder; may be repeated.")
    flags.DEFINE_string("judge", None, "Folder of a judge, whose verdict the page shows.")
    flags.DEFINE_integer("steps", 28, "Euler steps at the start.", lower_bound=1)
    flags.DEFINE_float("guidance", 3.5, "Distilled guidance scale at the start.")
    flags.DEFINE_integer("most_pixels", None, "Largest side; by default twice the model's size.")
    flags.DEFINE_string("out", "pictures", "Folder for saved PNG files.")
    flags.DEFINE_string(
        "host", LOCAL[0], f"Address to listen at; others than this computer need {PASSWORD}."
    )
    flags.DEFINE_integer("port", 7860, "Port to listen at.", 1, 65_535)
    flags.DEFINE_boolean(
        "share", False, f"A public link through Gradio's servers; needs {PASSWORD}."
    )


def check(given: flags.FlagValues) -> str | None:
    """Check what needs no model, and return the password.

    Raises:
        InputError: the model or an adapter is missing, or strangers could reach the page without a
            password.
    """
    from flux_jax.weights.hub import check_model

    check_model(given.model)
    for path in given.adapter:
        find_adapter(path)
    password = os.environ.get(PASSWORD)
    if given.share or given.host not in LOCAL:
        field = "share" if given.share else f"host = {given.host}"
        if not password:
            raise InputError(
                f"{field}: others could reach the page; set {PASSWORD} to the password that it "
                'asks for (the user is "erase")'
            )
        note(f"{field}: anybody with the password can draw with this model and fill {given.out}")
    return password


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given = flags.FLAGS
    password = check(given)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from erase.play.page import Page, Settings, launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("play needs Gradio: pip install 'erase-anything-jax[play]'") from None
    from erase.evaluation.judge import open_judge
    from erase.model.adapters import read_adapter
    from erase.play.request import check_start
    from erase.play.studio import Studio
    from flux_jax.pipeline import load

    check_start(given.steps, given.guidance)
    judge = None if given.judge is None else open_judge(given.judge)
    adapters = {path: read_adapter(path) for path in given.adapter}
    pipe = load(given.model)
    for path, adapter in adapters.items():
        pipe.check(adapter, path)
    # A judge may take pictures of one size only.
    side = (None if judge is None else judge.size) or pipe.vae.config.sample_size
    most = 2 * side if given.most_pixels is None else given.most_pixels
    if most < side:
        raise InputError(f"most_pixels = {most} is below the {side} pixels that the page starts at")
    settings = Settings(
        given.steps,
        given.guidance,
        side,
        pipe.pixels_per_token,
        most,
        Path(given.out),
    )
    page = Page(Studio(given.model, pipe, adapters, judge), settings)
    page.warm()
    launch(page.build(), given.host, given.port, given.share, password)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
