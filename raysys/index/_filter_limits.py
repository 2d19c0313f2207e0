"""Limits of filters, checked before they are parsed: a parser is slow on hostile text."""

from __future__ import annotations

import re

MAX_CHARACTERS, MAX_OPERATORS, MAX_VALUES, MAX_DEPTH = 32_768, 256, 5_000, 100
MAX_NAME = 200
# Comments, strings, which may hold backticks, and names in backticks; where Python ends them. A
# string without an end matches also: else the next quote would be tried, in quadratic time.
QUOTED = re.compile(
    r"""#[^\n\r]*|'(?:[^'\\\n\r]|\\(?:\r\n|.))*'?|"(?:[^"\\\n\r]|\\(?:\r\n|.))*"?|`([^`]*)`""",
    re.DOTALL,
)
# With each of these as a single quote: a formatted string, or one in three quotes.
_FORMATTED = re.compile(r"['\"]{2}|(?<!\w)(?:f|fr|rf)['\"]", re.IGNORECASE)
_OPERATOR = re.compile(r"[<>=!]+|\b(?:and|or|not|in|is)\b")
_LONG_NAME = re.compile(rf"[^\x00-\x7f]{{{MAX_NAME + 1}}}")  # Python orders its combining marks
_BRACKET = re.compile(r"[()\[\]{}]")


def excess(text: str) -> str:
    """The limit that a filter exceeds, with the remedy; empty if it can be parsed."""
    if len(text) > MAX_CHARACTERS:
        return (
            f"{len(text):,} characters, at most {MAX_CHARACTERS:,} are allowed: mark the rows by "
            "an attribute instead of listing them, or query in parts"
        )
    bare = QUOTED.sub("'", text)
    if _FORMATTED.search(bare):
        return "formatted strings and strings in three quotes are not constants: use 'text'"
    if (operators := len(_OPERATOR.findall(bare))) > MAX_OPERATORS:
        return (
            f"{operators:,} operators, at most {MAX_OPERATORS} are allowed: write `x in [1, 2]` "
            "for `x == 1 or x == 2`"
        )
    if (values := bare.count(",")) > MAX_VALUES:
        return (
            f"{values:,} values in lists, at most {MAX_VALUES:,} are allowed: mark the rows by an "
            "attribute instead of listing them, or query in parts"
        )
    if _LONG_NAME.search(bare):
        return f"a name of more than {MAX_NAME} characters"
    depth = 0
    for bracket in _BRACKET.findall(bare):
        depth += 1 if bracket in "([{" else -1
        if depth > MAX_DEPTH:
            return f"nesting exceeds {MAX_DEPTH} levels: remove parentheses that change nothing"
    return ""
