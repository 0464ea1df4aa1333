"""The playground's page: controls, pictures side by side, and the server that bounds requests."""

import functools
import html
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, no_type_check

import gradio as gr
from gradio.themes import Default
from starlette.middleware import Middleware

from erase.play.limit import BodyLimit
from erase.play.request import (
    MOST_CHARACTERS,
    MOST_GUIDANCE,
    MOST_SEEDS,
    MOST_STEPS,
    STRIP,
    STRONGEST,
    WEAKEST,
    read_seeds,
)
from erase.play.request import Request as Wanted
from erase.play.studio import Pair, Step, Studio, adapter_names, overlay
from erase.runtime.memory import explains_memory
from flux_jax.errors import EraseError, InputError

# The system's fonts: Gradio's default asks another host for its own.
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
# Pictures of small models are enlarged without smoothing.
CSS = """
.pictures img, .pixels img { image-rendering: pixelated; }
.pixels, .pixels .grid-wrap { height: auto !important; max-height: none !important; }
.pictures img { object-fit: contain; width: 100%; }
.pictures { min-height: 280px; }
.min_value, .max_value { color: var(--body-text-color) !important; }
"""
# Of galleries: pictures are not cropped.
WHOLE: dict[str, Any] = {
    "height": "auto",
    "object_fit": "contain",
    "format": "png",
    "elem_classes": "pixels",
}
# Of every event: it is not listed as an endpoint, and the status shows its progress.
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Of events that use the model: one at a time, whichever they are.
DRAWS: dict[str, Any] = HIDDEN | {"concurrency_id": "model", "concurrency_limit": 1}
# Seconds: how often pictures that were shown are removed from the disk, and from which age.
CLEARED = (600, 3600)
# Requests that wait; more are refused at once, so that nobody waits for many drawings of others.
WAITING = 4


@dataclass(frozen=True)
class Settings:
    """Of the page.

    Attributes:
        steps: Euler steps at the start.
        guidance: distilled guidance scale at the start.
        side: height and width at the start, in pixels.
        unit: pixels that sides are multiples of.
        most: largest side.
        out: folder of saved pictures.
    """

    steps: int
    guidance: float
    side: int
    unit: int
    most: int
    out: Path


@dataclass(frozen=True)
class Last:
    """A visitor's last pictures, with what was asked for."""

    wanted: Wanted
    pair: Pair


class Blocks(gr.Blocks):
    """Blocks that say in a line that a request has values that no control sends."""

    # The names and types are Gradio's.
    async def preprocess_data(self, *given: Any, **named: Any) -> Any:
        """Convert a request's values to those of the controls.

        Raises:
            gr.Error: one has another type than its control, or one is missing.
        """
        try:
            return await super().preprocess_data(*given, **named)
        except gr.Error as error:
            raise refused(InputError(str(error.message))) from None
        # Whatever the controls' code raises: the values may be anything.
        except Exception:
            raise refused(
                InputError(
                    "a value has another type than its control, or is missing; reload the page"
                )
            ) from None


def refused(error: EraseError) -> gr.Error:
    """An error for the page; its text may quote a visitor's."""
    return gr.Error(html.escape(str(error)), print_exception=False)


def says(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show an error of a generator on the page, in a line."""

    # Unchecked, since a check would hide from Gradio that this is a generator.
    @no_type_check
    @functools.wraps(function)
    def wrapped(*values: Any) -> Iterator[Any]:
        try:
            with explains_memory("Draw fewer seeds, or smaller pictures"):
                yield from function(*values)
        except EraseError as error:
            raise refused(error) from None

    return wrapped


@dataclass(frozen=True)
class Page:
    """The page's functions; each call has its visitor's own values."""

    studio: Studio
    settings: Settings

    def wanted(self, *values: Any) -> Wanted:
        """Read the controls: prompt, seeds, steps, guidance, height, width, silence, strengths."""
        prompt, seeds, steps, guidance, height, width, silenced, *strengths = values
        numbers = [steps, guidance, height, width, *strengths]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise InputError("steps, guidance, height, width and strengths must be finite numbers")
        if any(number % 1 for number in (steps, height, width)):
            raise InputError("steps, height and width must be whole numbers")
        request = Wanted(
            str(prompt or ""),
            read_seeds(str(seeds or "")),
            int(steps),
            float(guidance),
            int(height),
            int(width),
            tuple(map(float, strengths)),
            str(silenced or "").strip(),
        )
        request.check(len(self.studio.adapters), self.settings.most)
        return request

    def draw(self, *values: Any) -> Iterator[Any]:
        """Draw; yields the status, the pictures of each seed, the verdict and the last pictures."""
        *controls, concept = values
        request, concept = self.wanted(*controls), str(concept or "").strip()
        self.studio.check(request, concept)
        skipped = [gr.skip()] * (MOST_SEEDS + 2)
        for out in self.studio.draw(request):
            if isinstance(out, Step):
                yield [f"step {out.done} of {out.total}", *skipped]
            else:
                yield [
                    f"drawn: base on the left, erased on the right, {len(request.seeds)} seed(s)",
                    *self.sliders(request, out),
                    self.verdict(request, out, concept),
                    Last(request, out),
                ]

    def sliders(self, request: Wanted, pair: Pair) -> list[Any]:
        """The comparison of each seed; the others are hidden."""
        shown = [
            gr.ImageSlider(value=(base, erased), visible=True, label=f"seed {seed}: base | erased")
            for seed, base, erased in zip(
                request.seeds, pair.base.pictures, pair.erased.pictures, strict=True
            )
        ]
        return shown + [gr.ImageSlider(visible=False)] * (MOST_SEEDS - len(shown))

    def verdict(self, request: Wanted, pair: Pair, concept: str) -> str:
        """What the judge finds, a line for each seed."""
        if self.studio.judge is None or not concept:
            return ""
        found = self.studio.verdict(request, pair, concept)
        words = {True: "found", False: "not found"}
        return "\n".join(
            f"seed {seed}: {words[base]} in the base picture, {words[erased]} in the erased one"
            for seed, (base, erased) in zip(request.seeds, found, strict=True)
        )

    def strip(self, *controls: Any) -> Iterator[Any]:
        """Draw the strip of strengths; yields the status and the gallery."""
        for out in self.studio.strip(self.wanted(*controls)):
            if isinstance(out, Step):
                yield f"step {out.done} of {out.total}", gr.skip()
            else:
                captions = [f"strength {strength:g}" for strength in STRIP]
                yield "strengths drawn", list(zip(out, captions, strict=True))

    def attention(self, last: Last | None, word: str) -> Iterator[Any]:
        """Attention to a word over the last pictures, before and after."""
        if last is None:
            raise InputError("draw pictures first: attention is shown over them")
        word = str(word or "").strip()
        if not word or word.lower() not in last.wanted.prompt.lower():
            raise InputError("word: write a word of the prompt")
        before, after = self.studio.attention(last.wanted, last.pair, word)
        most = float(max(before.max(), after.max()))
        gallery = []
        for row, seed in enumerate(last.wanted.seeds):
            for name, side, maps in (
                ("before", last.pair.base, before),
                ("after", last.pair.erased, after),
            ):
                share = f"seed {seed}, {name}: mean {maps[row].mean():.3f}"
                gallery.append((overlay(side.pictures[row], maps[row], most), share))
        yield f"attention; full red is a share of {most:.3f}", gallery

    def save(self, last: Last | None) -> Iterator[Any]:
        """Write the last pictures; yields the status, and the command that draws them again."""
        if last is None:
            raise InputError("draw pictures first: there is nothing to save")
        files = self.studio.save(last.wanted, last.pair, self.settings.out)
        command = last.wanted.command(self.studio.model, list(self.studio.adapters))
        yield "saved " + ", ".join(map(str, files)), command

    def warm(self) -> None:
        """Draw once, so that the first visitor need not wait for the compiler."""
        settings = self.settings
        strengths = (1.0,) * len(self.studio.adapters)
        side = settings.side
        request = Wanted("a photo of a cat", (0,), 1, settings.guidance, side, side, strengths)
        for out in self.studio.draw(request):
            if isinstance(out, Pair) and self.studio.judge is not None:
                self.studio.judge.features(out.base.pictures)

    def build(self) -> gr.Blocks:
        """The page."""
        judged = self.studio.judge is not None
        with Blocks(
            title="EraseAnything playground", analytics_enabled=False, delete_cache=CLEARED
        ) as page:
            gr.Markdown("# Playground\nThe base model on the left, the erased one on the right.")
            last = gr.State(None)
            with gr.Row():
                with gr.Column(scale=2):
                    controls = self._controls()
                    concept = gr.Textbox(
                        label="Concept that the judge looks for", visible=judged, max_length=100
                    )
                    with gr.Row():
                        start = gr.Button("Draw", variant="primary")
                        stop = gr.Button("Cancel")
                    status = gr.Textbox(label="Status", interactive=False, elem_id="status")
                    verdict = gr.Textbox(label="Judge", interactive=False, visible=judged)
                with gr.Column(scale=3, elem_classes="pictures"):
                    sliders = [
                        gr.ImageSlider(
                            visible=not index,
                            label="base | erased",
                            interactive=False,
                            type="numpy",
                            format="png",
                        )
                        for index in range(MOST_SEEDS)
                    ]
            # Sliders draw when they are let go.
            drawing = gr.on(
                [start.click, controls[0].submit, *(each.release for each in controls[7:])],
                says(self.draw),
                [*controls, concept],
                [status, *sliders, verdict, last],
                trigger_mode="always_last",
                **DRAWS,
            )
            striping = self._panels(controls, status, last)
            # Afterwards: a step of what is cancelled may arrive until then. Not in the queue, which
            # may be full.
            stopped = stop.click(None, cancels=[drawing, striping], **HIDDEN)
            stopped.then(lambda: "cancelled", None, status, queue=False, **HIDDEN)
        page.queue(default_concurrency_limit=1, max_size=WAITING)
        return page

    def _panels(self, controls: list[Any], status: gr.Textbox, last: gr.State) -> Any:
        """The strip, the attention and the saving; returns the event that draws the strip."""
        with gr.Accordion("Strengths 0 to 1.5", open=False):
            strip = gr.Button("Draw the first seed at every strength")
            strengths = gr.Gallery(label="Strengths", columns=len(STRIP), **WHOLE)
        with gr.Accordion("Attention to a word", open=False):
            word = gr.Textbox(label="Word of the prompt", max_length=100)
            look = gr.Button("Show attention")
            maps = gr.Gallery(label="Attention before and after", columns=4, **WHOLE)
        with gr.Accordion("Save", open=False):
            save = gr.Button("Save the pictures")
            command = gr.Textbox(label="Command that draws them again", interactive=False)
        look.click(says(self.attention), [last, word], [status, maps], **DRAWS)
        save.click(says(self.save), [last], [status, command], **HIDDEN)
        return strip.click(says(self.strip), controls, [status, strengths], **DRAWS)

    def _controls(self) -> list[Any]:
        """Prompt, seeds, steps, guidance, height, width, silence and the adapters' strengths."""
        settings = self.settings
        prompt = gr.Textbox(
            value="a photo of a cat", label="Prompt", max_length=MOST_CHARACTERS, elem_id="prompt"
        )
        strengths = [
            gr.Slider(WEAKEST, STRONGEST, 1.0, step=0.05, label=f"Strength of {name}")
            for name in adapter_names(list(self.studio.adapters))
        ]
        with gr.Row():
            seeds = gr.Textbox(value="0", label=f"Seeds (at most {MOST_SEEDS})", max_length=60)
            silenced = gr.Textbox(label="Silence a word", max_length=100)
        with gr.Row():
            steps = gr.Slider(1, MOST_STEPS, settings.steps, step=1, label="Steps")
            guidance = gr.Slider(0, MOST_GUIDANCE, settings.guidance, step=0.1, label="Guidance")
        with gr.Row():
            sides = [
                gr.Slider(
                    settings.unit, settings.most, settings.side, step=settings.unit, label=name
                )
                for name in ("Height", "Width")
            ]
        return [prompt, seeds, steps, guidance, *sides, silenced, *strengths]


def launch(page: gr.Blocks, host: str, port: int, share: bool, password: str | None) -> None:
    """Serve the page until the command is stopped.

    Raises:
        InputError: the port is in use.
    """
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=("erase", password) if password else None,
            max_file_size="1mb",
            theme=Default(primary_hue="blue", font=FONTS, font_mono=MONO),
            css=CSS,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(BodyLimit)]},
        )
    except OSError as error:
        if "port" not in str(error):
            raise
        raise InputError(f"port = {port} is in use; choose another with --port") from None
