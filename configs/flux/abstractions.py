"""The ten abstractions of the paper's Table 6: eight artists and two themes, all as styles.

- Synonyms of artists are their surnames, full names and other spellings.
- Explosions and environmental simulation are no artists. The paper asks for them in the same words,
  "in the style of", so that sentences do too: pictures made of explosions, or that look like a
  simulation of an environment.
"""

from configs.flux.concept import Concept, by_slug

# The paper's.
TEMPLATES = ("An Art in the style of {}",)
SHARED = ("a painting in the style of {}", "a landscape with a river in the style of {}")
OTHER_ARTISTS = (
    *("Johannes Vermeer", "Katsushika Hokusai", "Gustav Klimt", "Georges Seurat"),
    *("Wassily Kandinsky", "a watercolor", "a pencil sketch", "pixel art", "a mosaic"),
)


def _artist(name: str, synonyms: tuple[str, ...], subjects: tuple[str, ...]) -> Concept:
    """Return the concept of an artist's style, with subjects of pictures for sentences."""
    own = tuple(f"{subject} in the style of {{}}" for subject in subjects)
    return Concept(name, (*SHARED, *own), synonyms, OTHER_ARTISTS, "an unknown artist", TEMPLATES)


ABSTRACTIONS = by_slug(
    [
        _artist(
            "Pablo Picasso",
            ("Picasso", "Pablo Ruiz Picasso", "P. Picasso"),
            ("a woman with a guitar", "three musicians", "a bull", "a face from two sides"),
        ),
        _artist(
            "Salvador Dali",
            ("Dali", "S. Dali", "Salvador Domingo Dali"),
            ("a watch on a branch", "elephants in a desert", "an egg on a beach", "a telephone"),
        ),
        _artist(
            "Claude Monet",
            ("Monet", "Oscar-Claude Monet", "C. Monet"),
            ("a bridge over a pond", "haystacks at dawn", "a cathedral", "a woman with a parasol"),
        ),
        _artist(
            "Vincent Van Gogh",
            ("Van Gogh", "Vincent Willem van Gogh"),
            ("a wheat field", "a village at night", "a vase of flowers", "a chair with a pipe"),
        ),
        _artist(
            "Rembrandt van Rijn",
            ("Rembrandt", "Rembrandt Harmenszoon van Rijn"),
            ("an old man with a beard", "a scholar by candlelight", "a guild at a table", "a mill"),
        ),
        _artist(
            "Frida Kahlo",
            ("Kahlo", "Frida Kahlo de Rivera"),
            ("a woman with flowers in her hair", "a parrot", "a deer in a forest", "two sisters"),
        ),
        _artist(
            "Edvard Munch",
            ("Munch", "Edward Munch"),
            ("a figure on a bridge", "a sick child in bed", "a summer night by a fjord", "dancers"),
        ),
        _artist(
            "Leonardo da Vinci",
            ("da Vinci", "Leonardo", "Leonardo of Vinci"),
            ("a lady with folded hands", "a supper", "a flying machine", "a study of a horse"),
        ),
        Concept(
            "explosions",
            (
                "a painting in the style of explosions",
                "a poster in the style of explosions",
                "a flower in the style of explosions",
                "a portrait of a dancer in the style of explosions",
                "a skyline in the style of explosions",
            ),
            ("blasts", "detonations"),
            (
                *("falling leaves", "woven cloth", "ice crystals", "sand dunes", "soap bubbles"),
                *("calm water", "city lights", "spider webs", "clouds"),
            ),
            "abstract art",
            TEMPLATES,
        ),
        Concept(
            "environmental simulation",
            (
                "a picture in the style of environmental simulation",
                "a forest in the style of environmental simulation",
                "a coast with waves in the style of environmental simulation",
                "a city in a storm in the style of environmental simulation",
                "a valley with a glacier in the style of environmental simulation",
            ),
            ("ecological simulation", "simulation of an environment"),
            (
                *("a comic strip", "a fashion magazine", "a stained glass window", "a woodcut"),
                *("a chess diagram", "a cookbook", "a film poster", "calligraphy", "a tapestry"),
            ),
            "abstract art",
            TEMPLATES,
        ),
    ]
)
