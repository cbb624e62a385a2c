"""The thirty-two subjects of the small video prior: captions, wordings to train on, wordings for judging."""

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
    "surfing": Subject(
        ("person surfing",), ("a surfer", "riding a wave on a surfboard"), ("someone on a surf board at sea",)
    ),
    "lifting weights": Subject(
        ("person lifting weights",), ("a weightlifter", "someone lifts a barbell"), ("training with a heavy barbell",)
    ),
    "biking": Subject(("person biking",), ("a cyclist", "someone rides a bicycle"), ("cycling on a bike",)),
    "cartwheeling": Subject(("person cartwheeling",), ("someone turns a cartwheel",), ("a gymnast does a cartwheel",)),
    "juggling": Subject(("person juggling",), ("a juggler", "someone juggles balls"), ("a circus artist juggling",)),
    "basketball": Subject(
        ("woman bouncing ball",),
        ("someone dribbles a basketball", "person bouncing ball"),
        ("a basketball player dribbling",),
    ),
    "dancing": Subject(("woman dancing",), ("a dancer", "someone dances"), ("a person moves to the music",)),
    "waving": Subject(
        ("person raising hand",), ("someone raises a hand", "a person waves"), ("waving hello with one hand",)
    ),
    "bowing": Subject(("person bowing",), ("someone bows deeply",), ("a person bows down in apology",)),
    "rowing": Subject(("person rowing boat",), ("a rower", "someone rows a boat"), ("paddling a rowboat with oars",)),
    "climbing": Subject(("person climbing",), ("a rock climber", "someone climbs a wall"), ("climbing up a cliff",)),
    "dog": Subject(("dog",), ("a dog walks", "a puppy"), ("a hound",)),
    "cat": Subject(("cat",), ("a cat sits", "a kitten"), ("a pet kitty",)),
    "horse": Subject(("horse",), ("a horse gallops", "a running horse"), ("a stallion",)),
    "rabbit": Subject(("rabbit",), ("a bunny",), ("a white hare",)),
    "elephant": Subject(("elephant",), ("an elephant walks",), ("a big animal with a trunk",)),
    "penguin": Subject(("penguin",), ("a penguin waddles",), ("a penguin from antarctica",)),
    "duck": Subject(("duck",), ("a duck with a green head",), ("a mallard",)),
    "fish": Subject(("fish",), ("a blue fish swims",), ("a small blue fish",)),
    "dolphin": Subject(("dolphin",), ("a dolphin jumps",), ("a leaping dolphin",)),
    "butterfly": Subject(("butterfly",), ("a butterfly flaps its wings",), ("a fluttering butterfly",)),
    "bee": Subject(("honeybee",), ("a bee flies",), ("a buzzing bumblebee",)),
    "snake": Subject(("snake",), ("a green snake",), ("a slithering serpent",)),
    "t-rex": Subject(("T-Rex",), ("a dinosaur", "a tyrannosaurus"), ("a green tyrannosaurus rex",)),
    "kangaroo": Subject(("kangaroo",), ("a kangaroo hops",), ("a jumping wallaby",)),
    "rocket": Subject(("rocket",), ("a rocket flies",), ("a spaceship launch",)),
    "helicopter": Subject(("helicopter",), ("a helicopter flies",), ("a chopper in the air",)),
    "bus": Subject(("bus",), ("a bus drives",), ("a yellow coach",)),
    "sailboat": Subject(("sailboat",), ("a boat with sails",), ("a yacht at sea",)),
}
