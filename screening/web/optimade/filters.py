"""The filter language of OPTIMADE to SQL: the parser is that of `optimade`, the conditions are SQLAlchemy's.

A comparison with a value that is not known is neither true nor false, as NULL is in SQL, so that NOT does not find it
either. Optional parts of the language that are not supported are refused as such (501), what is wrong as wrong (400).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from lark import Token, Tree
from optimade.exceptions import BadRequest
from optimade.filterparser import LarkParser
from sqlalchemy import ARRAY, ColumnElement, Text, and_, cast, false, func, literal, not_, or_, true
from sqlalchemy.types import Double, Integer

from screening.web.optimade.properties import PREFIX, PROPERTIES, Property

LONGEST = 5000  # characters
DEEPEST = 60  # levels of brackets

_Compare = Callable[[Any, Any], ColumnElement[bool]]
_OPERATORS: dict[str, _Compare] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_REVERSED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}
_LISTS = {"strings": Text, "integers": Integer, "floats": Double}
_TRUTH = re.compile(r'("(?:\\.|[^"\\])*")|\b(TRUE|FALSE)\b')
_MARK = "\ue000"  # of private use: the parser forgets which truth value it read, so that they go through as texts
_OTHERS = "_"  # properties of other providers begin so


class FilterError(Exception):
    """A filter that cannot be answered: 400 where it is wrong, 501 where it is not supported."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status


def compile_filter(text: str, columns: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
    """The condition of a filter.

    Args:
        columns: of the relation that is filtered, by the names that properties have there.

    Raises:
        FilterError: it cannot be read, or asks for what is not there.
    """
    if not text.strip():
        return true()
    if len(text) > LONGEST:
        raise FilterError(f"the filter has {len(text)} characters; expected at most {LONGEST}")
    if text.count("(") > DEEPEST:
        raise FilterError(f"the filter has more than {DEEPEST} brackets; expected fewer")
    try:
        tree = _parser().parse(_TRUTH.sub(_marked, text))
    except BadRequest as error:
        raise FilterError(f"the filter cannot be read: {error.detail}") from error
    return _Compiler(columns).filter(tree)


@lru_cache(1)
def _parser() -> LarkParser:
    return LarkParser()


class _Compiler:
    """Walks the tree of a filter."""

    def __init__(self, columns: Mapping[str, ColumnElement[Any]]) -> None:
        self._columns = columns

    def filter(self, tree: Tree[Token]) -> ColumnElement[bool]:
        """A filter is an expression."""
        return and_(*(self._expression(child) for child in _trees(tree)))

    def _expression(self, tree: Tree[Token]) -> ColumnElement[bool]:
        return or_(*(self._clause(child) for child in _trees(tree)))

    def _clause(self, tree: Tree[Token]) -> ColumnElement[bool]:
        return and_(*(self._phrase(child) for child in _trees(tree)))

    def _phrase(self, tree: Tree[Token]) -> ColumnElement[bool]:
        """A comparison or an expression in brackets, perhaps negated."""
        (inner,) = _trees(tree)
        found = self._expression(inner) if inner.data == "expression" else self._comparison(inner)
        is_negated = any(isinstance(child, Token) and child.type == "NOT" for child in tree.children)
        return not_(found) if is_negated else found

    def _comparison(self, tree: Tree[Token]) -> ColumnElement[bool]:
        (inner,) = _trees(tree)
        if inner.data == "constant_first_comparison":
            constant, sign, other = inner.children
            if not isinstance(other, Tree) or other.data != "non_string_value" or not _is_property(other):
                raise FilterError("two constants are compared; compare a property with a constant")
            named = _property(next(iter(_trees(other))))
            if isinstance(named, str):
                return false()
            return self._value(named, _REVERSED[str(sign)], _constant(constant))
        first, *rest = _trees(inner)
        found = _property(first)
        if isinstance(found, str):
            return self._unknown(found, rest[0])
        return self._of_property(found, rest[0])

    def _unknown(self, name: str, right: Tree[Token]) -> ColumnElement[bool]:
        """A property of another provider: it is never known here."""
        asks_unknown = right.data == "known_op_rhs" and any(str(child) == "UNKNOWN" for child in right.children)
        return true() if asks_unknown else false()

    def _of_property(self, found: Property, right: Tree[Token]) -> ColumnElement[bool]:
        parts = [child for child in right.children if child is not None]
        if right.data == "value_op_rhs":
            return self._value(found, str(parts[0]), _constant(parts[1]))
        if right.data == "known_op_rhs":
            is_known = str(parts[-1]) == "KNOWN"
            if found.column is None:
                return true() if is_known else false()
            column = self._columns[found.column]
            return column.is_not(None) if is_known else column.is_(None)
        if right.data == "fuzzy_string_op_rhs":
            return self._fuzzy(found, str(parts[0]), _constant(parts[-1]))
        if right.data == "set_op_rhs":
            return self._set(found, [str(part) for part in parts if isinstance(part, Token)], parts[-1])
        if right.data == "length_op_rhs":
            sign = next((str(part) for part in parts if isinstance(part, Token) and part.type == "OPERATOR"), "=")
            return self._length(found, sign, parts[-1])
        raise FilterError("correlated lists (HAS with :) are not supported", 501)

    def _value(self, found: Property, sign: str, value: Any) -> ColumnElement[bool]:
        """A comparison of one value."""
        if found.column is None or found.kind in (*_LISTS, "whole"):
            raise FilterError(f"{found.name} is a list; ask with HAS, LENGTH or IS KNOWN")
        column = self._columns[found.column]
        if found.kind == "boolean":
            if not isinstance(value, bool) or sign not in ("=", "!="):
                raise FilterError(f"{found.name} is TRUE or FALSE; ask with = TRUE")
            return _OPERATORS[sign](column, literal(value))
        if found.kind == "timestamp":
            return _OPERATORS[sign](func.date_trunc("second", column), _time(found, value))
        is_text = isinstance(value, str)
        if isinstance(value, bool) or is_text != (found.kind == "string"):
            expected = "a text in quotes" if found.kind == "string" else "a number"
            raise FilterError(f"{found.name} is compared with {value!r}; expected {expected}")
        if is_text:
            return _OPERATORS[sign](func.convert_to(column, "UTF8"), func.convert_to(literal(value), "UTF8"))
        return _OPERATORS[sign](cast(column, Double), literal(float(value), Double))

    def _fuzzy(self, found: Property, how: str, value: Any) -> ColumnElement[bool]:
        if found.kind != "string" or not isinstance(value, str):
            raise FilterError(f"{how} is for texts; {found.name} is {found.type}, and {value!r} is compared with it")
        column = self._columns[str(found.column)]
        if how == "CONTAINS":
            return column.contains(value, autoescape=True)
        return column.startswith(value, autoescape=True) if how == "STARTS" else column.endswith(value, autoescape=True)

    def _set(self, found: Property, words: list[str], last: Any) -> ColumnElement[bool]:
        """HAS, HAS ALL, HAS ANY, HAS ONLY."""
        if any(word in _OPERATORS for word in words):
            raise FilterError("operators within HAS are not supported", 501)
        if found.column is None or found.kind not in _LISTS:
            status = 501 if found.column is None else 400
            raise FilterError(f"{found.name} has no entries that HAS could ask for", status)
        how = next((word for word in words if word in ("ALL", "ANY", "ONLY")), "ALL")
        listed = last.children if isinstance(last, Tree) and last.data == "value_list" else [last]
        listed = [part for part in listed if part is not None]
        if any(isinstance(part, Token) for part in listed):
            raise FilterError("operators within HAS are not supported", 501)
        values = [_constant(part) for part in listed]
        wanted = _array(found, values)
        column = self._columns[found.column]
        if how == "ANY":
            return column.op("&&", is_comparison=True)(wanted)
        if how == "ONLY":
            return and_(column.op("<@", is_comparison=True)(wanted), func.cardinality(column) > 0)
        return column.op("@>", is_comparison=True)(wanted)

    def _length(self, found: Property, sign: str, last: Any) -> ColumnElement[bool]:
        if found.length is None:
            raise FilterError(f"{found.name} is {found.type}; only lists have a LENGTH")
        number = int(str(last.children[0] if isinstance(last, Tree) else last))
        return _OPERATORS[sign](self._columns[found.length], literal(float(number), Double))


def _array(found: Property, values: list[Any]) -> ColumnElement[Any]:
    """Values as an array that a list is compared with."""
    is_text = found.kind == "strings"
    wrong = [value for value in values if isinstance(value, str) != is_text or isinstance(value, bool)]
    if wrong:
        entries = "texts" if is_text else "numbers"
        raise FilterError(f"{found.name} is asked for {wrong[0]!r}; its entries are {entries}")
    if found.kind == "integers" and any(float(value) != int(value) or abs(value) >= 2**31 for value in values):
        return cast(literal([-1], ARRAY(Integer)), ARRAY(Integer))  # which no list has
    of = _LISTS[found.kind]
    plain = [str(v) if is_text else int(v) if found.kind == "integers" else float(v) for v in values]
    return cast(literal(plain, ARRAY(of)), ARRAY(of))


def _time(found: Property, value: Any) -> ColumnElement[datetime]:
    if not isinstance(value, str):
        raise FilterError(f'{found.name} is compared with {value!r}; expected a time such as "2026-01-31T12:00:00Z"')
    try:
        time = datetime.fromisoformat(value)
    except ValueError as error:
        raise FilterError(f"{value!r} is no time; expected one such as 2026-01-31T12:00:00Z") from error
    if time.tzinfo is None:
        raise FilterError(f"{value!r} says no time zone; end it in Z")
    return literal(time)


def _property(tree: Tree[Token]) -> Property | str:
    """The property that is named; the name alone of one of another provider.

    Raises:
        FilterError: there is none.
    """
    name = ".".join(str(child) for child in tree.children if child is not None)
    if name in PROPERTIES:
        return PROPERTIES[name]
    if name.startswith(_OTHERS) and not name.startswith(PREFIX):
        return name
    if name.split(".")[0] in PROPERTIES or name.split(".")[0] == "structures":
        raise FilterError(f"parts of properties, as {name}, are not supported", 501)
    raise FilterError(f"there is no property {name}; those of structures are {', '.join(PROPERTIES)}")


def _constant(tree: Any) -> Any:
    """The text, number or truth value that a tree holds."""
    if isinstance(tree, Tree):
        if tree.data in ("value", "constant", "non_string_value"):
            return _constant(tree.children[0])
        if tree.data == "property":
            raise FilterError("a property on the right side is not supported", 501)
        if tree.data == "string":
            return _unquoted(str(tree.children[0]))
        return _number(str(tree.children[0]))
    text = str(tree)
    if isinstance(tree, Token) and tree.type in ("SIGNED_INT", "SIGNED_FLOAT"):
        return _number(text)
    return _unquoted(text)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _marked(found: re.Match[str]) -> str:
    return found[1] or f'"{_MARK}{found[2]}"'


def _unquoted(text: str) -> str | bool:
    """A text without its quotes and escapes; a truth value that went through as one."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    plain = re.sub(r"\\(.)", r"\1", text)
    if plain.startswith(_MARK):
        return plain == f"{_MARK}TRUE"
    if "\0" in plain:
        raise FilterError("a text holds a zero byte; leave it out")
    return plain


def _is_property(tree: Tree[Token]) -> bool:
    return any(isinstance(child, Tree) and child.data == "property" for child in tree.children)


def _trees(tree: Tree[Token]) -> list[Tree[Token]]:
    return [child for child in tree.children if isinstance(child, Tree)]
