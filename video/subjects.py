"""The thirty-one subjects of the small video prior: captions, wordings to train on, wordings for judging."""

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
    "surfing": Subject(
        ("person surfing",),
        (
            "a surfer",
            "riding a wave on a surfboard",
        ),
        ("someone on a surf board at sea",),
    ),
    "lifting weights": Subject(
        ("man lifting weights",),
        (
            "a weightlifter",
            "someone lifts a barbell",
        ),
        ("training with a heavy barbell",),
    ),
    "basketball": Subject(
        ("man bouncing ball",),
        (
            "someone dribbles a basketball",
            "person bouncing ball",
        ),
        ("a basketball player dribbling",),
    ),
    "climbing": Subject(
        ("person climbing",),
        (
            "a rock climber",
            "someone climbs a wall",
        ),
        ("climbing up a cliff",),
    ),
    "dancing": Subject(
        ("woman dancing",),
        (
            "a dancer",
            "someone dances",
        ),
        ("a person moves to the music",),
    ),
    "bowing": Subject(("person bowing",), ("someone bows deeply",), ("a person bows down in apology",)),
    "cat": Subject(
        ("cat",),
        (
            "a cat sits",
            "a kitten",
        ),
        ("a pet kitty",),
    ),
    "rabbit": Subject(("rabbit",), ("a bunny",), ("a white hare",)),
    "tiger": Subject(("tiger",), ("a tiger walks",), ("a big striped cat",)),
    "elephant": Subject(("elephant",), ("an elephant walks",), ("a big animal with a trunk",)),
    "duck": Subject(("duck",), ("a duck with a green head",), ("a mallard",)),
    "parrot": Subject(("parrot",), ("a red parrot",), ("a colourful macaw",)),
    "dolphin": Subject(("dolphin",), ("a dolphin jumps",), ("a leaping dolphin",)),
    "octopus": Subject(("octopus",), ("an orange octopus",), ("a sea animal with tentacles",)),
    "crab": Subject(("crab",), ("a red crab",), ("a crab with claws",)),
    "helicopter": Subject(("helicopter",), ("a helicopter flies",), ("a chopper in the air",)),
    "racing car": Subject(("racing car",), ("a race car drives",), ("a formula one car",)),
    "sailboat": Subject(("sailboat",), ("a boat with sails",), ("a yacht at sea",)),
    "kangaroo": Subject(("kangaroo",), ("a kangaroo hops",), ("a jumping wallaby",)),
}
