"""Texts of the built-in images: words, codes, numbers, form keys and formulas."""

from __future__ import annotations

import random

WORDS = tuple(
    """
    ACE AIR ANT APPLE ARM ART BAG BAKE BALL BANK BAR BEAN BED BEE BELL BIRD BLUE BOAT BOOK BOX BOY
    BREAD BUS CAFE CAKE CAR CARD CAT CHAIR CITY CLUB COAT CODE COLD COOK CORN COW CUP DAY DEER DESK
    DOG DOOR DRUM DUCK DUST EAR EAST EGG EXIT EYE FACE FARM FIRE FISH FLAG FOOD FORK FOX FROG FUN
    GAME GATE GIFT GIRL GOAT GOLD GRASS GUM HAND HAT HERO HILL HOME HOT HOTEL ICE INK IRON ISLE JAM
    JAR JET JOB JUICE KEY KING KITE LAKE LAMP LAND LEAF LIME LION LOCK LUCK MAP MARKET MEAL MILK
    MIND MOON MOUSE MUSIC NAIL NEST NET NIGHT NORTH NOSE NOTE NUT OAK OCEAN OIL OPEN OVEN OWL PAGE
    PAN PARK PEAR PEN PIANO PIG PINE PIZZA POOL PORT QUEEN QUIET QUIZ RADIO RAIN RAT RICE RIVER ROAD
    ROBOT ROCK ROOM ROSE SALE SALT SAND SEA SHIP SHOE SHOP SKY SNOW SOAP SONG SOUP STAR STOP SUGAR
    SUN TAXI TEA TENT TIGER TIME TOP TOWN TOY TRAIN TREE TRUCK UNCLE VAN VASE VIEW WALL WATER WAY
    WEST WHEEL WIND WINE WOLF WOOD YARD YEAR ZEBRA ZERO ZONE ZOO
    """.split()
)
KEYS = ("NO", "ID", "QTY", "TAX", "SUM", "AGE", "DAY", "BOX", "BUS", "TEL", "PIN", "FEE")
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # without I, O and Q: no confusion with 1 and 0 in codes
_DIGITS = "23456789"


def word(rng: random.Random, longest: int = 6) -> str:
    """Choose a common English word of at most `longest` letters, in capitals."""
    while True:
        choice = rng.choice(WORDS)
        if len(choice) <= longest:
            return choice


def letters(rng: random.Random, length: int) -> str:
    """Return random capitals."""
    return "".join(rng.choice(_LETTERS) for _ in range(length))


def code(rng: random.Random, length: int) -> str:
    """Return random capitals and digits."""
    return "".join(rng.choice(_LETTERS + _DIGITS) for _ in range(length))


def number(rng: random.Random, length: int) -> str:
    """Return a random number of `length` digits that does not start with 0."""
    return rng.choice("123456789") + "".join(rng.choice("0123456789") for _ in range(length - 1))


def formula(rng: random.Random) -> list[tuple[str, bool]]:
    """Return 4 to 6 glyphs of a random formula, each with whether it is a superscript."""
    out: list[tuple[str, bool]] = []

    def term() -> None:
        kind = rng.random()
        if kind < 0.35:
            out.append((rng.choice("abxy"), False))
            out.append((rng.choice(_DIGITS), True))
        elif kind < 0.65:
            out.append((rng.choice(_DIGITS), False))
            out.append((rng.choice("abxy"), False))
        elif kind < 0.8:
            out.append((rng.choice("abxy"), False))
        else:
            out.append((rng.choice(_DIGITS), False))

    term()
    out.append((rng.choice("+-"), False))
    term()
    if len(out) <= 4 and rng.random() < 0.6:
        out.append(("=", False))
        out.append((rng.choice(_DIGITS), False))
    return out


def latex(parts: list[tuple[str, bool]]) -> str:
    """Convert the glyphs of `formula` to LaTeX, such as `x^{2}+3`."""
    return "".join(f"^{{{c}}}" if raised else c for c, raised in parts)
