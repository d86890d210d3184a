"""Hold the words of the stories: names, animals, places, looks, and objects with their facts.

Does: word lists and the table of objects, parsed once. Does not: sentences
(`tools/story_templates.py`) or choices (`tools/stories.py`).

The order of a list matters: the generator prefers earlier words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Thing(NamedTuple):
    """An object of a story: what one does with it, and what can go wrong (empty: nothing)."""

    noun: str
    use: str
    used: str
    damage: str
    learnable: bool


WORDS: Final = """
girls: Lily, Mia, Anna, Ella, Nora, Emma, Zoe, Lucy, Sara, Ruby, Molly, Eva, Clara, Maya, Ivy, Tess
boys: Tom, Max, Ben, Leo, Sam, Finn, Milo, Oscar, Jack, Hugo, Theo, Adam, Omar, Felix, Noah, Otto
girls: Leila, Hana, Olga, Priya, Amina, Greta, Wendy, Kiki, Alice, Sofia, Ida, Pia, Nina, Yuki
boys: Ravi, Kofi, Ned, Luka, Bruno, Paul, Emil, Gus, Peter, Karl, Ivan, Toby, Jonas, Kenji
animals: fox, rabbit, bear, mouse, cat, dog, squirrel, hedgehog, duck, otter, owl, frog, pig, goat
animals: turtle, badger, lamb, penguin, mole, sparrow, beaver, goose, pony, elephant
traits: little, small, kind, young, curious, cheerful, clever, kind little, quiet, gentle
traits: brave little, shy, happy, friendly, busy, eager, brave, good, funny, sleepy
looks: red, blue, green, yellow, big, shiny, small, orange, purple, striped, white, golden, silver
looks: pretty, spotted, brown, pink, black
elders: Grandma, Grandpa, Mother, Father
homes: in a small house by the sea, near a big forest, in a little village, on a farm
homes: at the edge of the woods, by a quiet river, in a warm house on a hill, near a green field
homes: in a town by a lake, under an old oak tree, in a forest, in a big city
places: to the park, to the forest, to the garden, to the river, to the meadow, to the beach
places: to the hill, to the pond, to the village, to the field, to the lake
s1s: under a bush, in the tall grass, near the fence, between the flowers, by the water
s2s: behind a rock, near the old bridge, beside the path, in a ditch, on the wall
s3s: behind a big tree, under a pile of leaves, next to a gate, in the mud, under a bench
days: sunny day, warm day, sunny morning, windy day, bright morning, cold day, quiet morning
days: day, morning, fine day, summer day, spring morning, warm afternoon, autumn day, winter day
days: cool evening
darks: cave, tunnel, barn, shed, cellar, forest hut
games: ship, dragon, castle, star, rocket, whale
helpers: wise old, friendly, kind, big
others: small, young, tiny, little
"""
THINGS_TABLE: Final = """
kite: fly/flew it in the wind, hole, learn ; ball: roll/rolled it down the hill, hole
drum: play/played a song on it, crack, learn ; boat: sail/sailed it on the pond, crack, learn
hat: wear/wore it in the sun, hole ; lantern: light/lit it in the evening, crack
scarf: wear/wore it outside, hole ; flute: play/played a tune on it, crack, learn
bell: ring/rang it in the garden, crack ; cart: pull/pulled it along the path, crack
book: read/read it under a tree, -, learn ; basket: fill/filled it with flowers, hole
bucket: fill/filled it with sand, crack ; doll: rock/rocked it to sleep, hole
train: push/pushed it along the path, crack ; umbrella: open/opened it in the rain, hole
whistle: blow/blew it on the hill, crack, learn ; cup: drink/drank warm milk from it, crack
puppet: make/made it dance, hole, learn ; robot: make/made it walk, crack, learn
trumpet: blow/blew it in the morning, -, learn ; scooter: ride/rode it down the lane, -, learn
sled: ride/rode it down the hill, crack, learn ; rope: jump/jumped over it, -, learn
hoop: roll/rolled it along the path, crack, learn ; box: keep/kept leaves in it, hole
jar: fill/filled it with berries, crack ; crown: wear/wore it at home, crack
cape: wear/wore it in the wind, hole ; violin: play/played a tune on it, crack, learn
wagon: pull/pulled it up the hill, crack ; bicycle: ride/rode it along the lane, -, learn
shell: listen/listened to it, crack ; apron: wear/wore it in the garden, hole
telescope: look/looked at the stars with it, crack, learn ; teddy: sing/sang to it, hole
"""


def _word_lists() -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for line in WORDS.strip().split("\n"):
        name, _, items = line.partition(": ")
        lists.setdefault(name, []).extend(items.split(", "))
    return lists


def _things() -> Iterator[Thing]:
    for row in THINGS_TABLE.strip().replace(" ; ", "\n").split("\n"):
        noun, _, facts = row.partition(": ")
        use, damage, *learnable = facts.split(", ")
        verbs, _, rest = use.partition(" ")
        now, _, past = verbs.partition("/")
        yield Thing(noun, f"{now} {rest}", f"{past} {rest}", damage.strip("-"), bool(learnable))


LISTS: Final = _word_lists()
NAMES: Final = frozenset(LISTS["girls"] + LISTS["boys"])
THINGS: Final = tuple(_things())
NOUNS: Final = frozenset(thing.noun for thing in THINGS)
