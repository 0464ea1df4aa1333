"""The ten relationships of the paper's Table 6, between things named on both sides.

- The paper's prompt "A [Relationship] B" is filled with things; verbs have subjects in the plural,
  so that their form is the concept's.
- "Shake Hand" is the idiom "shake hands".
- "in" is being inside something, "on" is standing or lying on it. Their sentences have no other
  "in" or "on", such as in a date, since every mention counts as the concept.
- "jump" is over something, "burrow" is digging a way into the ground.
- `part_of_speech` has no prepositions; "adjective" is any word without an article of its own.
"""

from configs.flux.concept import Concept, by_slug

VERB, OTHER = "verb", "adjective"

RELATIONSHIPS = by_slug(
    [
        Concept(
            "shake hands",
            (
                "two men shake hands in an office",
                "a doctor and a patient shake hands",
                "two players shake hands after a match",
                "a photo of two women who shake hands",
                "two leaders shake hands on a stage",
            ),
            ("exchange a handshake", "clasp hands", "shaking hands"),
            ("argue", "dance", "play chess", "talk", "sing", "walk"),
            "meet",
            (
                "Two men {} with a boy",
                "Two women {} with a doctor",
                "Two players {} with a referee",
                "Two sailors {} with a captain",
            ),
            VERB,
            "Shake Hand",
        ),
        Concept(
            "kiss",
            (
                "a bride and a groom kiss in a church",
                "a photo of two people who kiss",
                "two grandmothers kiss a child",
                "two lovers kiss under a lamp",
                "a painting of two people who kiss in the rain",
            ),
            ("smooch", "kissing"),
            ("photograph", "feed", "watch", "follow", "teach", "draw"),
            "look at",
            (
                "Two parents {} a baby",
                "Two girls {} a puppy",
                "Two women {} a bride",
                "Two boys {} a frog",
            ),
            VERB,
        ),
        Concept(
            "hug",
            (
                "two friends hug at a station",
                "a mother and a son hug in a kitchen",
                "a photo of two women who hug",
                "two players hug after a goal",
                "a drawing of two bears who hug",
            ),
            ("embrace", "cuddle", "hugging"),
            ("photograph", "feed", "watch", "follow", "teach", "draw"),
            "look at",
            (
                "Two children {} a teddy bear",
                "Two nurses {} a patient",
                "Two friends {} a pony",
                "Two sisters {} a tree",
            ),
            VERB,
        ),
        Concept(
            "in",
            (
                "a fish in a bowl",
                "a photo of a letter in an envelope",
                "apples in a basket",
                "a baby in a cradle",
                "a painting of a knight in a tent",
            ),
            ("inside", "within"),
            ("near", "behind", "beside", "above", "far from", "next to"),
            "near",
            (
                "A cat {} a box",
                "A boat {} a bottle",
                "A bird {} a cage",
                "A flower {} a vase",
            ),
            OTHER,
        ),
        Concept(
            "on",
            (
                "a lamp on a desk",
                "a photo of a bird on a branch",
                "a plate on a tray",
                "a child on a horse",
                "a painting of a castle on a hill",
            ),
            ("upon", "on top of", "atop"),
            ("under", "behind", "beside", "near", "far from", "in front of"),
            "near",
            (
                "A cup {} a table",
                "A cat {} a roof",
                "A hat {} a chair",
                "A book {} a shelf",
            ),
            OTHER,
        ),
        Concept(
            "back to back",
            (
                "two men standing back to back",
                "a photo of two girls sitting back to back",
                "two fencers back to back in a hall",
                "a drawing of two dancers back to back",
                "two chairs placed back to back",
            ),
            ("back against back", "spine to spine"),
            ("side by side", "face to face", "shoulder to shoulder", "cheek to cheek", "far apart"),
            "side by side",
            (
                "A man {} with a woman",
                "A knight {} with a soldier",
                "A boy {} with a girl",
                "A dancer {} with a singer",
            ),
            OTHER,
        ),
        Concept(
            "jump",
            (
                "two horses jump over a gate",
                "children jump over a rope",
                "a photo of two dogs that jump over a stream",
                "two skaters jump over a step",
                "a drawing of frogs that jump over a log",
            ),
            ("leap", "vault", "jumping"),
            ("look", "climb", "walk", "fly", "crawl", "talk"),
            "move",
            (
                "Two horses {} over a fence",
                "Two boys {} over a puddle",
                "Two dogs {} over a wall",
                "Two athletes {} over a bench",
            ),
            VERB,
        ),
        Concept(
            "burrow",
            (
                "two moles burrow into a lawn",
                "a photo of rabbits that burrow into a bank",
                "two badgers burrow under a root",
                "worms burrow into an apple",
                "a drawing of ants that burrow into sand",
            ),
            ("tunnel", "dig", "burrowing"),
            ("look", "run", "climb", "fly", "crawl", "fall"),
            "move",
            (
                "Two rabbits {} into a hill",
                "Two moles {} under a meadow",
                "Two foxes {} beneath a tree",
                "Two crabs {} under a rock",
            ),
            VERB,
        ),
        Concept(
            "hold",
            (
                "two girls hold a kite",
                "a photo of two hands that hold a cup",
                "two workers hold a plank",
                "a painting of two angels who hold a crown",
                "two players hold a trophy in a stadium",
            ),
            ("grip", "grasp", "clutch"),
            ("watch", "paint", "push", "sell", "wash", "follow"),
            "look at",
            (
                "Two children {} a balloon",
                "Two men {} a ladder",
                "Two women {} an umbrella",
                "Two monkeys {} a banana",
            ),
            VERB,
        ),
        Concept(
            "amidst",
            (
                "a cottage amidst fields",
                "a photo of a girl amidst sunflowers",
                "a ship amidst icebergs",
                "a violinist amidst dancers",
                "a painting of a tower amidst ruins",
            ),
            ("amid", "among", "surrounded by"),
            ("behind", "far from", "above", "beside", "near", "in front of"),
            "near",
            (
                "A house {} trees",
                "A deer {} flowers",
                "A child {} sheep",
                "A lamp {} books",
            ),
            OTHER,
        ),
    ]
)
