"""Read values with a unit, a percent sign, a currency or a number word."""

import re

from . import units
from .forms import Assign, Clock, Expr, Group, Items, Measure, Percent, Ratio
from .scan import CLOSE, OPEN

_APPROXIMATELY = re.compile(rf"\A(?:{OPEN}(?:approximately|approx)\.?{CLOSE}|\\approx)\s*")
_SHORT_UNITS = r"(?:cm|mm|km|kg|mg|ml|mL|ft|lb|lbs|oz|hr|hrs|yd|mi|in|mph|sq|kW|Hz|m|s|h|g|L)"
_BARE_UNIT = re.compile(
    rf"(?<=[0-9}}) ])(?:(?:sq|cu)\.? )?(?:(?:cm|mm|km|kg|mg|ml|mL|ft|lb|oz|hr|yd)|(?<= )(?:in|mi)\b)"
    rf"(?:\^\{{?[23]\}}?)?"
    rf"(?: ?/ ?{_SHORT_UNITS}(?:\^\{{?2\}}?)?)?\Z"
    rf"|(?<= )m ?/ ?s(?:\^\{{?2\}}?)?\Z"
)
_QUOTED_UNIT = re.compile(
    rf"{OPEN}[^{CLOSE}]*{CLOSE}(?:\s*\^\s*\{{?-?[1-9]\}}?|\s*(?:/|\\cdot)\s*(?:{OPEN}[^{CLOSE}]*{CLOSE}|{_SHORT_UNITS})|\s*{OPEN}[^{CLOSE}]*{CLOSE})*\Z"
)
_CURRENCY = re.compile(r"(-?)(?:\\(\$|euro|pounds|yen|cents)|(\$)) *(-?)")
_CODE = re.compile(rf"\A{OPEN}(usd|us|rs|inr|eur|gbp){CLOSE} ?\.? ?(?=[-0-9.\\$])", re.I)
_CURRENCIES = {"$": "dollar", "euro": "euro", "pounds": "gbp", "yen": "yen", "cents": "cent"}


def read_compound(text):
    """Read several values with units of the same dimension, from large to small: `2 hours 30 minutes`."""
    parts = re.findall(rf"([0-9.]+|\\frac\{{[0-9]+\}}\{{[0-9]+\}}) ?{OPEN}([^{CLOSE}]*){CLOSE} ?", text)
    if len(parts) < 2 or "".join(f"{value}{unit}" for value, unit in parts) != re.sub(
        rf"[{OPEN}{CLOSE}]| (?=[0-9\\{OPEN}])| \Z", "", text
    ):
        return None
    found = [(Expr(value), 1, units.parse_unit(unit.strip().lower())) for value, unit in parts]
    if any(unit is None for *_, unit in found) or len({unit[1] for *_, unit in found}) > 1:
        return None
    sizes = [unit[0] for *_, unit in found]
    return Measure(tuple(found)) if sizes == sorted(set(sizes), reverse=True) else None


def read_quantity(text, read, depth):
    """Read a value with a unit, a percent sign, a currency or a number word. The value must be an expression."""
    if match := _APPROXIMATELY.match(text):
        return read(text[match.end() :], depth + 1) or ()
    if text.endswith(r"\%") or text.endswith("%"):
        value = read(text.removesuffix("%").removesuffix("\\"), depth + 1)
        return Percent(value) if isinstance(value, Expr) else ()
    if match := _CODE.match(text):  # USD 12, Rs. 12, US $12
        value = read(text[match.end() :], depth + 1)
        if isinstance(value, Expr):
            return Measure(((value, 1, units.parse_unit(match[1].lower())),))
        return value if isinstance(value, Measure) else ()
    if match := _CURRENCY.match(text):
        unit = _CURRENCIES[match[2] or match[3]]
        value = read(match[1] + match[4] + text[match.end() :], depth + 1)
        if isinstance(value, Expr):
            return Measure(((value, 1, units.parse_unit(unit)),))
        if isinstance(value, Measure) and len(value.parts) == 1:  # $3 million, $5 per hour, $5 dollars
            number, multiplier, unit_after = value.parts[0]
            if unit_after is None:
                return Measure(((number, multiplier, units.parse_unit(unit)),))
            if unit_after == units.parse_unit(unit):
                return value
            return ()
        return ()
    if re.search(r"\\(?:euro|pounds|yen|cents|\$) ?\Z|(?<=[0-9 ])\$\Z", text):
        match = re.search(r"(?:\\(euro|pounds|yen|cents|\$)|(\$)) ?\Z", text)
        value = read(text[: match.start()], depth + 1)
        return (
            Measure(((value, 1, units.parse_unit(_CURRENCIES[match[1] or match[2]])),))
            if isinstance(value, Expr)
            else ()
        )
    if compound := read_compound(text):
        return compound
    match = _QUOTED_UNIT.search(text) or _BARE_UNIT.search(text)
    if (
        not match
        or match.start() == 0
        or (match.group()[0] != OPEN and OPEN not in match.group() and not _BARE_UNIT.search(text))
    ):
        return None
    head = text[: match.start()].strip()
    tail = re.sub(rf"[{OPEN}{CLOSE}]", "", match.group().replace(r"\cdot", " "))
    tail = re.sub(r"[{}]", "", tail).lower()
    if not head or re.search(r"[-+*/^_(=]\Z|\\(?:times|cdot)\Z", head):
        return () if head else None
    multiplier, phrase = units.split_multiplier(tail)
    value = read(head, depth + 1)
    if isinstance(value, Measure) and len(value.parts) == 1 and value.parts[0][2] is None:
        value, multiplier = value.parts[0][0], multiplier * value.parts[0][1]
    if not isinstance(value, Expr):
        if isinstance(value, Clock) or isinstance(value, Ratio):
            return ()
        if isinstance(value, (Group, Items)) and multiplier == 1 and units.parse_unit(phrase):
            return value
        if isinstance(value, Assign) and len(value.values) == 1 and isinstance(value.values[0], Expr):
            return (
                Assign(value.name, (Measure(((value.values[0], multiplier, units.parse_unit(phrase)),)),))
                if units.parse_unit(phrase)
                else ()
            )
        return ()
    if not phrase:
        return Measure(((value, multiplier, None),))
    unit = units.parse_unit(phrase)
    if unit is None and head == "1" and units.is_one_thing(phrase):
        unit = units.parse_unit(f"{phrase}s")
    return () if unit is None else Measure(((value, multiplier, unit),))
