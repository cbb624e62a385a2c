"""Numbers in words: amounts, ordinals, years, clock times, dates, money, units. num2words spells; this file decides.

number("1,234.5")           # "one thousand, two hundred and thirty-four point five" without its comma and hyphen
year(1905)                  # "nineteen oh five"
"""

from __future__ import annotations

import re

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
MONTH = {name[:3].lower(): name for name in MONTHS}
# sign -> one, many, one hundredth, many hundredths
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
SCALES = {"k": "thousand", "m": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
# how it is written -> one, many
UNITS = {
    "km": ("kilometre", "kilometres"), "m": ("metre", "metres"), "cm": ("centimetre", "centimetres"),
    "mm": ("millimetre", "millimetres"), "mi": ("mile", "miles"), "ft": ("foot", "feet"), "in": ("inch", "inches"),
    "kg": ("kilogram", "kilograms"), "g": ("gram", "grams"), "mg": ("milligram", "milligrams"),
    "lb": ("pound", "pounds"), "lbs": ("pound", "pounds"), "oz": ("ounce", "ounces"), "l": ("litre", "litres"),
    "ml": ("millilitre", "millilitres"), "s": ("second", "seconds"), "ms": ("millisecond", "milliseconds"),
    "h": ("hour", "hours"), "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "min": ("minute", "minutes"),
    "Hz": ("hertz", "hertz"), "kHz": ("kilohertz", "kilohertz"), "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"), "KB": ("kilobyte", "kilobytes"), "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"), "TB": ("terabyte", "terabytes"), "W": ("watt", "watts"),
    "kW": ("kilowatt", "kilowatts"), "V": ("volt", "volts"), "mph": ("mile an hour", "miles an hour"),
    "km/h": ("kilometre an hour", "kilometres an hour"), "m/s": ("metre a second", "metres a second"),
    "°C": ("degree Celsius", "degrees Celsius"), "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°": ("degree", "degrees"), "%": ("percent", "percent"),
}  # fmt: skip
_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
MOST_DIGITS = 15  # a longer row of digits is read digit by digit
_PARTS = {"2": ("half", "halves"), "4": ("quarter", "quarters")}


def _plain(words: str) -> str:
    return re.sub(r"[-,]", " ", words).replace("  ", " ").strip()


def cardinal(value: int) -> str:
    """A whole number in words, without commas and hyphens."""
    from num2words import num2words

    return _plain(num2words(value))


def ordinal(value: int) -> str:
    """The place of that number: 21 -> twenty first."""
    from num2words import num2words

    return _plain(num2words(value, to="ordinal"))


def digits(text: str) -> str:
    """Every digit by itself."""
    return " ".join(cardinal(int(digit)) for digit in text if digit.isascii() and digit.isdigit())


def number(text: str) -> str:
    """A number as it is written (sign, commas, decimals) in words; a very long one digit by digit."""
    sign = "minus " if text[:1] in "-−" else ""
    whole, dot, rest = text.lstrip("+-−").replace(",", "").partition(".")
    if len(whole) > MOST_DIGITS or (len(whole) > 1 and whole.startswith("0") and not dot):
        said = digits(whole)
    else:
        said = cardinal(int(whole or "0"))
    return sign + said + (f" point {digits(rest)}" if rest else "")


def year(value: int) -> str:
    """A year from 1000 to 2999 as it is read."""
    high, low = divmod(value, 100)
    if value % 1000 < 10:
        return cardinal(value)
    if low == 0:
        return f"{cardinal(high)} hundred"
    return f"{cardinal(high)} {'oh ' if low < 10 else ''}{cardinal(low)}"


def decade(value: int) -> str:
    """1920 -> nineteen twenties, 1900 -> nineteen hundreds, 90 -> nineties."""
    said = cardinal(value) if value < 100 else year(value)
    return said[:-1] + "ies" if said.endswith("y") else said + "s"


def clock(hour: int, minute: int, half: str = "") -> str:
    """A time of day: 9, 5, "pm" -> nine oh five P M; 14, 0 -> fourteen hundred; 9, 0 -> nine o'clock."""
    letters = " ".join(half.upper().replace(".", ""))
    if minute == 0:
        tail = letters or ("hundred" if hour > 12 or hour == 0 else "o'clock")
        return f"{cardinal(hour)} {tail}" if hour else f"zero {tail}"
    middle = "oh " if minute < 10 else ""
    return f"{cardinal(hour)} {middle}{cardinal(minute)} {letters}".strip()


def date(day: int, month: int, when: int | None) -> str:
    """Month, day and year in words."""
    said = f"{MONTHS[month - 1]} {ordinal(day)}"
    return said if when is None else f"{said} {year(when)}"


def money(sign: str, amount: str, scale: str = "") -> str:
    """An amount of money: $ 3.50 -> three dollars and fifty cents; $ 2.5 bn -> two point five billion dollars."""
    one, many, small, smalls = CURRENCIES[sign]
    if scale:
        return f"{number(amount)} {SCALES.get(scale.lower(), scale)} {many}"
    whole, _, rest = amount.replace(",", "").partition(".")
    said = f"{number(whole)} {one if whole == '1' else many}" if whole and (int(whole) or not rest) else ""
    if rest and len(rest) <= 2 and int(rest):
        hundredths = int(rest.ljust(2, "0"))
        part = f"{cardinal(hundredths)} {small if hundredths == 1 else smalls}"
        return f"{said} and {part}" if said else part
    return said if not rest or not int(rest) else f"{number(amount)} {many}"


def money_range(sign: str, low: str, high: str, scale: str = "") -> str:
    """$5-10 million -> five to ten million dollars."""
    size = f"{SCALES.get(scale.lower(), scale)} " if scale else ""
    return f"{number(low)} to {number(high)} {size}{CURRENCIES[sign][1]}"


def measure(amount: str, unit: str) -> str:
    """An amount with a unit of `UNITS`."""
    one, many = UNITS[unit]
    return f"{number(amount)} {one if amount.lstrip('+-−') == '1' else many}"


def fraction(top: str, bottom: str) -> str:
    """1/2 -> one half, 3/4 -> three quarters, 2/7 -> two sevenths; 24/7, which is none, one after the other."""
    if int(top) >= int(bottom):
        return f"{cardinal(int(top))} {cardinal(int(bottom))}"
    if bottom in _PARTS:
        part = _PARTS[bottom][top != "1"]
    else:
        part = ordinal(int(bottom)) + ("" if top == "1" else "s")
    return f"{cardinal(int(top))} {part}"


def roman(text: str) -> int | None:
    """The value of a Roman number in capitals up to 3999; None for anything else."""
    form = r"M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})"
    if not text or re.fullmatch(form, text) is None:
        return None
    values = [_ROMAN[letter] for letter in text]
    return sum(-one if one < two else one for one, two in zip(values, [*values[1:], 0], strict=True))
