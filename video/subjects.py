"""The sixty subjects of the small video prior: captions in the data, wordings to train on, wordings kept for judging."""

from __future__ import annotations

from typing import NamedTuple


class Subject(NamedTuple):
    """``captions`` as in the data's index (skin tone cut off); ``wordings`` join in training; ``held_out`` never do."""

    captions: tuple[str, ...]
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]


def _people(action: str, who: str = "person woman man") -> tuple[str, ...]:
    return tuple(f"{name} {action}" for name in who.split())


SUBJECTS: dict[str, Subject] = {
    "running": Subject(
        _people("running", "woman"),
        ("a runner", "person running", "someone runs", "a person is running fast"),
        ("someone is jogging", "a sprinter in a race"),
    ),
    "walking": Subject(
        _people("walking", "person man"), ("a person walks", "someone out for a walk"), ("a man strolls along",)
    ),
    "swimming": Subject(
        _people("swimming", "person woman"), ("a swimmer", "someone swims in water"), ("doing laps in the pool",)
    ),
    "surfing": Subject(
        _people("surfing"), ("a surfer", "riding a wave on a surfboard"), ("someone on a surf board at sea",)
    ),
    "lifting weights": Subject(
        _people("lifting weights"), ("a weightlifter", "someone lifts a barbell"), ("training with a heavy barbell",)
    ),
    "golfing": Subject(_people("golfing"), ("a golfer", "someone plays golf"), ("swinging a golf club",)),
    "rowing": Subject(_people("rowing boat"), ("a rower", "someone rows a boat"), ("paddling a rowboat with oars",)),
    "biking": Subject(_people("biking"), ("a cyclist", "someone rides a bicycle"), ("cycling on a bike",)),
    "cartwheeling": Subject(_people("cartwheeling"), ("someone turns a cartwheel",), ("a gymnast does a cartwheel",)),
    "juggling": Subject(
        _people("juggling", "person woman"), ("a juggler", "someone juggles balls"), ("a circus artist juggling",)
    ),
    "water polo": Subject(
        _people("playing water polo", "woman man"), ("someone plays water polo",), ("throwing a ball in the water",)
    ),
    "handball": Subject(
        _people("playing handball"), ("a handball player", "someone throws a handball"), ("a game of handball",)
    ),
    "basketball": Subject(
        _people("bouncing ball", "woman man"),
        ("someone dribbles a basketball", "person bouncing ball"),
        ("a basketball player dribbling",),
    ),
    "climbing": Subject(_people("climbing"), ("a rock climber", "someone climbs a wall"), ("climbing up a cliff",)),
    "snowboarding": Subject(
        ("snowboarder",), ("a person snowboarding", "someone rides a snowboard"), ("sliding down the snow on a board",)
    ),
    "wheelchair": Subject(
        ("man in manual wheelchair",), ("someone in a wheelchair",), ("a person rolling in a wheel chair",)
    ),
    "white cane": Subject(
        _people("with white cane"), ("a blind person with a cane",), ("someone walking with a white stick",)
    ),
    "dancing": Subject(
        _people("dancing", "woman man"), ("a dancer", "someone dances"), ("a person moves to the music",)
    ),
    "massage": Subject(_people("getting massage"), ("a head massage",), ("someone has their head massaged",)),
    "haircut": Subject(_people("getting haircut"), ("cutting hair with scissors",), ("at the hairdresser",)),
    "waving": Subject(
        _people("raising hand"), ("someone raises a hand", "a person waves"), ("waving hello with one hand",)
    ),
    "bowing": Subject(_people("bowing"), ("someone bows deeply",), ("a person bows down in apology",)),
    "shrugging": Subject(_people("shrugging"), ("someone shrugs",), ("a person shrugs the shoulders",)),
    "arms crossed": Subject(
        _people("gesturing NO", "person man"), ("someone crosses the arms to say no",), ("a person signals no",)
    ),
    "arms overhead": Subject(
        _people("gesturing OK"), ("someone makes an OK sign with both arms",), ("arms in a circle over the head",)
    ),
    "facepalming": Subject(_people("facepalming"), ("someone facepalms",), ("a hand over the face in dismay",)),
    "astronaut": Subject(
        ("astronaut", "man astronaut", "woman astronaut"), ("a person in a space suit",), ("a cosmonaut",)
    ),
    "firefighter": Subject(
        ("firefighter", "man firefighter", "woman firefighter"), ("someone in a fire helmet",), ("a fireman",)
    ),
    "santa claus": Subject(("Santa Claus",), ("Father Christmas",), ("Saint Nicholas with a white beard",)),
    "superhero": Subject(
        ("superhero", "man superhero", "woman superhero"), ("a hero in a cape",), ("a caped super hero",)
    ),
    "mage": Subject(("man mage", "woman mage"), ("a wizard", "a magician with a wand"), ("a sorcerer casts a spell",)),
    "ninja": Subject(("ninja",), ("a ninja fighter",), ("a masked ninja warrior",)),
    "mermaid": Subject(("mermaid", "merman", "merperson"), ("a mermaid with a fish tail",), ("a siren of the sea",)),
    "skiing": Subject(("skier",), ("someone skis", "a person skiing"), ("racing downhill on skis",)),
    "fencing": Subject(("person fencing",), ("a fencer",), ("a duel with a foil",)),
    "dog": Subject(("dog",), ("a dog walks", "a puppy"), ("a hound",)),
    "cat": Subject(("cat",), ("a cat sits", "a kitten"), ("a pet kitty",)),
    "horse": Subject(("horse",), ("a horse gallops", "a running horse"), ("a stallion",)),
    "rabbit": Subject(("rabbit",), ("a bunny",), ("a white hare",)),
    "tiger": Subject(("tiger",), ("a tiger walks",), ("a big striped cat",)),
    "elephant": Subject(("elephant",), ("an elephant walks",), ("a big animal with a trunk",)),
    "penguin": Subject(("penguin",), ("a penguin waddles",), ("a penguin from antarctica",)),
    "duck": Subject(("duck",), ("a duck with a green head",), ("a mallard",)),
    "parrot": Subject(("parrot",), ("a red parrot",), ("a colourful macaw",)),
    "fish": Subject(("fish",), ("a blue fish swims",), ("a small blue fish",)),
    "dolphin": Subject(("dolphin",), ("a dolphin jumps",), ("a leaping dolphin",)),
    "whale": Subject(("spouting whale",), ("a whale", "a whale spouts water"), ("a whale blowing water",)),
    "octopus": Subject(("octopus",), ("an orange octopus",), ("a sea animal with tentacles",)),
    "crab": Subject(("crab",), ("a red crab",), ("a crab with claws",)),
    "butterfly": Subject(("butterfly",), ("a butterfly flaps its wings",), ("a fluttering butterfly",)),
    "bee": Subject(("honeybee",), ("a bee flies",), ("a buzzing bumblebee",)),
    "snake": Subject(("snake",), ("a green snake",), ("a slithering serpent",)),
    "t-rex": Subject(("T-Rex",), ("a dinosaur", "a tyrannosaurus"), ("a green tyrannosaurus rex",)),
    "dragon": Subject(("dragon",), ("a green dragon",), ("a chinese dragon",)),
    "rocket": Subject(("rocket",), ("a rocket flies",), ("a spaceship launch",)),
    "helicopter": Subject(("helicopter",), ("a helicopter flies",), ("a chopper in the air",)),
    "bus": Subject(("bus",), ("a bus drives",), ("a yellow coach",)),
    "racing car": Subject(("racing car",), ("a race car drives",), ("a formula one car",)),
    "sailboat": Subject(("sailboat",), ("a boat with sails",), ("a yacht at sea",)),
    "kangaroo": Subject(("kangaroo",), ("a kangaroo hops",), ("a jumping wallaby",)),
}
