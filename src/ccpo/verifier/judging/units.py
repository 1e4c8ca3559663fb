r"""
Read the words after a number: units, countable things and number words.

A unit has a factor and a dimension. So `2 \text{ hours } 30 \text{ minutes}` is 150 minutes, and 12 miles are not 12
metres. Any other word, such as "about" or "or", makes the answer unreadable.
"""

import re
from fractions import Fraction
from functools import lru_cache

# For each dimension: its units with their factors and all their names
_TABLE = """
length 1 m meter meters metre metres
length 1000 km kilometer kilometers kilometre kilometres kms
length 1/10 dm decimeter decimeters decimetre decimetres
length 1/100 cm centimeter centimeters centimetre centimetres cms
length 1/1000 mm millimeter millimeters millimetre millimetres
length 1/1000000 micrometer micrometers micron microns
length 1/1000000000 nm nanometer nanometers
length 254/10000 in inch inches
length 3048/10000 ft foot feet
length 9144/10000 yd yard yards yds
length 1609344/1000 mi mile miles
mass 1 g gram grams gm gms
mass 1000 kg kilogram kilograms kgs kilo kilos
mass 1/1000 mg milligram milligrams
mass 1000000 tonne tonnes
mass 45359237/100000 lb lbs pound pounds
mass 45359237/1600000 oz ounce ounces
ton 1 ton tons
time 1 s sec secs second seconds
time 1/1000 ms millisecond milliseconds
time 60 min mins minute minutes
time 3600 h hr hrs hour hours
time 86400 day days
time 604800 week weeks wk wks
month 1 month months
month 12 year years yr yrs
month 120 decade decades
month 1200 century centuries
volume 1 l liter liters litre litres
volume 1/1000 ml milliliter milliliters millilitre millilitres cc
volume 3785411784/1000000000 gallon gallons gal gals
volume 946352946/1000000000 quart quarts qt
volume 473176473/1000000000 pint pints pt
cup 1 cup cups
cup 1/16 tablespoon tablespoons tbsp
cup 1/48 teaspoon teaspoons tsp
money 1 dollar dollars usd us buck bucks
money 1/100 cent cents ¢ penny pennies
money 1/20 nickel nickels
money 1/10 dime dimes
money 1/4 quarter quarters
euro 1 euro euros eur
gbp 1 gbp quid
yen 1 yen
rupee 1 rupee rupees rs inr
yuan 1 yuan rmb
peso 1 peso pesos
angle 1 degree degrees deg degs
angle 1/60 arcminute arcminutes
angle 1/3600 arcsecond arcseconds
radian 1 radian radians rad rads
celsius 1 celsius
fahrenheit 1 fahrenheit
kelvin 1 kelvin kelvins
area 1 acre acres
area 2471/1000 hectare hectares ha
force 1 newton newtons
energy 1 j joule joules
energy 1000 kj kilojoule kilojoules
calorie 1 calorie calories cal
calorie 1000 kcal kilocalorie kilocalories
power 1 watt watts
power 1000 kw kilowatt kilowatts
volt 1 volt volts
ampere 1 amp amps ampere amperes
ohm 1 ohm ohms
pressure 1 pascal pascals
hertz 1 hz hertz
mole 1 mol mole moles
bit 1 bit bits
bit 8 byte bytes
unit 1 unit units
"""
_UNITS = {}
for _line in _TABLE.split("\n")[1:-1]:
    _dimension, _factor, *_names = _line.split()
    _UNITS |= {name: (Fraction(_factor), _dimension) for name in _names}
_SPEEDS = {
    "mph": ("mile", "hour"),
    "kph": ("kilometer", "hour"),
    "kmph": ("kilometer", "hour"),
    "fps": ("foot", "second"),
}

NUMBERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SMALL = dict(
    zip(
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen
        eighteen nineteen""".split(),
        range(20),
        strict=True,
    )
)
_TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))

_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_IRREGULAR = frozenset("people children men women mice sheep fish feet teeth geese oxen deer dice pence".split())
# Words that end in -s but are not countable, and words that change the meaning: neither things nor adjectives.
_NO_THINGS = (
    frozenset(
        """about above actually again all almost also alternatives always and another any anything approximately around
    as     at away because below best between both but by choices correct cubes differs does doubles either else equals
    error estimates everything exactly except factorials false few fewer fifths fourths from greater guess guesses
    halves
    half hence if in incorrect infinitely inverse is it its larger least less likely many maximum maybe minimum minus
    mod modulo more most multiples nearly negative neither never no none nor not nothing of once one ones only
    opposite
    or other others otherwise over pairs parts perhaps percents plus points positive possible possibilities possibly
    powers probably quarters roots rather reciprocal remainder remainders roughly same scores sevenths sixths smaller
    solutions some something sometimes squares sure tens tenths than that thirds these they this those though times to
    true twice under undefined unknown unless until up us versus was whether which with without wrong yes yet you zeros
    billions dozens hundreds hundredths millions thousands thousandths trillions eighths ninths elevenths twelfths
    values-of tons-of third fourth fifth sixth seventh eighth ninth tenth hundredth thousandth double triple dozen
    hundred thousand million billion trillion lakh crore gross score grand base root factorial inverse divided
    multiplied times added percent invalid impossible useless fake
    ok okay negatives opposites reciprocals inverses roots""".split()
    )
    | set("couples myriads percentages permilles bad rejected excluded missing mistakes doubts wrongs tries".split())
    | set(_SMALL)
    | {f"{word}{'es' if word == 'six' else 's'}" for word in _SMALL}
    | set(_TENS)
    | {word.replace("y", "ies") for word in _TENS}
    | set(NUMBERS)
)
_FILLERS = re.compile(r"\s+(?:in total|in all|total|altogether|left|remaining|each|old|long|tall|wide|high|deep)\Z")
_PER = re.compile(r"\s*(?:\bper\b|/|\ba\b(?=\s\w{3}))\s*")
_TOKEN = re.compile(r"([a-z¢'-]+)\.?(?:\s*\^\s*\{?\s*(-?[1-9])\s*\}?)?|(\S)")

GENERIC = "unit"  # `5 units` is any length, and `5 square units` any area


def _singular(word):
    for ending, other in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("oes", "o")):
        if word.endswith(ending):
            return word.removesuffix(ending) + other
    return word.removesuffix("s") if word.endswith("s") and not word.endswith("ss") else word


def _is_thing(word):
    counts = word in _IRREGULAR or (len(word) >= 4 and word.endswith("s") and not word.endswith(("ss", "'s", "-")))
    return counts and word not in _NO_THINGS and not word.endswith(("ths", "wise", "illions", "folds"))


def is_one_thing(word):
    """Whether a word may follow `1`: `apple` may, and `maybe` may not."""
    return bool(re.fullmatch("[a-z]{3,}", word)) and _describes(word) and f"{word}s" not in _NO_THINGS


def _describes(word):
    return len(word) >= 3 and word not in _NO_THINGS and not word.endswith(("ly", "n't")) and word not in _UNITS


def _product(text, is_per):
    """`(factor, {dimension: power})` of units that are multiplied, or of one countable thing."""
    tokens = [(match[1], match[2], match[3]) for match in _TOKEN.finditer(text)]
    if not tokens or any(rest not in (None, "*") for *_, rest in tokens):
        return None
    factor, powers, raised, names = Fraction(1), {}, 1, [name for name, *_ in tokens if name]
    if all(name in _UNITS or name in _POWERS for name in names):
        for name, exponent, _ in tokens:
            if name is None:
                continue
            if name in _POWERS:
                if name.endswith("ed"):
                    return None  # it is read below together with its unit
                raised = _POWERS[name]
                continue
            power = int(exponent or raised)
            raised = 1
            size, dimension = _UNITS[name]
            factor *= size**power
            powers[dimension] = powers.get(dimension, 0) + power
        return (factor, powers) if raised == 1 and powers else None
    *adjectives, thing = names
    if len(names) != len(tokens) or any(exponent for _, exponent, _ in tokens) or len(names) > 3:
        return None
    if not (_is_thing(thing) or (is_per and _describes(thing))) or not all(map(_describes, adjectives)):
        return None
    return Fraction(1), {" ".join([*adjectives, _singular(thing)]): 1}


@lru_cache(maxsize=2048)
def parse_unit(text):
    """
    Read a phrase as a unit.

    Args:
        text (`str`): The phrase in lower case, e.g. `square inches`, `km/h`, `miles per hour`, `apples in total`.

    Returns:
        `tuple` or `None`: The factor, and the dimensions as sorted pairs of a name and a power. `None` if the phrase
        is neither a known unit nor a countable thing.
    """
    text = _FILLERS.sub("", " " + text.strip().removesuffix(".")).strip()
    text = re.sub(
        r"\s+of\s+[a-z' -]{3,40}\Z", lambda m: "" if all(map(_describes, m.group().split()[1:])) else m.group(), text
    )
    text = re.sub(r"([a-z]+)\s+(squared|cubed)\b", lambda m: f"{m[1]}^{_POWERS[m[2]]}", text)
    text = re.sub(r"\bdegrees?\s+(celsius|fahrenheit)\b", r"\1", text)
    if text in _SPEEDS:
        text = " per ".join(_SPEEDS[text])
    factor, dimensions = Fraction(1), {}
    for index, part in enumerate(_PER.split(text)):
        found = _product(part.strip(), index > 0)
        if found is None:
            return None
        sign = -1 if index else 1
        factor *= found[0] ** sign
        for name, power in found[1].items():
            dimensions[name] = dimensions.get(name, 0) + sign * power
    return factor, tuple(sorted((name, power) for name, power in dimensions.items() if power))


def same_dimension(first, second):
    """Whether two dimensions are the same. `units` is any length, and `square units` any area."""
    if first == second:
        return True
    if not all(len(dimension) == 1 for dimension in (first, second)) or first[0][1] != second[0][1]:
        return False
    return {first[0][0], second[0][0]} == {GENERIC, "length"}


def number_word(text):
    """The integer that words name, such as `three hundred forty-two`; `None` for other words."""
    total, part, last = 0, None, None  # last is the value of the word before
    for word in text.replace("-", " ").split():
        if word in _SMALL and (part is None or last == 100 or (last in _TENS.values() and 0 < _SMALL[word] < 10)):
            last = _SMALL[word]
            part = (part or 0) + last
        elif word in _TENS and (part is None or last == 100):
            last = _TENS[word]
            part = (part or 0) + last
        elif word == "hundred" and part and part < 20:
            part, last = part * 100, 100
        elif word in NUMBERS and word != "hundred" and part and (not total or total % NUMBERS[word] == 0):
            total, part, last = total + part * NUMBERS[word], None, NUMBERS[word]
        else:
            return None
    return None if part is None and not total else total + (part or 0)


def split_multiplier(text):
    """Split `million dollars` into `(1000000, "dollars")`."""
    factor, words = 1, text.split()
    while words and words[0].rstrip(".") in NUMBERS:
        factor *= NUMBERS[words.pop(0).rstrip(".")]
    return factor, " ".join(words)
