"""The ten entities of the paper's Table 6.

Words with several meanings are used in these:

- ball: a thing to throw or kick, not a dance. A football is a kind of ball, no synonym of it.
- celebrity: any famous person. No sentence names one; `celebrity.py` erases persons by name.
- plane, a synonym of airplane: the aircraft. "Aircraft" would include helicopters.
- tower: English has no exact synonym; a turret and a spire are parts of buildings with its shape.
- fruit and shoes: sentences have them without an article, as the paper's prompt has all words.
"""

from configs.flux.concept import Concept, by_slug

# The paper's, without an article.
TEMPLATES = ("A photo of {}",)

ENTITIES = by_slug(
    [
        Concept(
            "fruit",
            (
                "a bowl of fruit on a table",
                "a market stall with fresh fruit",
                "a still life with fruit and a jug",
                "a child eating fruit in a kitchen",
                "a basket filled with fruit",
                "ripe fruit in the morning sun",
            ),
            ("fruitage", "orchard produce"),
            ("bread", "cheese", "wool", "rice", "sand", "wood", "jewellery", "paper", "glass"),
            "food",
            TEMPLATES,
        ),
        Concept(
            "ball",
            (
                "a red ball on a lawn",
                "a child throwing a ball",
                "a photo of a ball on a beach",
                "a girl with a ball under her arm",
                "a ball rolling down a street",
                "a drawing of a ball and a bat",
            ),
            ("orb", "sphere"),
            ("hat", "kite", "chair", "lamp", "book", "umbrella", "bottle", "drum", "suitcase"),
            "toy",
            TEMPLATES,
        ),
        Concept(
            "car",
            (
                "a car on a country road",
                "a blue car parked in front of a hotel",
                "a photo of a car in the rain",
                "a man washing a car",
                "a painting of a car at night",
                "an old car in a garage",
            ),
            ("automobile", "motorcar", "auto"),
            ("bicycle", "horse", "boat", "train", "sofa", "tent", "piano", "tree", "wheelbarrow"),
            "vehicle",
            TEMPLATES,
        ),
        Concept(
            "airplane",
            (
                "an airplane above the clouds",
                "an airplane on a runway at sunset",
                "passengers boarding an airplane",
                "a photo of an airplane over the sea",
                "a small airplane in a field",
                "a drawing of an airplane",
            ),
            ("aeroplane", "plane"),
            ("helicopter", "kite", "bird", "balloon", "ship", "train", "bridge", "tent", "horse"),
            "vehicle",
            TEMPLATES,
        ),
        Concept(
            "tower",
            (
                "a stone tower on a hill",
                "a photo of a tower against a blue sky",
                "a tower above the roofs of a town",
                "a painting of a tower by the sea",
                "tourists in front of a tower",
                "a tower in the fog",
            ),
            ("turret", "spire"),
            (
                "bridge",
                "tree",
                "statue",
                "fountain",
                "ship",
                "tent",
                "mountain",
                "wall",
                "windmill",
            ),
            "landmark",
            TEMPLATES,
        ),
        Concept(
            "building",
            (
                "a building with many windows",
                "a photo of a building at the corner of a street",
                "a brick building behind a fence",
                "people leaving a building",
                "a painting of a building in the snow",
                "a new building by a river",
            ),
            ("edifice", "structure"),
            ("bridge", "tree", "statue", "ship", "tent", "fountain", "garden", "train", "bench"),
            "place",
            TEMPLATES,
        ),
        Concept(
            "celebrity",
            (
                "a celebrity on a red carpet",
                "a photo of a celebrity with sunglasses",
                "a celebrity giving an interview",
                "fans around a celebrity",
                "a celebrity leaving a restaurant",
                "a portrait of a celebrity",
            ),
            ("famous person", "public figure", "famous personality"),
            (
                *("farmer", "nurse", "teacher", "robot", "statue", "child", "soldier", "clown"),
                "fisherman",
            ),
            "person",
            TEMPLATES,
        ),
        Concept(
            "shoes",
            (
                "old shoes on a wooden floor",
                "a photo of shoes in a shop window",
                "a woman trying on shoes",
                "red shoes on white sand",
                "a drawing of shoes with laces",
                "muddy shoes by a door",
            ),
            ("footwear", "footgear"),
            ("gloves", "hats", "glasses", "keys", "bottles", "books", "umbrellas", "cups", "bags"),
            "clothes",
            TEMPLATES,
        ),
        Concept(
            "cat",
            (
                "a cat asleep on a sofa",
                "a cat looking out of a window",
                "a photo of a cat in a garden",
                "a black cat on a wall",
                "a painting of a cat with a ribbon",
                "two cats playing with string",
            ),
            ("kitty", "feline", "pussycat"),
            ("rabbit", "horse", "bird", "monkey", "sheep", "lamp", "vase", "chair", "teapot"),
            "animal",
            TEMPLATES,
        ),
        Concept(
            "dog",
            (
                "a dog running along a beach",
                "a dog waiting in front of a shop",
                "a photo of a dog in the snow",
                "a brown dog with a stick",
                "a painting of a dog by a fire",
                "two dogs in a park",
            ),
            ("doggy", "canine", "pooch"),
            ("rabbit", "horse", "bird", "monkey", "sheep", "bench", "bicycle", "statue", "kite"),
            "animal",
            TEMPLATES,
        ),
    ]
)
