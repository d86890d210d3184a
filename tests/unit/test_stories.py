"""The generator of the demo model's stories, their checker, and the recipe's pure parts."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import (
    demo_llama,
    demo_report,
    stories,
    story_checks,
    story_templates,
    story_words,
    train_demo,
)

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = list(itertools.islice(stories.stories(5), 400))
GOOD = (
    "Tom had a red kite. He loved to fly it in the wind. One sunny day, Tom took the kite to the "
    'park. There he met a small fox. The fox looked very sad. "What is the matter?" asked Tom. '
    '"I have no one to play with," said the fox. Tom wanted to help, but how? Then he had an '
    'idea. "You can have my red kite for today," said Tom. The fox took the kite and smiled. In '
    "the evening, the fox felt much better and gave the kite back. Tom went home with a big smile."
)


def texts(seed: int, n: int = 50) -> list[str]:
    return [story.text for story in itertools.islice(stories.stories(seed), n)]


def test_same_seed_gives_same_stories() -> None:
    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_stories_hardly_repeat() -> None:
    assert len({story.text for story in SAMPLE}) == len(SAMPLE)
    assert {story.plot for story in SAMPLE} == set(story_templates.PLOTS)
    assert len({(story.hero, story.thing) for story in SAMPLE}) > 300


def test_checker_accepts_every_generated_story() -> None:
    found = {story.text: story_checks.find_problems(story.text) for story in SAMPLE}
    assert {text: problems for text, problems in found.items() if problems} == {}


def test_length_hero_object_and_ending() -> None:
    for story in SAMPLE:
        words = re.findall(r"[A-Za-z]+", story.text)
        assert 80 <= len(words) <= 220
        assert story.hero in words[:40]
        assert story.hero in words[-40:]
        assert story.thing in words[:60]
        assert words.count(story.thing) >= 2
        assert story.text.endswith(".")
        assert "{" not in story.text
        assert "[" not in story.text
        assert "  " not in story.text


def test_pronouns_belong_to_the_hero() -> None:
    for story in SAMPLE:
        words = set(re.findall(r"[a-z]+", story.text.lower()))
        wrong = {"he", "him", "his"} if story.pronoun == "she" else {"she", "her"}
        assert not words & wrong, story.text


def test_articles() -> None:
    for story in SAMPLE:
        for article, letter in re.findall(r"\b(an?) (\w)", story.text.lower()):
            assert (article == "an") == (letter in "aeiou"), story.text


def test_held_out_pairs_never_occur() -> None:
    assert not any(stories.is_held_out(story.hero, story.thing) for story in SAMPLE)


def test_words_of_objects_names_and_templates_do_not_mix() -> None:
    told = set(re.findall(r"[a-z]+", story_templates.TEMPLATES.lower()))
    assert not told & story_words.NOUNS
    assert not told & set(story_words.LISTS["animals"])
    names = {name.lower() for name in story_words.LISTS["girls"] + story_words.LISTS["boys"]}
    assert not names & story_checks.VOCABULARY
    assert len(names) == len(story_words.LISTS["girls"]) + len(story_words.LISTS["boys"])


def test_checker_accepts_a_good_story() -> None:
    assert story_checks.find_problems(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Tom went home", "Max went home", "hero Tom but also ['Max']"),
        ("Tom went home", "She went home", "hero Tom changes pronoun"),
        ("Then he had", "Then she had", "hero Tom changes pronoun"),
        ("gave the kite", "gave the boat", "not one object all through"),
        ("my red kite", "my blue kite", "the object changes its look"),
        ("gave the kite", "gave the ktie", "strange words ['ktie']"),
        ("the fox felt", "the bear felt", "the bear was not introduced"),
        ("had an idea", "had a idea", "wrong article"),
        ('today,"', "today,", "wrong article or open quotation"),
        (" Tom went home with a big smile.", "", "no ending"),
        ("The fox looked very sad.", "Tom took the kite to the park. " * 2, "occurs twice"),
        ("Tom wanted to help, but how?", "Tom sang. " * 100, "words"),
    ],
)
def test_checker_rejects_a_spoilt_story(old: str, new: str, problem: str) -> None:
    assert old in GOOD
    problems = story_checks.find_problems(GOOD.replace(old, new))
    assert any(problem in found for found in problems), problems


def test_checker_rejects_generated_stories_with_a_swapped_hero() -> None:
    for story in SAMPLE[:50]:
        head, tail = story.text[: len(story.text) // 2], story.text[len(story.text) // 2 :]
        swapped = head + re.sub(rf"\b{story.hero}\b", "Quentin", tail)
        assert story_checks.find_problems(swapped), swapped


def test_checker_takes_the_words_of_the_prompt() -> None:
    prompt = "Grandma Kate gave Tom a xylophonic toy."
    problems = story_checks.find_problems(f"{prompt} {GOOD}".replace("Tom", "Kate"), prompt)
    assert not any("strange" in problem for problem in problems)


def test_prompts_hold_pairs_that_training_never_sees() -> None:
    prompts = demo_report.PROMPTS.strip().split("\n")
    assert len(prompts) == len(set(prompts)) == 30
    known = set(story_words.LISTS["girls"] + story_words.LISTS["boys"])
    pairs = 0
    for prompt in prompts:
        words = re.findall(r"[A-Za-z]+", prompt)
        for hero, noun in itertools.product(known & set(words), story_words.NOUNS & set(words)):
            assert stories.is_held_out(hero, noun), prompt
            pairs += 1
    assert pairs >= 20


def test_recipe_imports_without_torch() -> None:
    code = "import sys, tools.train_demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_shape_has_the_documented_size() -> None:
    shapes = demo_llama.parameter_shapes(demo_llama.Shape())
    assert sum(math.prod(size) for size in shapes.values()) == 2_632_128
    assert shapes["model.layers.5.self_attn.k_proj.weight"] == (96, 192)
    assert len(shapes) == 2 + 6 * 9


def test_learning_rate_rises_then_falls() -> None:
    rates = [train_demo.rate_at(step, 1000, 1.0) for step in range(1000)]
    assert rates[99] == max(rates) == 1.0
    assert all(a < b for a, b in itertools.pairwise(rates[:100]))
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)
