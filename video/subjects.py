"""The twelve subjects of the small video prior: captions, wordings to train on, wordings for judging."""

from __future__ import annotations

from typing import NamedTuple


class Subject(NamedTuple):
    """``captions`` as in the data's index (skin tone cut off); ``wordings`` join in training; ``held_out`` never do."""

    captions: tuple[str, ...]
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]


SUBJECTS: dict[str, Subject] = {
    "running": Subject(
        ("woman running",),
        ("a runner", "person running", "someone runs", "a person is running fast"),
        ("someone is jogging", "a sprinter in a race"),
    ),
    "walking": Subject(("person walking",), ("a person walks", "someone out for a walk"), ("a man strolls along",)),
    "swimming": Subject(("person swimming",), ("a swimmer", "someone swims in water"), ("doing laps in the pool",)),
    "biking": Subject(("person biking",), ("a cyclist", "someone rides a bicycle"), ("cycling on a bike",)),
    "juggling": Subject(("person juggling",), ("a juggler", "someone juggles balls"), ("a circus artist juggling",)),
    "waving": Subject(
        ("person raising hand",), ("someone raises a hand", "a person waves"), ("waving hello with one hand",)
    ),
    "dog": Subject(("dog",), ("a dog walks", "a puppy"), ("a hound",)),
    "horse": Subject(("horse",), ("a horse gallops", "a running horse"), ("a stallion",)),
    "fish": Subject(("fish",), ("a blue fish swims",), ("a small blue fish",)),
    "butterfly": Subject(("butterfly",), ("a butterfly flaps its wings",), ("a fluttering butterfly",)),
    "rocket": Subject(("rocket",), ("a rocket flies",), ("a spaceship launch",)),
    "penguin": Subject(("penguin",), ("a penguin waddles",), ("a penguin from antarctica",)),
}
