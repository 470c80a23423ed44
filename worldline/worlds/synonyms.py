"""Words that people use for what the caption grammar says otherwise: each is read as one of the grammar's own words."""

from __future__ import annotations

from collections.abc import Iterator

# Read as the word or words on the left. Colours go to the nearest of the eight by hue.
NAMES = {
    "red": "ruby maroon burgundy cherry vermilion cardinal garnet rust tomato blood wine reddish cerise",
    "orange": "amber apricot pumpkin carrot peach ginger coral copper bronze saffron orangey marmalade",
    "yellow": "mustard canary gold blond blonde ochre sunflower banana butter corn sunny yellowish straw",
    "green": "jade lime olive mint forest moss sage leaf shamrock avocado pea grassy greenish chartreuse fern",
    "cyan": "aqua aquamarine cerulean seafoam",
    "blue": "sapphire cobalt azure indigo ultramarine denim ocean bluish midnight cornflower",
    "purple": "lavender mauve plum grape amethyst eggplant aubergine orchid purplish byzantium",
    "pink": "fuchsia salmon bubblegum flamingo rosy blush pinkish peony carnation",
    "grey": "silver ash slate charcoal greyish",
    "beige": "tan cream sandy",
    "white": "ivory snowy whitish",
    "dark": "black gloomy shadowy dim",
    "ball": "globe marble bead pearl basketball football snooker bowling pellet globule",
    "cube": "die dice crate brick parcel carton package hexahedron chest",
    "cylinder": "barrel tube pillar column pipe canister keg roller log pole",
    "cone": "spike wedge funnel pylon spire steeple pawn hat",
    "small": "miniature mini petite wee smallish teeny",
    "large": "giant enormous massive gigantic great oversized largish bulky",
    "quickly": "rapidly swiftly speedily briskly hurriedly",
    "slowly": "leisurely sluggishly lazily gradually calmly",
    "two": "pair couple both twin",
    "three": "trio triple",
    "four": "quartet quadruple",
    "a": "one single lone",
    "floor": "table tabletop earth surface desk",
    "screen": "panel partition barrier board curtain divider fence blind",
    "leftwards": "leftward",
    "rightwards": "rightward",
    "upward": "skyward upwards aloft heavenward",
    "down": "downward downwards",
    "backward": "backwards rearward",
    "distance": "background horizon",
    "away": "further farther",
    "closer": "nearer",
    "toward": "towards",
    "camera": "lens",
    "viewer": "spectator audience observer",
    "we see": "watch behold",
    "beside": "alongside adjacent",
    "near": "close nearby",
    "past": "beyond",
    "while": "whilst as",
    "still": "motionless stationary immobile idle unmoving put",
}

# Base forms of verbs; every inflection is read as the word or words on the left.
VERBS = {
    "moves": "trundle slither creep wheel drift skid rush shoot sneak stroll advance slip zip scoot push pull march "
    "crawl cruise coast speed dash race run walk dart hurry wander proceed stream sail make",
    "rolls": "roll",
    "slides": "slide",
    "falls": "plummet tumble sink collapse plop topple descend fall drop plunge",
    "rises": "levitate soar climb hover fly rise float ascend elevate",
    "bounces": "dribble bounce rebound ricochet",
    "jumps": "vault spring skip jump hop leap bound",
    "spins": "whirl pirouette revolve gyrate swivel twist spin rotate twirl",
    "rests": "lie wait remain rest sit stand stay",
    "approaches": "near approach",
    "recedes": "shrink withdraw depart dwindle recede retreat",
    "hits": "smack slam bang ram clobber whack punch knock tap nudge hit strike bump collide crash smash",
    "passes": "vanish disappear duck hide pass",
    "comes out again": "reappear emerge resurface",
    "goes": "go travel head journey",
    "pans": "pan",
    "zooms": "zoom",
    "circles": "orbit circle",
}
IRREGULAR = {
    "falls": "fell fallen",
    "rises": "risen flew flown",
    "rests": "lay lying lain sat stood",
    "goes": "went gone",
    "hits": "struck",
    "slides": "slid",
    "jumps": "sprang sprung",
    "spins": "spun",
    "recedes": "shrank shrunk withdrew",
    "moves": "made crept shot ran sped",
    "passes": "hid hidden",
}


def synonyms(known: list[str]) -> dict[str, str]:
    """Foreign word -> the known word or words it is read as, for all whose reading lies wholly in `known`."""
    words = set(known)
    readings: dict[str, str] = {}
    for reading, foreign in _pairs():
        if foreign not in words and all(word in words for word in reading.split()):
            readings.setdefault(foreign, reading)
    return readings


def _pairs() -> Iterator[tuple[str, str]]:
    for table in (NAMES, IRREGULAR):
        for reading, foreign in table.items():
            yield from ((reading, word) for word in foreign.split())
    for reading in ("ball", "cube", "cylinder", "cone"):
        yield from ((f"{reading}s", plural(word)) for word in NAMES[reading].split())
    for reading, bases in VERBS.items():
        for base in bases.split():
            yield from ((reading, form) for form in sorted(inflections(base)))


def plural(noun: str) -> str:
    """dice -> dice, box -> boxes, column -> columns."""
    if noun == "dice":
        return noun
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def inflections(verb: str) -> set[str]:
    """The regular forms of a verb, and those with its last consonant doubled (hop: hops, hopping, hopped)."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return {verb, f"{verb[:-1]}ies", f"{verb}ing", f"{verb[:-1]}ied"}
    stems = {verb.removesuffix("e")}
    if verb[-1] in "bgmnptr":
        stems.add(verb + verb[-1])
    return {verb, plural(verb), *(stem + end for stem in stems for end in ("ing", "ed"))}
