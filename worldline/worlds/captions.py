"""Says what a scene shows, in many ways: plain short captions, paraphrases with synonyms, and dense descriptions."""

from __future__ import annotations

import dataclasses

import numpy as np

from worldline.worlds.scene import Scene, Thing

STYLES = ("short", "paraphrase", "dense", "full")
NUMBERS = {2: "two", 3: "three", 4: "four"}

SHAPE_WORDS = {
    "ball": ("ball", "sphere", "orb", "round ball"),
    "cube": ("cube", "box", "block", "square block"),
    "cylinder": ("cylinder", "can", "drum", "tin"),
    "cone": ("cone", "pointed cone", "pyramid", "traffic cone"),
}
COLOUR_WORDS = {
    "red": ("red", "scarlet", "crimson"),
    "orange": ("orange", "orange coloured", "tangerine"),
    "yellow": ("yellow", "lemon", "golden"),
    "green": ("green", "emerald", "grass green"),
    "cyan": ("cyan", "turquoise", "teal"),
    "blue": ("blue", "navy", "royal blue"),
    "purple": ("purple", "violet", "lilac"),
    "pink": ("pink", "rose", "magenta"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
SPEED_WORDS = {
    "slow": ("slowly", "gently", "at a slow pace"),
    "fast": ("quickly", "fast", "at high speed"),
    "": ("",),
}

# {s} is the third-person ending: "rolls" for one thing, "roll" for several.
MOTION_WORDS = {
    "still": (
        "rest{s} on the floor",
        "sit{s} still",
        "stay{s} in place",
        "stand{s} on the ground",
        "do{es} not move",
    ),
    "left": (
        "move{s} to the left",
        "{go} left",
        "travel{s} from right to left",
        "glide{s} leftwards",
        "head{s} to the left side",
    ),
    "right": (
        "move{s} to the right",
        "{go} right",
        "travel{s} from left to right",
        "glide{s} rightwards",
        "head{s} to the right side",
    ),
    "toward": (
        "move{s} toward the camera",
        "come{s} closer",
        "approach{es} the viewer",
        "{go} forward, toward us",
    ),
    "away": (
        "move{s} away from the camera",
        "recede{s} into the distance",
        "{go} away from the viewer",
        "retreat{s} backward",
    ),
    "fall": (
        "fall{s} to the floor",
        "drop{s} from above",
        "drop{s} down and land{s}",
        "fall{s} down",
        "plunge{s} to the ground",
    ),
    "rise": (
        "rise{s} into the air",
        "float{s} upward",
        "lift{s} off the floor",
        "go{es} up like a balloon",
        "ascend{s}",
    ),
    "bounce": (
        "bounce{s} on the floor",
        "drop{s} and bounce{s} back up",
        "bounce{s} up and down",
        "hit{s} the ground and rebound{s}",
    ),
    "jump": (
        "jump{s}",
        "hop{s} up and land{s} again",
        "leap{s} off the floor and come{s} back down",
        "jump{s} into the air",
    ),
    "pushed": ("move{s} on the floor", "travel{s} over the floor", "glide{s} on the ground"),
    "spin": ("spin{s} in place", "rotate{s}", "turn{s} around on the spot", "twirl{s}"),
}
CAMERA_WORDS = {
    "pan left": ("the camera pans left", "the view pans to the left"),
    "pan right": ("the camera pans right", "the view pans to the right"),
    "zoom in": ("the camera zooms in", "the view zooms in closer"),
    "zoom out": ("the camera zooms out", "the view zooms out"),
    "orbit left": ("the camera orbits to the left", "the camera circles left around it"),
    "orbit right": ("the camera orbits to the right", "the camera circles right around it"),
}
COLLIDE_WORDS = ("hits", "crashes into", "bumps into", "collides with", "knocks into", "strikes")
FLOOR_WORDS = {
    "plain": ("plain", "smooth"),
    "checkered": ("checkered", "chequered"),
    "striped": ("striped",),
    "tiled": ("tiled",),
}
FLOOR_COLOUR_WORDS = {
    "grey": ("grey", "gray"),
    "white": ("white",),
    "beige": ("beige", "sand coloured"),
    "dark": ("dark",),
}
SKY_WORDS = {"pale": ("pale", "bright"), "dark": ("dark", "night"), "dusk": ("dusky", "dusk")}


def caption(scene: Scene, rng: np.random.Generator, style: str = "paraphrase") -> str:
    """A caption of `scene`: "short" canonical words, "paraphrase" synonyms and word orders, "dense" also the setting,
    "full" all that can be said in canonical words; `rng` changes neither "short" nor "full".

    Raises ValueError for another style.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, not {style!r}")
    say = _Words(rng, plain=style in ("short", "full"), sizes=style in ("dense", "full"))
    text = _event(scene, say)
    if scene.camera != "static":
        words = say.word(CAMERA_WORDS[scene.camera])
        text = f"{words}, {text}" if say.chance(0.3) else f"{text} while {words}"
    if say.sizes or say.chance(0.25):
        text = _with_setting(text, scene, say)
    if say.chance(0.08):
        text = say.word(("a video of ", "a clip where ", "we see that ")) + text
    return text


def in_order(scene: Scene) -> Scene:
    """The scene with its things as a viewer would name them, who cannot know their numbers: what moves first, then
    from left to right. Events and groups have an order of their own."""
    if scene.event or scene.group:
        return scene
    things = sorted(scene.things, key=lambda thing: (thing.motion == "still", thing.x))
    return dataclasses.replace(scene, things=tuple(things))


def mirrored(scene: Scene) -> Scene:
    """The scene whose pictures are those of `scene` with left and right exchanged, but for its light and yaws."""
    other = {"left": "right", "right": "left"}
    swap = {"pan left": "pan right", "orbit left": "orbit right"}
    swap |= {right: left for left, right in swap.items()}
    things = [dataclasses.replace(t, x=-t.x, motion=other.get(t.motion, t.motion)) for t in scene.things]
    return dataclasses.replace(scene, things=tuple(things), camera=swap.get(scene.camera, scene.camera))


class _Words:
    """Draws words; `plain` always takes the first, canonical one."""

    def __init__(self, rng: np.random.Generator, plain: bool, sizes: bool):
        self.rng, self.plain, self.sizes = rng, plain, sizes

    def chance(self, share: float) -> bool:
        return not self.plain and self.rng.random() < share

    def word(self, options: tuple[str, ...]) -> str:
        if self.plain or len(options) == 1 or self.rng.random() < 0.35:
            return options[0]
        return str(self.rng.choice(options))

    def noun(self, thing: Thing, article: str = "a") -> str:
        colour, shape = self.word(COLOUR_WORDS[thing.colour]), self.word(SHAPE_WORDS[thing.shape])
        size = self.word(SIZE_WORDS[thing.size]) if self.sizes or self.chance(0.35) else ""
        text = f"{size} {shape} that is {colour}" if self.chance(0.05) else f"{size} {colour} {shape}"
        return self.article(text.strip(), article)

    def article(self, text: str, article: str = "a") -> str:
        if article == "a" and text[0] in "aeiou":
            article = "an"
        return f"{article} {text}".strip()

    def pace(self, thing: Thing) -> str:
        """Speed, with a space before it; always said in plain captions, so that a reader can be held to it."""
        said = thing.speed and (self.plain or self.sizes or self.chance(0.7))
        return " " + self.word(SPEED_WORDS[thing.speed]) if said else ""

    def verb(self, thing: Thing, several: bool = False) -> str:
        options = MOTION_WORDS[thing.motion]
        if thing.motion in ("left", "right"):
            roll = "roll" if thing.shape in ("ball", "cylinder") else "slide"
            options = (f"{roll}{{s}} to the {thing.motion}", *options)
        if thing.motion in ("toward", "away"):
            roll = "roll" if thing.shape == "ball" else "slide"
            end = "toward the camera" if thing.motion == "toward" else "away from the camera"
            options = (f"{roll}{{s}} {end}", *options)
        text = self.word(options)
        go = "go" if several else "goes"
        return text.format(s="" if several else "s", es="" if several else "es", go=go) + self.pace(thing)


def _event(scene: Scene, say: _Words) -> str:
    first = scene.things[0]
    if scene.group:
        size = say.word(SIZE_WORDS[first.size]) + " " if say.sizes or say.chance(0.3) else ""
        count = say.word((NUMBERS[scene.count], str(scene.count)))
        nouns = f"{count} {size}{say.word(COLOUR_WORDS[first.colour])} {_plural(say.word(SHAPE_WORDS[first.shape]))}"
        return f"{nouns} {say.verb(first, several=True)}"
    if scene.event == "hide":
        side = first.motion
        end = say.word(("behind a grey screen", "behind a screen and comes out again", "and passes behind a wall"))
        move = say.word((f"moves to the {side}", f"goes {side}", f"travels {side}"))
        if say.chance(0.15):
            return f"{say.word(('behind a grey screen', 'behind a wall'))} {say.noun(first)} {move}"
        return f"{say.noun(first)} {move} {end}"
    if scene.event == "collide":
        second = scene.things[1]
        move = say.word((f"moves to the {first.motion}", f"comes {first.motion}", f"heads {first.motion}"))
        if say.chance(0.15):
            side = "left" if first.motion == "right" else "right"
            return f"{say.noun(second)} is hit by {say.noun(first)} from the {side}"
        return f"{say.noun(first)} {move} and {say.word(COLLIDE_WORDS)} {say.noun(second)}"
    if scene.count == 1:
        return _one(first, say)
    return _several(scene, say)


def _one(thing: Thing, say: _Words) -> str:
    if say.chance(0.06) and thing.motion != "still":
        return f"there is {say.noun(thing)}, it {say.verb(thing)}"
    if say.chance(0.08) and thing.motion in ("left", "right"):
        move = say.word(("goes", "moves", "rolls" if thing.shape in ("ball", "cylinder") else "slides"))
        return f"to the {thing.motion} {move} {say.noun(thing)}{say.pace(thing)}"
    return f"{say.noun(thing)} {say.verb(thing)}"


def _several(scene: Scene, say: _Words) -> str:
    first, *rest = scene.things
    if all(thing.motion == "still" for thing in scene.things):
        return _arrangement(scene, say)
    if len(rest) == 1 and rest[0].motion != "still":
        joiner = say.word((" while ", " and ", ", and at the same time "))
        return f"{_one(first, say)}{joiner}{say.noun(rest[0])} {say.verb(rest[0])}"
    others = " and ".join(say.noun(thing) for thing in rest)
    many = len(rest) > 1
    if say.chance(0.2):  # the resting things first
        place = "past" if first.motion in ("left", "right") else say.word(("beside", "next to", "near"))
        rests = ("rest", "do not move") if many else ("rests", "does not move")
        heads = (f"{place} {others}", f"while {others} {say.word(rests)}", f"with {others} standing by")
        return f"{say.word(heads)}, {_one(first, say)}"
    if first.motion in ("left", "right"):
        return f"{say.noun(first)} {say.verb(first)} {say.word(('past', 'by', 'passing'))} {others}"
    tails = (
        f"beside {others}",
        f"next to {others}",
        f"near {others}",
        f"while {others} {'rest' if many else 'rests'}",
    )
    return f"{say.noun(first)} {say.verb(first)} {say.word(tails)}"


def _arrangement(scene: Scene, say: _Words) -> str:
    """Resting things, named from left to right or the reverse, as a viewer would."""
    ordered = sorted(scene.things, key=lambda thing: thing.x)
    if len(ordered) == 2:
        left, right = ordered
        if (scene.things[0] is left) != say.chance(0.2):
            return f"{say.noun(left)} {say.word(('is', 'sits', 'rests'))} to the left of {say.noun(right)}"
        return f"{say.noun(right)} {say.word(('is', 'sits', 'rests'))} to the right of {say.noun(left)}"
    middle = say.word((" stands between ", " is between ", " sits between "))
    return f"{say.noun(ordered[1])}{middle}{say.noun(ordered[0])} and {say.noun(ordered[2])}"


def _with_setting(text: str, scene: Scene, say: _Words) -> str:
    floor = f"{say.word(FLOOR_WORDS[scene.floor])} {say.word(FLOOR_COLOUR_WORDS[scene.floor_colour])} floor"
    sky = f"{say.word(SKY_WORDS[scene.sky])} sky"
    if say.sizes or say.chance(0.4):
        return f"{text}, {say.word(('on', 'over'))} a {floor} under a {sky}"
    return f"{text}, on a {floor}" if say.chance(0.7) else f"{text}, under a {sky}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("x") else "s")


def vocabulary() -> list[str]:
    """Every word that the grammar can say, sorted: what the shipped model was taught."""
    words: set[str] = set(NUMBERS.values()) | {str(n) for n in NUMBERS}
    tables = (
        SHAPE_WORDS,
        COLOUR_WORDS,
        SIZE_WORDS,
        SPEED_WORDS,
        MOTION_WORDS,
        CAMERA_WORDS,
        FLOOR_WORDS,
        FLOOR_COLOUR_WORDS,
        SKY_WORDS,
    )
    for table in tables:
        for options in table.values():
            for option in options:
                for forms in (("s", "es", "goes"), ("", "", "go")):
                    words.update(option.format(s=forms[0], es=forms[1], go=forms[2]).replace(",", " ").split())
    for shape_options in SHAPE_WORDS.values():
        words.update(word for option in shape_options for word in _plural(option).split())
    for phrase in COLLIDE_WORDS:
        words.update(phrase.split())
    words.update(_GLUE.split())
    return sorted(words)


_GLUE = """
a an and at again at beside between behind by clip comes crashes floor from grey heads hit is it left move moves near
next of on out over past passes passing rest rests right roll rolls same screen sits sky slide slides stands that
the there time to toward travels under video wall we where see while camera away goes come go with standing do does not
"""
