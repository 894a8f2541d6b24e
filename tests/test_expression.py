"""The language of rules, against an evaluator of its own, two engines, pandas, and the laws of three-valued logic.

`Rules` makes typed random rules as people spell them; `truth_of` reads their text by Python's own grammar and works them
out by other means than the package (truth as 0, ½, 1; years by counting birthdays)."""

import ast
import json
import math
import operator
import random
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from memtag_research.core import DefinitionError, MemtagError, ParameterError
from memtag_research.tags import expression
from memtag_research.tags.expression import (
    check,
    evaluate,
    explain,
    parse,
    quantile_call,
    to_ibis,
)
from memtag_research.tags.logic import from_json_logic, to_json_logic

AS_OF = date(2024, 3, 1)
TYPES = {"n1": "number", "n2": "number", "x1": "number", "x2": "number", "p.price": "number", "t1": "text", "t2": "text",
         "b1": "boolean", "b2": "boolean", "d1": "date", "d2": "date", "l1": "list"}  # fmt: skip
TEXTS = ["上海", "北京", "", "x'y", 'say "hi"', "a\\b", "A", "a", "%", "'; drop table t; --", "Ω", "😀", " a"]
DAYS = [date(2000, 2, 29), date(2023, 2, 28), date(2023, 3, 1), date(2024, 2, 29), date(1999, 12, 31), date(2024, 3, 1), date(1970, 1, 1), date(1931, 7, 5)]
WHOLE = [0, 1, -1, 2, 3, 5, 7, 12, 100, 2**53, 2**53 + 1, -(2**53) - 1]
REAL = [0.0, -0.0, 0.5, 0.1, 0.2, 0.3, 0.1 + 0.2, -2.5, 3.0, 1e15, 1 / 3, 123456.789, 1e-9, 0.09221885624698875]


def make_rows(n: int = 48, seed: int = 3) -> list[dict]:
    "Rows with every special value, and a quarter of nulls."
    r = random.Random(seed)
    pick = lambda values: None if r.random() < 0.25 else r.choice(values)
    lists = [[], ["a"], ["上海", "a"], ["x'y", "a\\b", ""]]
    return [{"row": i, "n1": pick(WHOLE), "n2": pick(WHOLE), "x1": pick(REAL), "x2": pick(REAL), "p.price": pick(REAL), "t1": pick(TEXTS), "t2": pick(TEXTS),
             "b1": pick([True, False]), "b2": pick([True, False]), "d1": pick(DAYS), "d2": pick(DAYS), "l1": pick(lists)} for i in range(n)]  # fmt: skip


ROWS = make_rows()
PA_TYPES = {"number": pa.float64(), "text": pa.string(), "boolean": pa.bool_(), "date": pa.date32(), "list": pa.list_(pa.string())}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    "The rows as a file that both engines read."
    schema = pa.schema([("row", pa.int64()), *[(n, pa.int64() if n in ("n1", "n2") else PA_TYPES[t]) for n, t in TYPES.items()]])
    path = tmp_path_factory.mktemp("expression") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS, schema=schema), path)
    return path


@pytest.fixture(scope="module")
def table(parquet) -> ibis.Table:
    return ibis.duckdb.connect().read_parquet(parquet)


def columns_of(table: ibis.Table) -> dict:
    return {name: table[name] for name in TYPES}


def in_duckdb(table: ibis.Table, rules) -> list[list]:
    "Rows of the rules' values, in the order of ROWS; null is None."
    named = {f"r{i}": to_ibis(rule, columns_of(table), AS_OF) for i, rule in enumerate(rules)}
    found = table.select("row", **named).order_by("row").to_pyarrow().to_pydict()
    return [list(values) for values in zip(*(found[name] for name in named))]


def same(a, b) -> bool:
    "Equal values, of equal kind: null only null, true only true, and what is no number equals itself."
    if a is None or b is None or isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return a == b


# --- rules as people write them ---------------------------------------------------------------------------------------


class Rules:
    "Random typed rules as text, in random spelling."

    def __init__(self, r: random.Random, names=tuple(TYPES), divide=True):
        self.r, self.divide = r, divide
        self.names = {t: [n for n in names if TYPES[n] == t] for t in set(TYPES.values())}

    def one(self, *options):
        return self.r.choice(options)

    def space(self):
        return self.one("", " ", " ", "  ", "\n")

    def brackets(self, text):
        return f"({self.space()}{text}{self.space()})"

    def loose(self, text):
        "Brackets that are needed inside of something else, sometimes twice."
        return self.brackets(self.brackets(text)) if self.r.random() < 0.1 else self.brackets(text)

    def any(self, depth=3):
        return self.one(self.truth, self.truth, self.truth, self.number, self.text, self.day)(depth)

    def truth(self, depth):
        if depth <= 0:
            return self.one("True", "False", *self.names["boolean"] * 3) if self.names["boolean"] else self.compare(0)
        return self.one(self.logic, self.logic, self.compare, self.compare, self.compare, self.negation, self.member, self.null, self.coalesced, self.truth_equal)(depth - 1)

    def logic(self, depth):
        word = self.one("and", "or")
        return f" {word} ".join(self.loose(self.truth(depth)) if self.r.random() < 0.7 else self.atom(depth) for _ in range(self.r.randint(2, 3)))

    def atom(self, depth):
        return self.one(lambda: self.truth(0), lambda: self.compare(0))()

    def negation(self, depth):
        return f"not {self.loose(self.truth(depth))}"

    def truth_equal(self, depth):
        return f"{self.loose(self.truth(depth))} {self.one('==', '!=')} {self.loose(self.truth(depth))}"

    def compare(self, depth):
        part = self.one(self.number, self.number, self.text, self.day)
        signs = [self.one("==", "!=", "<", "<=", ">", ">=") for _ in range(self.one(1, 1, 1, 2))]
        return "".join([self.operand(part, depth), *[f"{self.space()}{s}{self.space()}{self.operand(part, depth)}" for s in signs]])

    def operand(self, part, depth):
        return part(depth) if self.r.random() < 0.5 and depth <= 0 else self.loose(part(depth))

    def member(self, depth):
        word = self.one("in", "not in")
        if self.r.random() < 0.3 and self.names["list"]:
            return f"{self.loose(self.text(depth))} {word} {self.one(*self.names['list'])}"
        part, constant = self.one((self.number, self.figure), (self.text, self.quoted), (self.day, self.dated))
        constants = [constant() for _ in range(self.r.randint(1, 3))]
        listed = ",".join(constants) + ("," if len(constants) == 1 or self.r.random() < 0.2 else "")
        return f"{self.loose(part(depth))} {word} {self.one(f'({listed})', f'[{listed}]')}"

    def null(self, depth):
        return f"is_null({self.one(self.number, self.text, self.day, self.truth)(depth)})"

    def coalesced(self, depth):
        return f"coalesce({self.truth(depth)}, {self.truth(depth)})"

    def figure(self):
        return self.one("0", "1", "2", "3", "-1", "12", "100", "0.5", ".1", "0.30000000000000004", "2.0", "1e15", "2.5e-1", "1_000", "0.3333333333333333", "0.09221885624698875")

    def number(self, depth):
        if depth <= 0:
            return self.one(self.figure(), *self.names["number"] * 2)
        depth -= 1
        two = lambda part=self.number: (self.loose(part(depth)), self.loose(part(depth)))
        options = [lambda: "{}{}{}".format(*two()[:1], self.one("+", "-", "*"), self.loose(self.number(depth))), lambda: f"-{self.loose(self.number(depth))}",
                   lambda: f"abs({self.number(depth)})", lambda: f"{self.one('min', 'max')}({', '.join(two())})",
                   lambda: f"coalesce({', '.join(two())})", lambda: f"floor({self.number(0)} / 7)",
                   lambda: f"{self.one('days', 'years')}({self.day(depth)}, {self.day(depth)})", lambda: f"{self.one('month', 'weekday')}({self.day(depth)})"]  # fmt: skip
        if self.divide:
            options += [lambda: f"{self.loose(self.number(depth))} / {self.loose(self.number(depth))}"] * 2
        return self.one(*options)()

    def quoted(self):
        text = self.one(*TEXTS)
        if self.r.random() < 0.5:
            return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def text(self, depth):
        if depth <= 0 or self.r.random() < 0.7:
            return self.one(self.quoted(), *self.names["text"] * 2)
        return f"coalesce({self.text(depth - 1)}, {self.text(depth - 1)})"

    def dated(self):
        return f"date('{self.one(*DAYS)}')"

    def day(self, depth):
        if depth <= 0 or self.r.random() < 0.6:
            return self.one("as_of", self.dated(), *self.names["date"] * 2)
        return f"{self.one('coalesce', 'min', 'max')}({self.day(depth - 1)}, {self.day(depth - 1)})"


RANDOM = st.integers(0, 2**32).map(random.Random)
quickly = settings(deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # a seed does not shrink


# --- the same rules by other means ---------------------------------------------------------------------------------------


def birthdays(later: date, born: date) -> int:
    "How many birthdays have passed; one of 29 February is on 1 March in common years; negative before birth."
    def birthday(k):
        try:
            return born.replace(year=born.year + k)
        except ValueError:
            return date(born.year + k, 3, 1)
    k = -(born.year - later.year) + 2
    while birthday(k) > later:
        k -= 1
    return k


SIGNS = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
STEPS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
HALF = 0.5


def truth_of(node, row):
    "The value of a node of Python's grammar: truth as 0, ½ (unknown) and 1, so that `and` is the least and `or` the greatest."
    of = lambda n: truth_of(n, row)
    degree = lambda v: HALF if v is None else float(v)
    back = lambda d: None if d == HALF else d == 1
    match node:
        case ast.Expression(body):
            return of(body)
        case ast.Constant(value):
            return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
        case ast.Name("as_of"):
            return AS_OF
        case ast.Name(name):
            return as_double(row[name])
        case ast.Attribute(ast.Name(head), tail):
            return as_double(row[f"{head}.{tail}"])
        case ast.BoolOp(op, values):
            return back((min if isinstance(op, ast.And) else max)(degree(of(v)) for v in values))
        case ast.UnaryOp(ast.Not(), value):
            return back(1 - degree(of(value)))
        case ast.UnaryOp(ast.USub(), value):
            return None if of(value) is None else 0.0 - of(value)
        case ast.Compare(left, signs, rights):
            sides = [left, *rights]
            return back(min(degree(one_comparison(sign, a, b, of)) for sign, a, b in zip(signs, sides, sides[1:])))
        case ast.BinOp(left, op, right):
            return arithmetic(op, of(left), of(right))
        case ast.Call(ast.Name(name), args):
            return call(name, [of(a) for a in args])
    raise AssertionError(ast.dump(node))


def as_double(value):
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def one_comparison(sign, left, right, of):
    if isinstance(sign, (ast.In, ast.NotIn)):
        value = of(left)
        members = [of(e) for e in right.elts] if isinstance(right, (ast.Tuple, ast.List)) else of(right)
        if value is None or members is None:
            return None
        return any(value == m for m in members) == isinstance(sign, ast.In)
    a, b = of(left), of(right)
    return None if a is None or b is None else SIGNS[type(sign)](a, b)


def arithmetic(op, a, b):
    if a is None or b is None or (isinstance(op, ast.Div) and b == 0):
        return None
    return STEPS[type(op)](a, b)


def call(name, args):
    if name == "is_null":
        return args[0] is None
    if name == "coalesce":
        return ([a for a in args if a is not None] or [None])[0]
    if None in args:
        return None
    a, b = (*args, None)[:2]
    return {"date": lambda: date(*map(int, a.split("-"))), "min": lambda: sorted(args)[0], "max": lambda: sorted(args)[-1], "abs": lambda: max(a, 0.0 - a),
            "floor": lambda: a // 1, "days": lambda: a.toordinal() - b.toordinal(), "years": lambda: birthdays(a, b),
            "month": lambda: int(a.strftime("%m")), "weekday": lambda: int(a.strftime("%u"))}[name]()  # fmt: skip


def by_other_means(text, row):
    return truth_of(ast.parse(f"({text})", mode="eval"), row)


# --- values ---------------------------------------------------------------------------------------------------------------


@settings(quickly, max_examples=100)
@given(RANDOM)
def test_duckdb_python_and_another_evaluator_agree(table, r):
    texts = [Rules(r).any() for _ in range(6)]
    rules = [parse(text) for text in texts]
    for row, values in zip(ROWS, in_duckdb(table, rules)):
        for text, rule, value in zip(texts, rules, values):
            plain = evaluate(rule, row, AS_OF)
            assert same(value, plain), f"DuckDB {value!r}, Python {plain!r}: {text!r} of {row}"
            assert same(as_double(by_other_means(text, row)), as_double(plain)) or rule.tree.op == "name", f"{text!r} of {row}"


def test_both_engines_agree_on_some_hundred_rules(table, parquet, spark):
    r = random.Random(11)
    rules = [parse(Rules(r).any(2)) for _ in range(180)]
    rules += [parse(text) for text in ("p.price", "n1", "d1", "floor(x1)", "weekday(as_of)", "t1 < t2", "t1 in l1", "not t1 in l1", "n1 == n2", "n1 / x1", "0.1 + 0.2 == x2", "x1 in (0.30000000000000004,)", "x1 == 0.09221885624698875", "n1 > 0.123456789012345", "n1 in (0.123456789012345, 1)", "n1 < 99999999999999.5")]
    there = spark.read_parquet(parquet)
    for start in range(0, len(rules), 70):
        some = rules[start : start + 70]
        named = {f"r{i}": to_ibis(rule, columns_of(there), AS_OF) for i, rule in enumerate(some)}
        rows = spark._session.sql(spark.compile(there.select("row", **named).order_by("row"))).collect()
        assert len(rows) == len(ROWS)
        for row, here in zip(rows, in_duckdb(table, some)):
            for rule, a, b in zip(some, list(row)[1:], here):
                assert same(a, b), f"Spark {a!r}, DuckDB {b!r}: {rule} of {ROWS[row[0]]}"


PANDAS_NAMES = ("n1", "n2", "x1", "x2", "b1", "b2")


class PandasRules(Rules):
    "What pandas and SQL read alike: columns of numbers and truth values; no division, lists, functions, rules of constants."

    def truth(self, depth):
        return self.one(*self.names["boolean"]) if depth <= 0 else self.one(self.logic, self.compare, self.negation)(depth - 1)

    def compare(self, depth):
        signs = [self.one("==", "!=", "<", "<=", ">", ">=") for _ in range(self.one(1, 2))]
        return "".join([self.number(depth), *[f" {s} {self.number(depth)}" for s in signs]])

    def number(self, depth):
        if depth <= 0:
            return self.one(*self.names["number"])
        return f"({self.number(depth - 1)}{self.one('+', '-', '*')}{self.one(self.number(depth - 1), '1', '0.5', '12')})"

    def atom(self, depth):
        return self.brackets(self.compare(0))


@settings(quickly, max_examples=80)
@given(RANDOM)
def test_pandas_agrees_on_nullable_numbers(r):
    frame = pd.DataFrame({n: pd.array([row[n] for row in ROWS], dtype="boolean" if TYPES[n] == "boolean" else "Float64") for n in PANDAS_NAMES})
    rule = PandasRules(r, PANDAS_NAMES)
    text = rule.loose(rule.truth(3)).replace("\n", " ")
    kept = frame.query(text, engine="python").index.tolist()
    assert kept == [i for i, row in enumerate(ROWS) if evaluate(parse(text), row) is True], text


@settings(quickly, max_examples=100)
@given(RANDOM, st.data())
def test_parameters_are_constants_of_the_query(table, r, data):
    "A name that is given as a plain value, not as a column, changes no value."
    rules = [parse(Rules(r).any()) for _ in range(5)]
    row = data.draw(st.sampled_from(ROWS))
    plain = data.draw(st.sets(st.sampled_from(sorted(TYPES))))
    given_ = {n: row[n] if n in plain else table[n] for n in TYPES}
    one = table.filter(table.row == row["row"])
    found = one.select(**{f"r{i}": to_ibis(rule, {n: v if n in plain else one[n] for n, v in given_.items()}, AS_OF) for i, rule in enumerate(rules)})
    for rule, value in zip(rules, found.to_pyarrow().to_pylist()[0].values()):
        assert same(value, evaluate(rule, row, AS_OF)), f"{rule} with {plain} of {row}"


def test_whole_numbers_beyond_2_to_the_53_compare_as_doubles_everywhere(table):
    row = {"n1": 2**53, "n2": 2**53 + 1}
    t = ibis.memtable(pd.DataFrame([row]))
    for text, value in {"n1 == n2": True, "n1 < n2": False, "n2 > 1e15": True, "n1 in (1, 2.5)": False, "n2 - n1": 0.0, "n2": 2**53 + 1, "max(n1, n2)": 2.0**53}.items():
        assert to_ibis(parse(text), {"n1": t.n1, "n2": t.n2}).execute()[0] == value == evaluate(parse(text), row), text


def test_the_largest_whole_numbers_do_not_overflow():
    t = ibis.memtable(pd.DataFrame({"n": [2**63 - 1, -(2**63)]}))
    for text in ("n + n", "n * n * n", "-n", "abs(n)", "n > 0.123456789012345", "n in (0.123456789012345, 1)", "floor(n / 0.5)", "n - 1e15", "n < 5.5"):
        values = t.select("n", v=to_ibis(parse(text), {"n": t.n})).execute()
        assert [same(a, evaluate(parse(text), {"n": n})) for n, a in zip(values.n.tolist(), values.v.tolist())] == [True, True], text


def test_what_overflows_is_infinite_and_sorts_as_in_the_engine():
    t = ibis.memtable(pd.DataFrame({"x": [1e300, -1e300, 2.0]}))
    for text in ("x * x", "x * x * x - x * x * x", "x * x - x * x == x * x - x * x", "x * x - x * x > 1", "max(x * x - x * x, 1)", "min(x * x - x * x, 1)", "floor(x * x)",
                 "x / 1e-300 * 1e15 > 0", "x * x in (4, 5)", "1 / (x * x)"):  # fmt: skip
        values = t.select("x", v=to_ibis(parse(text), {"x": t.x})).to_pyarrow().to_pylist()
        for found in values:
            assert same(found["v"], evaluate(parse(text), {"x": found["x"]})), (text, found)


def test_a_constant_of_many_digits_is_the_same_double_in_the_engine(table):
    "DuckDB reads 0.09221885624698875 as a decimal, and a decimal of 16 digits as a neighbour of the double."
    digits = [0.09221885624698875, 0.059115343500130396, 0.10793126209409987, 0.30000000000000004, 0.1, 2.675]
    t = ibis.memtable(pd.DataFrame({"x": digits}))
    same_ = t.select(**{f"v{i}": to_ibis(parse(f"x == {d!r}"), {"x": t.x}) for i, d in enumerate(digits)}).execute()
    assert same_.to_numpy().tolist() == np.eye(len(digits), dtype=bool).tolist()
    for text in ("0.09221885624698875", "0.05 + 0.04221885624698875", "coalesce(x / 0, 0.09221885624698875)"):
        assert set(t.select(v=to_ibis(parse(text), {"x": t.x})).execute().v) == {evaluate(parse(text), {"x": 1})}, text


def test_division_by_zero_and_by_a_constant_zero_is_null(table):
    rules = [parse(t) for t in ("n1 / n2", "n1 / 0", "n1 / (1 - 1)", "1 / 0", "coalesce(n1 / 0, 7)", "n1 / -0.0", "is_null(1 / 0)")]
    for row, (ratio, *others) in zip(ROWS, in_duckdb(table, rules)):
        expected = None if row["n1"] is None or not row["n2"] else float(row["n1"]) / float(row["n2"])
        assert ratio == expected and others == [None, None, None, 7.0, None, True]


def test_parts_keep_their_brackets_in_sql(table):
    "Ibis 12 writes `(not a) == b` as `NOT a = b`, and `(a and b) in (…)` as `a AND b IN (…)`."
    rules = ["is_null(not b1)", "(not b1) == b2", "b2 != (not b1)", "(not b1) in (True,)", "(b1 and b2) in (False,)", "(n1 > 1) in (True, False)", "is_null(is_null(b1))", "is_null(b1) == b2", "(n1 in (1, 2)) == b1",
             "is_null(n1 in (1, 2))", "(n1 not in (1, 2)) == (t1 in ('a', '上海'))", "b1 == is_null(x1)", "not b1 == b2", "(t1 in l1) == b1", "is_null('a' in l1)", "(b1 == b2) == b1", "is_null(b1 or b2) != b1"]  # fmt: skip
    for row, values in zip(ROWS, in_duckdb(table, [parse(t) for t in rules])):
        assert list(values) == [by_other_means(t, row) for t in rules], row


def test_functions_on_paper():
    born = date(2000, 2, 29)
    for text, value in {"years(date('2023-02-28'), d)": 22, "years(date('2023-03-01'), d)": 23, "years(date('2024-02-29'), d)": 24, "years(date('2000-02-28'), d)": -1,
                        "days(date('2000-03-01'), d)": 1, "days(d, date('2000-03-01'))": -1, "month(d)": 2, "weekday(d)": 2, "weekday(date('2024-03-03'))": 7,
                        "weekday(date('2024-03-04'))": 1, "floor(-0.5)": -1, "floor(2.9)": 2, "abs(-3)": 3, "min(1, x)": None, "coalesce(x, 4)": 4, "max(d, as_of)": AS_OF,
                        "is_null(x)": True, "x in (1, 2)": None, "not (x in (1, 2))": None, "'茶' in l": True, "'a' in l": False, "-(2 - 5) * 2": 6}.items():  # fmt: skip
        assert evaluate(parse(text), {"d": born, "x": None, "l": ["茶"]}, AS_OF) == value, text


def test_plain_values_of_pandas_and_numpy_are_read():
    values = {"a": np.int64(3), "b": pd.NA, "c": pd.NaT, "d": pd.Timestamp("2024-01-05 13:00"), "e": float("nan"), "f": np.bool_(True), "g": Decimal("1.5"), "h": np.array(["x"]), "i": datetime(2024, 1, 5, 8)}  # fmt: skip
    assert evaluate(parse("a > 2 and is_null(b) and is_null(c) and is_null(e) and f and g == 1.5 and 'x' in h"), values) is True
    assert evaluate(parse("days(as_of, d) + days(i, d)"), values, "2024-01-06") == 1


def test_columns_of_other_types_become_doubles_and_days(table):
    odd = table.mutate(dec=table.n1.cast("decimal(38, 2)"), short=table.x1.cast("float32"), time=table.d1.cast("timestamp") + ibis.interval(hours=13), small=table.n2.cast("int64"))
    named = {"dec": odd.dec, "short": odd.short, "time": odd.time}
    assert to_ibis(parse("dec"), named).type().is_decimal()  # a bare name keeps its type
    found = odd.select("row", "short", d=to_ibis(parse("days(as_of, time)"), named, AS_OF), e=to_ibis(parse("dec + 0.1 == 3.1"), named), f=to_ibis(parse("short == 0.1"), named), g=to_ibis(parse("time <= as_of"), named, AS_OF)).order_by("row").to_pyarrow().to_pylist()  # fmt: skip
    for row, values in zip(ROWS, found):
        assert values["d"] == (None if row["d1"] is None else (AS_OF - row["d1"]).days)
        assert values["g"] is (None if row["d1"] is None else row["d1"] <= AS_OF)  # 13:00 of a day is that day
        assert values["e"] is (None if row["n1"] is None else row["n1"] + 0.1 == 3.1)
        assert values["f"] is (None if row["x1"] is None else float(np.float32(row["x1"])) == 0.1)


# --- laws -----------------------------------------------------------------------------------------------------------------


@settings(quickly, max_examples=150)
@given(RANDOM)
def test_laws_of_three_valued_logic(r):
    rule = Rules(r)
    a, b = (rule.brackets(rule.truth(2)) for _ in range(2))
    x, y, z = (rule.brackets(rule.number(1)) for _ in range(3))
    laws = {f"not ({a} and {b})": f"not {a} or not {b}", f"not ({a} or {b})": f"not {a} and not {b}", f"not not {a}": a, f"{x} < {y} <= {z}": f"{x} < {y} and {y} <= {z}",
            f"{x} != {y}": f"not {x} == {y}", f"{a} and ({b} and {a})": f"({a} and {b}) and {a}", f"{a} or ({a} and {b})": a, f"{x} in (1, 12)": f"{x} == 1 or {x} == 12",
            f"{x} not in (1, 12)": f"not {x} in (1, 12)", f"-(-{x})": f"{x} + 0",
            f"min({x}, {y}) <= max({x}, {y})": f"{x} + {y} == {x} + {y}", f"is_null({x} + {y})": f"is_null({x}) or is_null({y})"}  # fmt: skip
    for left, right in laws.items():
        for row in ROWS[::3]:
            assert same(evaluate(parse(left), row, AS_OF), evaluate(parse(right), row, AS_OF)), f"{left} against {right} of {row}"


@settings(quickly, max_examples=200)
@given(RANDOM)
def test_canonical_text_is_a_fixed_point_and_spelling_does_not_matter(r):
    text = Rules(r).any()
    rule = parse(text)
    again = parse(rule.text)
    assert again == rule and again.text == rule.text and again.tree == rule.tree and again.names == rule.names and hash(again) == hash(rule)
    assert parse(ast.unparse(ast.parse(f"({text})", mode="eval"))) == rule  # Python's own way to write it
    assert all(same(as_double(by_other_means(rule.text, row)), as_double(by_other_means(text, row))) for row in ROWS[::6])  # the meaning stays


def test_what_is_another_rule_has_another_text():
    for a, b in (("a - (b - c)", "a - b - c"), ("a and (b or c)", "a and b or c"), ("not (a and b)", "not a and b"), ("a < b < c", "a < b and b < c"), ("-(a + b)", "-a + b"), ("a == 'x'", "a == x"),
                 ("a / (b * c)", "a / b * c"), ("(a == b) == c", "a == b == c"), ("x in ('1',)", "x in (1,)"), ("a + b", "b + a"), ("a == True", "a == 1"), ("d == '2024-01-01'", "d == date('2024-01-01')")):  # fmt: skip
        assert parse(a) != parse(b)
    for a, b in (("a>=1.0", "((a)) >= 1"), ('t == "x"', "t == 'x'"), ("x in [1,2]", "x in (1, 2,)"), ("(a and b) and c", "a and (b and c)"), ("not x in (1,)", "x not in (1,)"),
                 ("a > 1_000", "a > 1e3"), ("a > -0", "a > 0"), ("\n a\n > 1", "a > 1"), ("t == 'x\\'y'", 't == "x\'y"'), ("p . q > 1", "p.q > 1")):  # fmt: skip
        assert parse(a) == parse(b)


def test_names():
    assert parse("products.category == 'tea' and as_of > joined and quantity > 1").names == {"products.category", "joined", "quantity"}
    assert quantile_call(parse("quantile(-recency_days, 5)")) == (parse("-recency_days"), 5)
    assert quantile_call(parse("recency_days")) is None


# --- JSON-Logic -------------------------------------------------------------------------------------------------------------


@settings(quickly, max_examples=200)
@given(RANDOM)
def test_json_logic_loses_nothing(r):
    rule = parse(Rules(r).any())
    there = json.loads(json.dumps(to_json_logic(rule), ensure_ascii=r.random() < 0.5))
    back = from_json_logic(there)
    assert back == rule and back.tree == rule.tree and parse(back.text) == rule


def test_published_json_logic_is_read():
    "The examples of jsonlogic.com that have a place in the language."
    read = lambda obj: from_json_logic(obj).text
    assert read({"and": [{">": [3, 1]}, {"<": [1, 3]}]}) == "3 > 1 and 1 < 3"
    assert read({"and": [{"<": [{"var": "temp"}, 110]}, {"==": [{"var": "pie.filling"}, "apple"]}]}) == "temp < 110 and pie.filling == 'apple'"
    assert read({"<=": [1, {"var": ["temp"]}, 3]}) == "1 <= temp <= 3"
    assert read({"!": [{"var": "ok"}]}) == read({"!": {"var": "ok"}}) == "not ok"
    assert read({"in": [{"var": "name"}, ["Bart", "Homer"]]}) == "name in ('Bart', 'Homer')"
    assert read({"+": [4, 2, {"var": "x"}]}) == "4 + 2 + x" and read({"-": {"var": "x"}}) == "-x" and read({"-": [2]}) == "-2"
    assert read({"===": [{"var": "a"}, 1.0]}) == "a == 1" and read({"max": [1, 2, {"var": "x"}]}) == "max(1, 2, x)"


@pytest.mark.parametrize("obj, words", [
    ({"iff": [1]}, "no operator 'iff'"), ({"coalesc": [{"var": "x"}, 1]}, "Did you mean 'coalesce'"), ({"if": [1, 2, 3]}, "tag of kind `rules`"), ({"==": [{"var": "x"}, None]}, "is_null"),
    ({"var": ["x", 0]}, "1 arguments"), ({"var": "x or True"}, "is no name"), ({"var": "__class__"}, "is no name"), ({"var": 3}, "is no name"), ({"==": [1]}, "2 arguments"), ([1], "one operator"), ({}, "one operator"),
    ({"a": 1, "b": 2}, "one operator"), ({"date": "2024-02-30"}, "a day that exists"), ({"date": "x') or ('"}, "a day that exists"), ({"chain": [1, "<", 2, "!"]}, "chain is"), ({"chain": [1, "and", 2]}, "chain is"),
    (float("inf"), "is no number"), (float("nan"), "is no number"), (10**400, "beyond|characters"), ({"in": [1, []]}, "empty list"), ({"in": [1, [{"var": "x"}]]}, "constants only"), ({"quantile": [{"var": "x"}, "5"]}, "number of classes"),
])  # fmt: skip
def test_json_logic_that_is_refused(obj, words):
    with pytest.raises(DefinitionError, match=words) as e:
        from_json_logic(obj, "builder.json:3")
    assert str(e.value).startswith("builder.json:3: ")


def test_large_json_logic_is_refused():
    deep = {"var": "x"}
    for _ in range(100_000):
        deep = {"!": [deep]}
    with pytest.raises(DefinitionError, match="nested deeper"):
        from_json_logic(deep)
    with pytest.raises(DefinitionError, match="parts|arguments"):
        from_json_logic({"or": [{"var": "x"}] * 100_000})
    sums = {"var": "x"}
    for _ in range(58):
        sums = {"+": [sums, *[1] * 15]}
    with pytest.raises(DefinitionError, match="deep"):
        from_json_logic(sums)
    for _ in range(100_000):
        deep = deep["!"][0]  # taken apart by hand: Python would recurse


# --- refusals ---------------------------------------------------------------------------------------------------------------

REFUSED = {  # text → column, words of the message, and of the next step
    "x == None": (6, "Write is_null(x)"), "p.q != None and y": (8, "Write not is_null(p.q)"), "x is None": (3, "is_null(x)"), "x is not None": (3, "is_null(x)"), "x = 3": (3, "Write =="), "a and x=3": (8, "Write =="),
    "x ** 2 > 4": (3, "Write x * x"), "x // 7": (3, "floor(a / b)"), "x % 2 == 0": (3, "remainder"), "a & b": (3, "Write and"), "a | b": (3, "Write or"), "~a": (1, "Write not"), "!a": (1, "Write not"),
    "a && b": (3, "Write and"), "a || b": (3, "Write or"), "a <> 1": (3, "Write !="), "a === 1": (3, "Write =="), "a := 1": (3, "metric"), "a AND b": (3, "Write and"), "NOT a": (1, "Write not"), "a == true": (6, "Write True"),
    "null == a": (1, "is_null(x)"), "a BETWEEN 1 and 5": (3, "1 <= x <= 5"), "t LIKE 'x%'": (3, "compared whole"), "a if b else c": (3, "kind `rules`"), "lambda: 1": (1, "not part"), "[x for x in y]": (1, "round brackets"),
    "{'a': 1}": (1, "not part"), "{1, 2}": (1, "round brackets"), "x[0]": (2, "round brackets"), "x.y.z == 1": (1, "one dot"), "x.y() > 1": (1, "methods"), "(a + b).c": (1, "one dot"), "abss(x) > 1": (1, "Did you mean 'abs'"),
    "isnull(x)": (1, "Did you mean 'is_null'"), "__import__('os').system('id')": (1, "no function `__import__`"), "x.__class__ == 1": (3, "cannot be a name"), "_x > 1": (1, "cannot be a name"), "class == 1": (1, "cannot be a name"),
    "eval('1')": (1, "no function `eval`"), "open('/etc/passwd')": (1, "no function"), "1e16 > x": (1, "beyond 1e15"), "9" * 400: (1, "beyond 1e15"), "1e999 < x": (1, "beyond 1e15"), "0x10 > x": (1, "neither a number nor a name"),
    "1j == x": (1, "neither a number"), "5k > x": (1, "neither a number"), "007 == x": (1, "begins with 0"), "1__0 == x": (1, "is no number"), "f'x' == t": (1, "letter before"), "b'x' == t": (1, "letter before"),
    "t in ('a' 'b')": (11, "follows a value"), "t in ()": (6, "empty list"), "t in (a, 'b')": (7, "t == a or|x == a or"), "x in (1, 'a')": (6, "mixed types"), "x in 5": (6, "needs a list"), "1 < x in (1, 2)": (1, "apart"),
    "a b": (3, "follows a value"), "a (b)": (1, "no function `a`"), "a not b": (1, "cannot be read"), "a and": (6, "value is expected"), "and a": (1, "value is expected"), "a or or b": (6, "value is expected"), "a > > b": (5, "value is expected"),
    "(a > 1": (1, "not closed"), "a > 1)": (6, "closes nothing"), "(a > 1]": (7, "closes nothing"), "'abc": (1, "not closed"), "t == 'it's'": (10, "letter before"), "+a": (1, "before a value"), "a, b": (1, "comma"), "()": (1, "comma"), "a;b": (2, "join rules"),
    "a # note": (3, "Comments"), "a \\\n and b": (3, "Go on"), "t == 'a\nb'": (6, "control character"), "t == 'a\\n'": (6, "backslash"), "t == 'a\x00'": (6, "control character"), "t == '\\ud800'": (6, "backslash"), f"t == '{'x' * 201}'": (6, "201 characters"),
    "min(x)": (1, "2 to 50 arguments, not 1"), "abs(x, y)": (1, "1 arguments, not 2"), "min(x=1, y=2)": (6, "Write =="), "min(*x)": (5, "value is expected"), "date(x) > d": (1, "Write date('2024-01-31')"), "date('2024-02-30')": (1, "exists"),
    "date('2024-1-1')": (1, "exists"), "date('２０２４-01-01')": (1, "exists"), "date('2024-01-31', 'x')": (1, "one text"), "date()": (1, "one text"), "quantile(x, 5) > 4": (1, "stands alone"), "quantile(x)": (1, "2 to 100"), "quantile(x, 1)": (1, "2 to 100"),
    "quantile(x, n)": (1, "2 to 100"), "quantile(x, 5.5)": (1, "2 to 100"), "not quantile(x, 5)": (5, "stands alone"), "": (None, "empty"), " \n ": (None, "empty"), "...": (1, "value is expected"), "a if": (3, "kind `rules`"),
    "（x > 1）": (1, "Write ( (ASCII)"), "x in （1,2）": (6, "Write ( (ASCII)"), "x in (1，2)": (8, "Write , (ASCII)"), "t == “上海”": (6, 'Write " (ASCII)'), "t == ‘上海’": (6, "Write ' (ASCII)"), "t == 「上海」": (6, "Write ' (ASCII)"),
    "x ＝ 1": (3, "Write == (ASCII)"), "x ≥ 1": (3, "Write >= (ASCII)"), "x ＞ １": (3, "Write > (ASCII)"), "x > １": (5, "Write 1 (ASCII)"), "x × 2": (3, "Write * (ASCII)"), "x − 2": (3, "Write - (ASCII)"), "ａ > 1": (1, "Write a (ASCII)"),
    "x\u3000> 1": (2, "Write a space"), "x\u00a0> 1": (2, "Write a space"), "城市 == '上海'": (1, "Write '城市' if it is a text"), "t == 上海": (6, "Write '上海' if it is a text"), "t == '上海' and x = 1": (17, "Write =="), "t == '上海' and abss(x)": (15, "no function `abss`"),
    "x\u200b > 1": (2, "U+200B"), "\ufeffx > 1": (1, "U+FEFF"), "é == 1": (1, "neither a name"), "x² > 4": (2, "Write 2"), "a @ b": (3, "written as they are"), "$a": (1, "written as they are"), "`a b` > 1": (1, "written as they are"), "a ? b : c": (3, "kind `rules`"),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=lambda t: t[:24].encode("unicode_escape").decode())
def test_what_the_language_lacks_is_refused_with_the_next_step(text):
    column, words = REFUSED[text]
    with pytest.raises(DefinitionError) as e:
        parse(text, "tags.yaml:12")
    message = str(e.value)
    assert message.startswith("tags.yaml:12: ") and "\n" not in message and len(message) < 420, message
    assert any(w in message for w in words.split("|")), message
    assert (f"column {column} of" in message) if column else ("column" not in message), message


@pytest.mark.parametrize("text", ["(" * 10_000, "(" * 10_000 + "a" + ")" * 10_000, "(" * 100 + "a" + ")" * 100, "a and (" * 500 + "a" + ")" * 500, "a and (" * 62 + "a" + ")" * 62, "not " * 900 + "a", "-" * 3_900 + "a",
                                  "a" * 10_000_000, "a+" * 1_900 + "a", "a<" * 1_900 + "a", "f(" * 1_900, "(((((" * 700, "a." * 1_900 + "a", "'" * 3_999, "[" * 3_999, "a in " * 700 + "a", "- not " * 600 + "a", "\\" * 3_999,
                                  "min(" * 59 + "a" + ", b)" * 59, " " * 4_001, "not -" * 700 + "a", "0" * 4_000, "1" * 4_000, "1_" * 1_999 + "1", "1e" + "9" * 3_000], ids=lambda t: f"{t[:8]!r} of {len(t)}")  # fmt: skip
def test_no_text_is_too_much(text):
    with pytest.raises(DefinitionError) as e:
        parse(text, "tags.yaml:12")
    assert len(str(e.value)) < 400


def test_limits_are_generous():
    for text in ("a or b and " * 300 + "c", "(" * 55 + "a" + ")" * 55, " + ".join(["a"] * 55), f"t in ({', '.join(repr(str(i)) for i in range(400))})", f"t == '{'长' * 200}'", "not " * 50 + "a", "x == 1000000000000000"):
        assert parse(parse(text).text) == parse(text)


@pytest.mark.parametrize("odd", [None, 3, True, 1.5, ["a"], {"a": 1}, b"a > 1", float("nan")])
def test_what_is_no_text_is_refused(odd):
    with pytest.raises(DefinitionError, match=r"tags.yaml:3: .*where a text is expected"):
        parse(odd, "tags.yaml:3")


SOUP = ["a", "b", "x.y", "t", "1", "0.5", "'x'", '"上海"', "and", "or", "not", "in", "==", "!=", "<", ">=", "+", "-", "*", "/", "(", ")", ",", "[", "]", "min(", "date('2024-01-01')", "is_null(", "True", "as_of", ".", " ", "None", "=",
        "，", "\n", "\\", "'", "quantile(", "%", ":", "lambda", "_", "1e5", "é", "{", "\x00", "\ud800", "#", "f'"]  # fmt: skip


@settings(quickly, max_examples=300)
@given(st.one_of(st.lists(st.sampled_from(SOUP), max_size=14).map(" ".join), st.lists(st.sampled_from(SOUP), max_size=10).map("".join), st.text(max_size=30)))
def test_any_text_is_a_rule_or_a_refusal(text):
    try:
        rule = parse(text, "here")
    except DefinitionError as e:
        assert str(e).startswith("here: ") and "\n" not in str(e)
        return
    assert parse(rule.text) == rule
    assert from_json_logic(to_json_logic(rule)) == rule
    ast.parse(f"({text})".replace("\n", " "), mode="eval")  # a part of Python, always


@settings(quickly, max_examples=300)
@given(st.lists(st.sampled_from(["n1", "x1", "t1", "b1", "d1", "l1", "n2", "1", "'上海'", "True", "as_of", "and", "or", "not", "==", "<", "in", "+", "/", "(", ")", ",", "min(", "coalesce(", "is_null(", "days(", "month("]), min_size=2, max_size=12).map(" ".join))  # fmt: skip
def test_what_passes_the_check_runs_and_what_does_not_is_refused_everywhere(table, text):
    try:
        rule = parse(text)
    except DefinitionError:
        return
    try:
        kind = check(rule, TYPES)
    except DefinitionError:
        with pytest.raises(DefinitionError):
            to_ibis(rule, columns_of(table), AS_OF)
        return
    python = {"number": (int, float), "text": str, "boolean": bool, "date": date, "list": list}[kind]
    assert all(value is None or isinstance(value, python) for (value,) in in_duckdb(table, [rule]))


@pytest.mark.parametrize("text, words", {
    "n3 > 1": "Names: b1, b2", "p.prize > 1": "Did you mean 'p.price'", "zzz > 1": "Names: ", "min > 1": "It is a function: min(…)", "n1 and b1": "n1 > 0", "not t1": "t1 == …", "n1 == '3'": "Numbers stand without quotes",
    "t1 > 3": "mixes types", "d1 > '2024-01-01'": "date('2024-01-01')|date('2024-01-31')", "d1 - d2 > 3": "days(later, earlier)", "as_of - 30 > d1": "days(later, earlier)", "t1 + t2": "Only numbers", "b1 < b2": "no order", "b1 == 1": "name alone",
    "l1 == 'a'": "'a' in list", "l1 == l1": "not compared", "l1 in ('a', 'b')": "'a' in list", "'a' in t1": "Compare it by ==", "1 in l1": "Lists hold texts", "t1 in (1, 2)": "without quotes", "month(t1) == 3": "date('2024-01-31')",
    "days(n1, d1)": "n1", "min(t1, t2)": "number or date", "min(n1, d1)": "min mixes types", "coalesce(n1, 'none')": "coalesce mixes types", "coalesce(l1, l1)": "coalesce takes", "abs(b1)": "abs takes", "-t1": "Only numbers",
    "b1 == 'True'": "True and False stand without", "quantile(n1, 5)": "uses", "n1 < d1": "days(later, earlier)", "is_null(p.prize)": "Did you mean",
}.items())  # fmt: skip
def test_types_are_checked_with_the_next_step(text, words):
    with pytest.raises(DefinitionError) as e:
        check(parse(text), TYPES, "tags.yaml:9")
    assert str(e.value).startswith("tags.yaml:9: ") and any(w in str(e.value) for w in words.split("|")), str(e.value)


def test_types_of_results():
    for text, kind in {"n1": "number", "t1": "text", "l1": "list", "d1": "date", "as_of": "date", "b1": "boolean", "n1 > 1": "boolean", "n1 / 2": "number", "coalesce(t1, 'x')": "text", "max(d1, as_of)": "date", "is_null(l1)": "boolean",
                       "years(as_of, d1)": "number", "'a' in l1": "boolean", "t1 in l1": "boolean", "date('2024-01-31')": "date", "1": "number", "'x'": "text", "True": "boolean", "not b1": "boolean", "b1 in (True,)": "boolean"}.items():  # fmt: skip
        assert check(parse(text), TYPES) == kind, text
    with pytest.raises(ParameterError, match="types are"):
        check(parse("x > 1"), {"x": "money"})


def test_arguments_that_lack():
    with pytest.raises(DefinitionError, match="Did you mean 'orders'"):
        evaluate(parse("order > 1"), {"orders": 3})
    with pytest.raises(ParameterError, match="needs as_of"):
        evaluate(parse("days(as_of, d) > 1"), {"d": AS_OF})
    with pytest.raises(MemtagError, match="as_of must be a date"):
        evaluate(parse("days(as_of, d) > 1"), {"d": AS_OF}, "yesterday")
    with pytest.raises(DefinitionError, match="mixes types"):
        evaluate(parse("orders > 1"), {"orders": "three"})


def test_nothing_is_ever_run():
    "The module calls neither eval nor exec nor compile, nor imports by name."
    tree = ast.parse(Path(expression.__file__).read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__", "getattr", "globals", "locals", "vars", "open"}


# --- reasons ----------------------------------------------------------------------------------------------------------------


def test_explain_says_which_clause_failed():
    rule = parse("orders >= 3 and (spend > 100 or not (vip or new)) and city not in ('a',)")
    clauses = explain(rule, {"orders": 2, "spend": None, "vip": True, "new": False, "city": "b"})
    assert [(c.text, c.value, c.depth, c.op) for c in clauses] == [
        (rule.text, False, 0, "and"), ("orders >= 3", False, 1, "rule"), ("spend > 100 or not (vip or new)", None, 1, "or"), ("spend > 100", None, 2, "rule"),
        ("not (vip or new)", False, 2, "not"), ("vip or new", True, 3, "or"), ("vip", True, 4, "rule"), ("new", False, 4, "rule"), ("city not in ('a',)", True, 1, "rule")]  # fmt: skip
    assert clauses[1].names == {"orders": 2} and clauses[2].names == {"spend": None, "vip": True, "new": False}


@settings(quickly, max_examples=60)
@given(RANDOM, st.sampled_from(ROWS))
def test_clauses_are_rules_and_make_up_the_whole(r, row):
    rule = parse(Rules(r).truth(3))
    clauses = explain(rule, row, AS_OF)
    assert clauses[0].text == rule.text and {n: row[n] for n in rule.names} == clauses[0].names
    for clause in clauses:
        assert same(evaluate(parse(clause.text), row, AS_OF), clause.value) and set(clause.names) == parse(clause.text).names
    whole = {"and": min, "or": max, "not": lambda d: 1 - next(iter(d))}
    degree = lambda v: HALF if v is None else float(v)
    for i, clause in enumerate(clauses):
        below = []
        for later in clauses[i + 1 :]:
            if later.depth <= clause.depth:
                break
            below += [degree(later.value)] if later.depth == clause.depth + 1 else []
        assert (clause.op == "rule") == (not below)
        assert clause.op == "rule" or whole[clause.op](below) == degree(clause.value)


def test_a_hundred_years_of_days(table):
    "days, years, month and weekday against the calendar, day by day around leap days and ends of years."
    born = [date(1900, 2, 28), date(1900, 3, 1), date(1996, 2, 29), date(2000, 2, 29), date(1999, 12, 31), date(2000, 1, 1)]
    later = [d + timedelta(days=k) for d in (date(1896, 2, 27), date(1999, 12, 30), date(2000, 2, 27), date(2023, 2, 26), date(2100, 2, 27)) for k in range(4)]
    pairs = pd.DataFrame([(a, b) for a in later for b in born], columns=["a", "b"])
    t = ibis.memtable(pairs, schema={"a": "date", "b": "date"})
    found = t.select("a", "b", **{text.split("(")[0]: to_ibis(parse(text), {"a": t.a, "b": t.b}) for text in ("days(a, b)", "years(a, b)", "month(a)", "weekday(a)")}).to_pyarrow().to_pylist()
    assert len(found) == len(pairs)
    for f in found:
        assert (f["days"], f["years"], f["month"], f["weekday"]) == ((f["a"] - f["b"]).days, birthdays(f["a"], f["b"]), f["a"].month, f["a"].isoweekday()), f
