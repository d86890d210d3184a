"""Check whether a story is consistent, one of the generator or one of the trained model.

Does: hero, pronoun, object, animals, words, articles, length and ending. Does not: judge style,
or run a model (`tools/demo_report.py`).
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

from tools.story_templates import PARTS, TEMPLATES
from tools.story_words import LISTS, NOUNS, THINGS_TABLE, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator


def _vocabulary() -> frozenset[str]:
    text = WORDS.partition("animals: ")[2] + THINGS_TABLE.replace("/", " ") + TEMPLATES
    text = re.sub(r"\{\w+\}", " ", text) + " girl boy she her an "
    return frozenset(re.findall(r"[a-z]+", text.lower()))


VOCABULARY: Final = _vocabulary() | {"he", "his", "him"}


def _find_cast_problems(text: str, prompt: str) -> Iterator[str]:
    """Compare heroes, objects, pronouns and animals at the start and at the end."""
    words = re.findall(r"[A-Za-z]+", text)
    names = [w for w in words if w[0].isupper() and w.lower() not in VOCABULARY]
    hero = names[0] if names else "(none)"
    extra = set(names) - {hero} - set(re.findall(r"[A-Za-z]+", prompt))
    if extra:
        yield f"hero {hero} but also {sorted(extra)}"
    if hero not in " ".join(re.split(r"(?<=[.!?]) ", text)[-3:]):
        yield f"hero {hero} is not in the last sentences"
    told = set(re.sub(r'"[^"]*"', "", text).lower().replace(".", " ").replace(",", " ").split())
    he, she = bool(told & {"he", "his", "him"}), bool(told & {"she", "her"})
    if (he and she) or (he and hero in LISTS["girls"]) or (she and hero in LISTS["boys"]):
        yield f"hero {hero} changes pronoun"
    nouns = [w for w in words if w in NOUNS]
    if len(set(nouns)) != 1 or nouns[0] not in words[len(words) // 2 :]:
        yield f"not one object all through: {sorted(set(nouns))}"
    looks = {a for a, b in itertools.pairwise(words) if b in NOUNS}
    if len(looks & set(LISTS["looks"])) > 1:
        yield f"the object changes its look: {sorted(looks)}"
    for animal in set(LISTS["animals"]) & set(words):
        new = rf"\b([Aa]n?( \w+){{0,3}}?|{hero} the) {animal}\b"
        if not re.search(new, text[: text.index(animal) + len(animal)]):
            yield f"the {animal} was not introduced"


def find_problems(text: str, prompt: str = "") -> list[str]:
    """List what is wrong with a story; an empty list means that it is consistent.

    Args:
        text: the whole story, prompt included.
        prompt: what the user wrote; its words are accepted as they are.
    """
    found, words = list(_find_cast_problems(text, prompt)), re.findall(r"[A-Za-z]+", text)
    unknown = {w for w in words if w[0].islower()} - VOCABULARY
    unknown -= set(re.findall(r"\w+", prompt.lower()))
    if unknown:
        found.append(f"strange words {sorted(unknown)}")
    if re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text) or text.count('"') % 2:
        found.append("wrong article or open quotation")
    if not 60 <= len(words) <= 260:
        found.append(f"{len(words)} words")
    longer = [part for part in re.split(r"[.!?]\W+", text) if part.count(" ") > 2]
    if len(set(longer)) < len(longer):
        found.append("a sentence occurs twice")
    endings = "|".join(PARTS["ending"] + PARTS["owner ending"]).replace(".", "[.]")
    if not re.search(rf"(?:{re.sub('{.*?}', '[a-zA-Z ]+', endings)})$", text):
        found.append("no ending")
    return found
