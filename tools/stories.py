"""Write short children's stories from a seed: the corpus of the demo model.

Does: weighted choices of words and sentences (`tools/story_words.py`, `tools/story_templates.py`),
with the standard library only. Does not: judge a story (`tools/story_checks.py`), tokenise or
train (`tools/train_demo.py`).
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from tools.story_templates import PARTS, PLOTS, beats_of
from tools.story_words import LISTS, NAMES, THINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_T = TypeVar("_T")


class Story(NamedTuple):
    """One story and the facts that hold in all of it; cast: its words to be remembered."""

    text: str
    hero: str
    pronoun: str
    thing: str
    plot: str
    cast: frozenset[str]


NAME_STARTS: Final = ("Br", "Fl", "Gr", "Sh", "Tr", *"BDFGKLMNPRSTVZ")
HE: Final = {"he": "he", "his": "his", "him": "him"}
SHE: Final = {"he": "she", "his": "her", "him": "her"}
INVENTED_SHARE: Final = 0.2
GIRL_SHARE, PEOPLE_SHARE = 0.55, 0.4
ELDER_SHARE: Final = 0.35
HELD_OUT_MODULUS: Final = 12


def _pick(rng: random.Random, options: Sequence[_T]) -> _T:
    """Choose one option; number i has weight 1 / (i + 2)."""
    return rng.choices(options, [1 / (i + 2) for i in range(len(options))])[0]


def is_held_out(hero: str, noun: str) -> bool:
    """Tell whether this pair of hero and object never occurs in a story for training."""
    return sum(map(ord, hero + noun)) % HELD_OUT_MODULUS == 0


def _invented_name(rng: random.Random, she: bool) -> str:
    """Make up a name, so that a model learns to copy names that it has never seen."""
    start, middle = rng.choice(NAME_STARTS), rng.choice("bdfglmnrstvz")
    end = rng.choice(("a", "i", "ia", "ina") if she else ("o", "us", "on", "en"))
    return f"{start}{rng.choice('aeiou')}{middle}{end}"


def _cast(rng: random.Random) -> dict[str, str]:
    """Choose hero, helper and other animal, no two of them of a kind."""
    she = rng.random() < GIRL_SHARE
    name = _pick(rng, LISTS["girls" if she else "boys"])
    if rng.random() < INVENTED_SHARE and (invented := _invented_name(rng, she)) not in NAMES:
        name = invented
    helper, other, kind = (_pick(rng, LISTS["animals"]) for _ in range(3))
    if len({helper, other, kind}) < 3:
        return _cast(rng)
    if rng.random() < PEOPLE_SHARE:
        kind = "girl" if she else "boy"
    words = {
        **(SHE if she else HE),
        "H": name,
        "kind": kind,
        "helper": f"the {helper}",
        "a_helper": f"a {_pick(rng, LISTS['helpers'])} {helper}",
        "other": f"the {other}",
        "an_other": f"a {_pick(rng, LISTS['others'])} {other}",
        "elder": _pick(rng, LISTS["elders"]),
    }
    if rng.random() < ELDER_SHARE:
        words["helper"] = words["a_helper"] = words["elder"]
    return words


def _slots(rng: random.Random, plot: str) -> dict[str, str]:
    """Fix all facts of one story, each also under a capital for the start of a sentence."""
    words = _cast(rng)
    fits = [t for t in THINGS if t.learnable] if plot == "plot learn" else THINGS
    fits = [t for t in THINGS if t.damage] if plot == "plot mend" else fits
    thing = _pick(rng, [t for t in fits if not is_held_out(words["H"], t.noun)])
    words |= {"thing": thing.noun, "obj": f"{_pick(rng, LISTS['looks'])} {thing.noun}"}
    words |= {"use": thing.use, "used": thing.used, "damage": thing.damage}
    for slot in ("trait", "home", "place", "day", "dark", "game", "s1", "s2", "s3"):
        words[slot] = _pick(rng, LISTS[slot + "s"])
    return {**{k[0].upper() + k[1:]: v[:1].upper() + v[1:] for k, v in words.items()}, **words}


def _expand(rng: random.Random, text: str, parts: dict[str, list[str]]) -> str:
    """Resolve the slots that stand for whole sentences, then `[a|b]`, inner choices first."""
    for name, options in parts.items():
        while f"{{{name}}}" in text:
            text = text.replace(f"{{{name}}}", _pick(rng, options), 1)
    while "[" in text:
        text = re.sub(r"\[([^\[\]]*)\]", lambda found: _pick(rng, found[1].split("|")), text)
    return text


def make_story(rng: random.Random) -> Story:
    """Write one story."""
    plot = _pick(rng, PLOTS)
    words = _slots(rng, plot)
    owned = plot != "plot found"
    inner = {name: PARTS[name] for name in ("own", "find", "love", "out")}
    inner["love"] = PARTS["wish" if plot == "plot learn" else "love"]
    opening = PARTS["opening" if owned else "finder opening"]
    endings = (PARTS["owner ending"] if owned else []) + PARTS["ending"]
    beats = [opening, *beats_of(plot), endings]
    template = " ".join(_expand(rng, _pick(rng, beat), inner) for beat in beats)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", template.format(**words))
    cast = " ".join(words[slot] for slot in ("H", "obj", "helper", "other")).replace("the ", "")
    cast_words = frozenset(cast.split())
    return Story(" ".join(text.split()), words["H"], words["he"], words["thing"], plot, cast_words)


def stories(seed: int) -> Iterator[Story]:
    """Write stories without end; the same seed gives the same stories."""
    rng = random.Random(seed)
    while True:
        yield make_story(rng)
