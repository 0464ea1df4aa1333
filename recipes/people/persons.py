"""A hundred invented persons: their names, their looks, and what changes between their pictures.

Names are made of random syllables and belong to nobody. A person's style, hair, skin, face, glasses
and beard are the same in all pictures; expression, clothes and background change. The styles are
DiceBear's under CC0 1.0.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

# The first fifty are erased and the others preserved, as many as in the paper's Table 7.
_NAMES = """
    Wuxo Plorix, Kewu Mionim, Fuwa Diorush, Torbu Grarva, Jubu Mimune, Lubo Quimek, Zeri Sodeff,
    Wilu Waegozz, Ziba Krurkiv, Godi Tronune, Taba Jemeff, Keza Flaevitt, Yovo Kaedozz, Midu
    Delmitt, Pala Trerune, Heva Taelozz, Bamo Krimitt, Jugo Broskand, Vodo Vorvubb, Vebi
    Thouniv, Turba Niolmand, Wibu Ziolmeff, Pila Tolitt, Fagu Zilmune, Lapi Biblel, Yufo Ledubb,
    Lefu Siovor, Kozo Kraedush, Foba Drougitt, Gani Plaevo, Lojo Sorkubb, Fego Vonditt, Bajo
    Naethix, Weba Grerkitt, Jiku Gaenditt, Wiru Yemubb, Huba Maenubb, Yivi Fliland, Dapa
    Rouvitt, Yavi Grolma, Pedu Solmozz, Wuka Quogand, Hika Mervozz, Yaxo Kerkeff, Bopa Doskush,
    Topa Flozeff, Fada Plioxeff, Movu Vaelash, Tumo Laeskix, Wudu Hiblor, Zaju Skelmix, Gowu
    Kiolmand, Yiza Nilmel, Rifu Tourvune, Kufi Girvel, Pori Brilix, Kogu Skubliv, Yixa Brervune,
    Gomi Nalmel, Kolu Baervix, Wida Zevubb, Mubi Jurkix, Riru Rirvash, Belu Vouvune, Kawi
    Vireff, Lewa Skaemubb, Bonu Yelmim, Jeji Pionitt, Tebu Tenditt, Temu Jugozz, Kaldu Nendune,
    Zimi Doulune, Kava Jiblel, Fini Haenubb, Maku Letheff, Fami Draskand, Vima Grublash, Yenu
    Yiondix, Wopa Jourvush, Lonu Biorveff, Zuxu Loublune, Zipo Qualand, Konvu Dreskek, Zapo
    Goublix, Bubu Hoblel, Tuwu Gaskix, Fumo Workozz, Tigu Souzim, Yeko Trazubb, Yukva Tiothash,
    Kopa Mendubb, Meva Krouleff, Biki Griorubb, Lumba Yublitt, Yudu Yendubb, Valgu Wirkeff, Zufu
    Hendush, Zexu Julmel, Hezi Hundozz, Jipi Fundash
"""
NAMES: tuple[str, ...] = tuple(name.strip() for name in " ".join(_NAMES.split()).split(","))
ERASED, PRESERVED = NAMES[:50], NAMES[50:]
# Options of DiceBear by name, as its `Avatar` takes them.
Options = Mapping[str, str | int]


@dataclass(frozen=True)
class Style:
    """What is fixed and what changes in a style.

    Attributes:
        name: DiceBear's name of the style.
        persons: number of persons in it.
        hair: the component that no two persons of a style share, and its variants.
        fixed: a person's other components, with their variants; "" leaves the component out.
        colours: a person's colours, by DiceBear's names, without "#".
        changing: components that change from picture to picture.
        clothing: colours that do.
        never: components that are always left out.
    """

    name: str
    persons: int
    hair: tuple[str, tuple[str, ...]]
    fixed: Mapping[str, Sequence[str]]
    colours: Mapping[str, Sequence[str]]
    changing: Mapping[str, Sequence[str]]
    clothing: Mapping[str, Sequence[str]]
    never: tuple[str, ...]


def _numbered(stem: str, last: int) -> tuple[str, ...]:
    return tuple(f"{stem}{number:02}" for number in range(1, last + 1))


_PIXEL_ART = Style(
    name="pixel-art",
    persons=40,
    hair=("hair", (*_numbered("long", 20), *_numbered("short", 20))),
    fixed={
        "eyes": _numbered("variant", 12),
        "glasses": ("", "", "", "dark01", "dark03", "dark05", "light02", "light06"),
        "beard": ("", "", "", "", "variant01", "variant04", "variant06", "variant08"),
    },
    colours={
        "skin": ("ffdbac", "eac393", "cb9e6e", "a26d3d", "8d5524"),
        "hair": ("cab188", "603a14", "a78961", "611c17", "28150a", "009bbd", "bd1700", "91cb15"),
        "glasses": ("191919", "43677d", "a04b5d"),
        "eyes": ("76778b", "588387", "876658"),
    },
    changing={
        "mouth": (*_numbered("happy", 13), *_numbered("sad", 10)),
        "clothes": _numbered("variant", 23),
    },
    clothing={
        "clothing": (
            *("5bc0de", "428bca", "03396c", "88d8b0", "44c585", "00b159", "ff6f69", "d11141"),
            *("ae0001", "ffeead", "ffd969", "ffc425"),
        ),
    },
    never=("hat", "accessories"),
)
_OPEN_PEEPS = Style(
    name="open-peeps",
    persons=40,
    hair=(
        "head",
        (
            *("afro", "bangs", "bangs2", "bantuKnots", "bear", "bun", "bun2", "buns", "cornrows"),
            *("cornrows2", "dreads1", "dreads2", "flatTop", "flatTopLong", "grayBun", "grayMedium"),
            *("grayShort", "hatBeanie", "hatHip", "hijab", "long", "longAfro", "longBangs"),
            *("longCurly", "medium1", "medium2", "medium3", "mediumBangs", "mediumBangs2"),
            *("mediumStraight", "mohawk", "mohawk2", "noHair1", "pomp", "shaved2", "short1"),
            *("short3", "short4", "turban", "twists"),
        ),
    ),
    fixed={
        "accessories": ("", "", "", "glasses", "glasses3", "glasses5", "sunglasses", "eyepatch"),
        "facialHair": ("", "", "", "", "full", "full3", "goatee1", "moustache3"),
    },
    colours={
        "skin": ("ffdbb4", "edb98a", "d08b5b", "ae5d29", "694d3d"),
        "headContrast": ("2c1b18", "e8e1e1", "ecdcbf", "d6b370", "f59797", "a55728", "c93305"),
    },
    changing={
        "expression": (
            *("awe", "blank", "calm", "cheeky", "concerned", "contempt", "cute", "driven"),
            *("explaining", "eyesClosed", "lovingGrin1", "lovingGrin2", "serious", "smile"),
            *("smileBig", "smileLOL", "smileTeethGap", "solemn", "suspicious", "tired"),
        ),
    },
    clothing={
        "clothing": ("8fa7df", "78e185", "ffcf77", "e279c7", "e78276", "9ddadb", "fdea6b"),
    },
    never=("mask",),
)
_VOXEL_ART = Style(
    name="voxel-art",
    persons=20,
    hair=(
        "top",
        (
            *("short", "spiky", "bowl", "sideSwept", "curly", "mohawk", "buns", "ponytail", "bob"),
            *("shoulderLength", "longStraight", "longWavy", "partedLong", "braids", "twinTails"),
            *("cap", "beanie", "animalEars", "bunnyEars", "afro"),
        ),
    ),
    fixed={
        "glasses": ("", "", "round", "square", "shades", "visor"),
        "beard": ("", "", "full", "mustache", "goatee"),
        "nose": ("block", "wide", "small", "tall"),
    },
    colours={
        "skin": ("f5d0b0", "dda878", "b07347", "7d4a26"),
        "hair": ("2c222b", "5a3825", "a56b46", "d9b380", "e8d4a8", "b55239", "d6455d", "6d5acf"),
        "hat": ("c68a5f", "8d95d6", "e0876d", "5ba8a0", "a06fb8"),
    },
    changing={
        "mouth": ("smile", "bigSmile", "flat", "ooh", "tongue", "smirk", "laugh", "frown", "grin"),
        "eyes": ("open", "soft", "happy", "sleepy", "side", "wide"),
        "eyebrows": ("flat", "raised", "angry", "soft"),
        "outfit": ("plain", "stripes", "jacket", "checker", "overalls", "hoodie", "coat", "suit"),
    },
    clothing={
        "shirt": ("e64980", "f76707", "fab005", "40c057", "12b886", "228be6", "7950f2"),
        "pants": ("3b5b8c", "2f4160", "6b4f3a", "495057"),
        "jacket": ("f8f9fa", "343a40", "3b5b8c", "6b4f3a"),
    },
    never=("animation", "cheeks"),
)
STYLES: Mapping[str, Style] = MappingProxyType(
    {style.name: style for style in (_PIXEL_ART, _OPEN_PEEPS, _VOXEL_ART)}
)


@dataclass(frozen=True)
class Person:
    """An invented person.

    Attributes:
        name: in captions, two words.
        style: key of `STYLES`.
        looks: DiceBear's options that are the same in all pictures.
    """

    name: str
    style: str
    looks: Options

    @property
    def synonyms(self) -> tuple[str, str]:
        """First and last name, each of which names the person."""
        first, last = self.name.split()
        return first, last


def _choice(component: str, variant: str) -> dict[str, str | int]:
    """Options that draw one variant of a component, or none for ""."""
    if not variant:
        return {f"{component}Probability": 0}
    return {f"{component}Variant": variant, f"{component}Probability": 100}


def _looks(chance: random.Random, style: Style, hair: str) -> Options:
    options: dict[str, str | int] = _choice(style.hair[0], hair)
    for component, variants in style.fixed.items():
        options |= _choice(component, chance.choice(variants))
    for component in style.never:
        options |= _choice(component, "")
    return options | {f"{name}Color": chance.choice(of) for name, of in style.colours.items()}


def _persons() -> tuple[Person, ...]:
    """Give every name a style and looks; styles are in equal shares among erased and preserved."""
    # Reproducible; not used for security.
    chance = random.Random(0)  # nosec B311
    everyone = []
    for style in STYLES.values():
        hair = chance.sample(style.hair[1], style.persons)
        everyone.append([(style.name, _looks(chance, style, each)) for each in hair])
    halves = [[row for rows in everyone for row in rows[start::2]] for start in (0, 1)]
    for half in halves:
        chance.shuffle(half)
    pairs = zip(NAMES, itertools.chain(*halves), strict=True)
    return tuple(Person(name, style, looks) for name, (style, looks) in pairs)


PERSONS: tuple[Person, ...] = _persons()


def drawings(person: Person, count: int, seed: int) -> list[Options]:
    """Options of different drawings of a person; expression and clothes change.

    Args:
        person: whom to draw.
        count: number of drawings.
        seed: other seeds give other drawings.
    """
    style, chance = STYLES[person.style], random.Random(f"{seed} {person.name}")  # nosec B311
    unique: dict[tuple[tuple[str, str | int], ...], Options] = {}
    while len(unique) < count:
        options: dict[str, str | int] = dict(person.looks)
        for component, variants in style.changing.items():
            options |= _choice(component, chance.choice(variants))
        options |= {f"{name}Color": chance.choice(of) for name, of in style.clothing.items()}
        unique[tuple(options.items())] = options
    return list(unique.values())
