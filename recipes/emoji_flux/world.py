"""Entities, styles, background colours and relations of emoji-flux's pictures."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "food", "ball", "animal", "vehicle", "building", "object", "nature", "people", "clothing"
]


@dataclass(frozen=True)
class Entity:
    """A thing that pictures show.

    Attributes:
        name: in captions and labels.
        codepoint: of its emoji, in hexadecimal.
        icon: the emoji's usual name in icon sets.
        kind: broad class; entities of one kind are alike in use, not in looks.
        synonyms: other words for it; no other entity has them.
    """

    name: str
    codepoint: str
    icon: str
    kind: Kind
    synonyms: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The name and the synonyms."""
        return (self.name, *self.synonyms)


ENTITIES: tuple[Entity, ...] = (
    Entity("apple", "1f34e", "red-apple", "food", ("red apple",)),
    Entity("banana", "1f34c", "banana", "food", ("plantain",)),
    Entity("grapes", "1f347", "grapes", "food", ("grape", "bunch of grapes")),
    Entity("watermelon", "1f349", "watermelon", "food", ("water melon",)),
    Entity("strawberry", "1f353", "strawberry", "food", ("garden strawberry",)),
    Entity("pineapple", "1f34d", "pineapple", "food", ("ananas",)),
    Entity("cherry", "1f352", "cherries", "food", ("cherries",)),
    Entity("lemon", "1f34b", "lemon", "food", ("citron",)),
    Entity("corn", "1f33d", "ear-of-corn", "food", ("maize", "sweetcorn")),
    Entity("mushroom", "1f344", "mushroom", "food", ("toadstool",)),
    Entity("pizza", "1f355", "pizza", "food", ("pizza slice", "slice of pizza")),
    Entity("hamburger", "1f354", "hamburger", "food", ("burger", "beefburger")),
    Entity("cake", "1f382", "birthday-cake", "food", ("birthday cake", "gateau")),
    Entity("ice cream", "1f366", "soft-ice-cream", "food", ("gelato", "soft serve")),
    Entity("doughnut", "1f369", "doughnut", "food", ("donut",)),
    Entity("coffee", "2615", "hot-beverage", "food", ("espresso", "cup of coffee")),
    Entity("beer", "1f37a", "beer-mug", "food", ("ale", "lager")),
    Entity("wine", "1f377", "wine-glass", "food", ("vino", "glass of wine")),
    Entity("french fries", "1f35f", "french-fries", "food", ("fries", "chips")),
    Entity(
        "soccer ball",
        "26bd",
        "soccer-ball",
        "ball",
        ("soccerball", "association football", "futbol"),
    ),
    Entity("basketball", "1f3c0", "basketball", "ball", ("basket ball",)),
    Entity("baseball", "26be", "baseball", "ball", ("base ball", "hardball")),
    Entity("volleyball", "1f3d0", "volleyball", "ball", ("volley ball",)),
    Entity("american football", "1f3c8", "american-football", "ball", ("pigskin", "gridiron ball")),
    Entity("pool ball", "1f3b1", "pool-8-ball", "ball", ("eight ball", "billiard ball")),
    Entity("cat", "1f408", "cat", "animal", ("kitty", "feline", "pussycat")),
    Entity("dog", "1f415", "dog", "animal", ("hound", "canine", "pooch")),
    Entity("elephant", "1f418", "elephant", "animal", ("pachyderm",)),
    Entity("horse", "1f40e", "horse", "animal", ("steed", "equine")),
    Entity("pig", "1f437", "pig-face", "animal", ("hog", "swine")),
    Entity("rabbit", "1f430", "rabbit-face", "animal", ("bunny",)),
    Entity("panda", "1f43c", "panda", "animal", ("panda bear", "giant panda")),
    Entity("frog", "1f438", "frog", "animal", ("toad",)),
    Entity("monkey", "1f412", "monkey", "animal", ("simian",)),
    Entity("penguin", "1f427", "penguin", "animal"),
    Entity("fish", "1f41f", "fish", "animal"),
    Entity("whale", "1f433", "spouting-whale", "animal", ("cetacean",)),
    Entity("octopus", "1f419", "octopus", "animal", ("devilfish",)),
    Entity("crab", "1f980", "crab", "animal", ("crustacean",)),
    Entity("turtle", "1f422", "turtle", "animal", ("tortoise",)),
    Entity("snake", "1f40d", "snake", "animal", ("serpent",)),
    Entity("bee", "1f41d", "honeybee", "animal", ("honeybee", "bumblebee")),
    Entity("butterfly", "1f98b", "butterfly", "animal"),
    Entity("spider", "1f577", "spider", "animal", ("arachnid",)),
    Entity("snail", "1f40c", "snail", "animal", ("escargot",)),
    Entity("car", "1f697", "automobile", "vehicle", ("automobile", "motorcar", "auto")),
    Entity("airplane", "2708", "airplane", "vehicle", ("plane", "aeroplane", "aircraft")),
    Entity("bus", "1f68c", "bus", "vehicle", ("coach", "omnibus", "autobus")),
    Entity("train", "1f682", "locomotive", "vehicle", ("locomotive", "steam engine")),
    Entity("bicycle", "1f6b2", "bicycle", "vehicle", ("bike", "pushbike")),
    Entity("truck", "1f69a", "delivery-truck", "vehicle", ("lorry",)),
    Entity("ship", "1f6a2", "ship", "vehicle", ("ocean liner", "steamship")),
    Entity("sailboat", "26f5", "sailboat", "vehicle", ("sailing boat", "yacht")),
    Entity("rocket", "1f680", "rocket", "vehicle", ("rocketship", "spaceship")),
    Entity("helicopter", "1f681", "helicopter", "vehicle", ("chopper", "copter")),
    Entity("tower", "1f5fc", "tokyo-tower", "building", ("steel tower", "pylon")),
    Entity("house", "1f3e0", "house", "building", ("home", "cottage", "dwelling")),
    Entity("church", "26ea", "church", "building", ("chapel", "kirk")),
    Entity("castle", "1f3f0", "castle", "building", ("fortress", "chateau")),
    Entity("building", "1f3e2", "office-building", "building", ("office block", "edifice")),
    Entity("ferris wheel", "1f3a1", "ferris-wheel", "building", ("big wheel",)),
    Entity("shoe", "1f45f", "running-shoe", "clothing", ("sneaker", "running shoe")),
    Entity("dress", "1f457", "dress", "clothing", ("frock", "gown")),
    Entity("jeans", "1f456", "jeans", "clothing", ("trousers", "denims")),
    Entity("crown", "1f451", "crown", "clothing", ("diadem",)),
    Entity("glasses", "1f453", "glasses", "clothing", ("spectacles", "eyeglasses")),
    Entity("umbrella", "2602", "umbrella", "object", ("brolly", "parasol")),
    Entity("key", "1f511", "key", "object"),
    Entity("book", "1f4d5", "closed-book", "object", ("tome",)),
    Entity("camera", "1f4f7", "camera", "object"),
    Entity("light bulb", "1f4a1", "light-bulb", "object", ("lightbulb", "electric lamp")),
    Entity("scissors", "2702", "scissors", "object", ("pair of scissors", "shears")),
    Entity("guitar", "1f3b8", "guitar", "object"),
    Entity("balloon", "1f388", "balloon", "object"),
    Entity("trophy", "1f3c6", "trophy", "object"),
    Entity("bomb", "1f4a3", "bomb", "object"),
    Entity("pumpkin", "1f383", "jack-o-lantern", "object", ("jack o lantern", "halloween pumpkin")),
    Entity("sun", "2600", "sun", "nature"),
    Entity("moon", "1f319", "crescent-moon", "nature", ("crescent moon", "lunar crescent")),
    Entity("star", "2b50", "star", "nature"),
    Entity("rainbow", "1f308", "rainbow", "nature"),
    Entity("cloud", "2601", "cloud", "nature"),
    Entity("lightning", "26a1", "high-voltage", "nature", ("thunderbolt", "lightning bolt")),
    Entity("snowflake", "2744", "snowflake", "nature", ("snow crystal",)),
    Entity("fire", "1f525", "fire", "nature", ("flame", "blaze")),
    Entity("explosion", "1f4a5", "collision", "nature", ("blast", "detonation")),
    Entity("palm tree", "1f334", "palm-tree", "nature", ("coconut palm",)),
    Entity("christmas tree", "1f384", "christmas-tree", "nature", ("xmas tree",)),
    Entity("cactus", "1f335", "cactus", "nature", ("saguaro",)),
    Entity("rose", "1f339", "rose", "nature"),
    Entity("sunflower", "1f33b", "sunflower", "nature", ("helianthus",)),
    Entity("globe", "1f30d", "globe-showing-europe-africa", "nature", ("earth", "planet earth")),
    Entity("princess", "1f478", "princess", "people"),
    Entity("santa claus", "1f385", "santa-claus", "people", ("father christmas", "saint nicholas")),
    Entity("ghost", "1f47b", "ghost", "people", ("phantom", "spook")),
    Entity("skull", "1f480", "skull", "people", ("cranium",)),
    Entity("kiss", "1f48b", "kiss-mark", "people", ("kiss mark", "smooch")),
    Entity("handshake", "1f91d", "handshake", "people", ("shaking hands", "handclasp")),
    Entity("hug", "1f917", "smiling-face-with-open-hands", "people", ("hugging face", "embrace")),
    Entity("heart", "2764", "red-heart", "people", ("red heart",)),
)
# Words without an article whose plural is the same.
NO_ARTICLE = frozenset(
    {
        "corn",
        "maize",
        "sweetcorn",
        "lightning",
        "vino",
        "wine",
        "earth",
        "planet earth",
        "santa claus",
        "father christmas",
        "saint nicholas",
        "grapes",
        "cherries",
        "french fries",
        "fries",
        "chips",
        "jeans",
        "trousers",
        "denims",
        "glasses",
        "spectacles",
        "eyeglasses",
        "scissors",
        "shears",
        "shaking hands",
    }
)
# Irregular plurals.
IRREGULAR_PLURALS: dict[str, str] = {
    "bunch of grapes": "bunches of grapes",
    "slice of pizza": "slices of pizza",
    "cup of coffee": "cups of coffee",
    "glass of wine": "glasses of wine",
    "pair of scissors": "pairs of scissors",
    "fish": "fish",
    "santa claus": "santa clauses",
    "father christmas": "father christmases",
    "saint nicholas": "saint nicholases",
    "aircraft": "aircraft",
    "swine": "swine",
    "gateau": "gateaux",
    "chateau": "chateaux",
}

STYLES: tuple[str, ...] = (
    "noto",
    "twitter",
    "render",
    "blob",
    "emojione",
    "silhouette",
    "flat",
    "lineart",
    "firefox",
    "sticker",
)

# Light to medium, so that dark ink is visible on all of them; RGB in [0, 1].
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "red": (0.93, 0.45, 0.42),
    "orange": (0.98, 0.70, 0.40),
    "yellow": (0.99, 0.92, 0.50),
    "green": (0.55, 0.82, 0.50),
    "turquoise": (0.45, 0.85, 0.83),
    "blue": (0.48, 0.68, 0.96),
    "purple": (0.71, 0.57, 0.91),
    "pink": (0.99, 0.74, 0.85),
    "white": (0.98, 0.98, 0.98),
    "grey": (0.70, 0.70, 0.71),
}

RELATIONS: tuple[str, ...] = (
    "left of",
    "right of",
    "above",
    "below",
    "in",
    "on",
    "behind",
    "amidst",
    "back to back",
    "hugging close",
)
# The relation of the object to the subject, if it is one of the ten.
INVERSE: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "back to back": "back to back",
    "hugging close": "hugging close",
}
SYMMETRIC: tuple[str, ...] = ("back to back", "hugging close")
