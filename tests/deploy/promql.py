"""Just enough of PromQL's grammar to take our expressions apart."""

import re

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_COMPARISON = re.compile(r"==|!=|>=|<=|>|<")
_WORDS = {"and", "or", "unless", "on", "ignoring", "by", "without", "bool", "offset"}
_OR, _UNLESS, _AND = (rf"\b{word}\b(?:\s+on\s*\([^)]*\))?" for word in ("or", "unless", "and"))
_LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")


def operands(expr: str) -> list[str]:
    """What has to return data, each by itself, for an expression that may rightly return nothing.

    An alert returns data only while it fires, and `or` hides that one of its sides is dead. So
    `a > 1 and b > 2 or absent(c)` comes apart into a, b and c. Numbers, and vector(0), which stands
    for "nothing of the kind", are left out.
    """
    expr = _without_parentheses(expr)
    for separator in (_OR, _UNLESS, _AND, _COMPARISON.pattern):
        if len(parts := _split(expr, separator)) > 1:
            return [one for part in parts for one in operands(part)]
    if absent := re.fullmatch(r"absent\((.*)\)", expr, re.DOTALL):
        return operands(absent[1])
    return [] if re.fullmatch(r"vector\(0\)|[\d.\s*+]+", expr) else [expr]


def conditions(expr: str) -> list[str]:
    """The sides of `or`, with comparisons that return 0 instead of nothing.

    Each returns data if what it compares, and joins by `and`, is there under the same labels.
    """
    sides = _split(_without_parentheses(expr), _OR)
    return [
        "".join(
            text if inside else _COMPARISON.sub(r"\g<0> bool", text)
            for text, inside in _pieces(side)
        )
        for side in sides
        if _COMPARISON.search(side) and not re.search(r"\bunless\b", side)
    ]


def names(expr: str) -> set[str]:
    """The names of the metrics in an expression."""
    bare = "".join(text for text, inside in _pieces(expr) if not inside)
    bare = _LABELS.sub(" ", bare)
    found = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(?![\w:]|\s*\()", bare)
    return {name for name in found if name not in _WORDS}


def alternatives(expr: str) -> set[str]:
    """A selector for each side of `|` in a matcher: `a{b=~"c|d"}` has a{b=~"c"} and a{b=~"d"}.

    As with `or`, one side that matches something hides one that never does.
    """
    return {
        f'{name}{{{label}=~"{one}"}}'
        for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expr)
        for label, pattern in re.findall(r'(\w+)[=!]~"([^"$]*)"', matchers)
        for one in pattern.split("|")
    }


def _pieces(expr: str) -> list[tuple[str, bool]]:
    """The text in order, each piece with whether it stands in {} or []."""
    plain = _QUOTED.sub(lambda quoted: "_" * len(quoted[0]), expr)
    found, start = [], 0
    for inside in re.finditer(r"\{[^}]*\}|\[[^\]]*\]", plain):
        found += [(expr[start : inside.start()], False), (expr[slice(*inside.span())], True)]
        start = inside.end()
    return [*found, (expr[start:], False)]


def _split(expr: str, pattern: str) -> list[str]:
    """Split where `pattern` stands outside of parentheses, braces and quotes."""
    parts, start = [], 0
    flat = _flat(expr)
    for found in re.finditer(pattern, flat):
        parts.append(expr[start : found.start()])
        start = found.end()
    return [part.strip() for part in (*parts, expr[start:])]


def _flat(expr: str) -> str:
    """The expression with everything in parentheses, braces and quotes blanked out.

    But for the label lists of `on (...)`, which belong to the operator before them.
    """
    text = _QUOTED.sub(lambda quoted: "_" * len(quoted[0]), expr)
    lists = {range(*found.span()) for found in re.finditer(r"\bon\s*\([^)]*\)", text)}
    depth, flat = 0, []
    for index, character in enumerate(text):
        listed = depth == 0 and any(index in one for one in lists)
        closing = character in ")}]"
        if not listed:
            depth += (character in "({[") - closing
        flat.append(character if listed or (depth == 0 and not closing) else "_")
    return "".join(flat)


def _without_parentheses(expr: str) -> str:
    expr = expr.strip()
    while expr.startswith("(") and set(_flat(expr)) == {"_"}:
        expr = expr[1:-1].strip()
    return expr
