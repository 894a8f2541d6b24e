"""A programme whose people have phones, names and e-mails that stand nowhere else, as CSV files, and a search for them.

200 people are planted in every table that names one: as its id, in the extra columns of `members`, in addresses, in what they wrote and
in who wrote of them. A column can be broken before it is read: filled with such values, as when columns shift in a spreadsheet."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import duckdb
import yaml

from memtag_research.data.simulate import make_programme

PEOPLE = 200
END = "2024-03-01"
DERIVED = ("orders", "member_days")
SURNAMES, GIVEN = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗", "子涵雨桐浩宇欣怡梓轩诗琪俊杰佳怡博文思远"
FIRST = ("Quintessa", "Barnaby", "Ottoline", "Peregrine", "Saffron", "Thaddeus", "Wilhelmina", "Xanthe", "Yorick", "Zenobia")
LAST = ("Farthingale", "Ollerenshaw", "Pobjoy", "Quarterman", "Ravenscroft", "Sweetapple", "Thistlewood", "Umfreville", "Vavasour", "Winterbourne")


@dataclass(frozen=True)
class Person:
    phone: str
    name: str
    email: str


def people() -> list[Person]:
    "200 of them; no two share a phone, a name or an e-mail."
    made = []
    for i in range(PEOPLE):
        phone = f"1{(38, 39, 50, 77, 86)[i % 5]}{(i * 7_919_033 + 10_234_567) % 10**8:08}"
        english = f"{FIRST[i % 10]} {LAST[i // 10 % 10]}"
        chinese = SURNAMES[i % 20] + GIVEN[i // 20 * 2] + GIVEN[i // 20 * 2 + 1]
        made.append(Person(phone, chinese if i >= 100 else english, f"{english.replace(' ', '.').lower()}{i}@example.org"))
    assert all(len({getattr(p, what) for p in made}) == PEOPLE for what in ("phone", "name", "email"))
    return made


def secrets() -> list[str]:
    "Every planted text."
    return [text for p in people() for text in (p.phone, p.name, p.email)]


def _planted(name, columns):
    "The columns of a table as they go into its CSV: people in the place of ids."
    pick = lambda what, of: f"person[1 + (hash({of}) % {PEOPLE})::INT].{what}"
    for c in columns:
        if c in ("member_id", "from_id", "to_id"): yield f"coalesce(phones[{c}], {c}) AS {c}"
        elif c == "channel_id": yield f"CASE channel WHEN 'phone' THEN coalesce(phones[member_id], channel_id) ELSE {pick('email', c)} END AS {c}"
        elif c == "assigned_by": yield f"{pick('email', c)} AS {c}"
        elif (name, c) == ("feedback", "text"): yield f"{pick('name', 'ts')} || ' rang from ' || {pick('phone', 'ts')} AS {c}"
        else: yield f'"{c}"'
    if name == "members": yield from (f"{pick(what, 'member_id')} AS {what}" for what in ("name", "email"))


def write_files(root: Path) -> Path:
    "A workspace of CSV files and a mapping that takes every column as it is; returns the folder."
    root = Path(root)
    made = make_programme(260, "2023-01-01", END, seed=3, directory=root / "made").workspace
    con, tables = duckdb.connect(), [t for t in made.tables() if t not in DERIVED]
    ids = made.table("members").member_id.to_pyarrow().to_pylist()[:PEOPLE]
    con.execute("CREATE TABLE known AS SELECT MAP(?, ?) AS phones, ? AS person",
                [ids, [p.phone for p in people()], [vars(p) for p in people()]])
    sources = {}
    (root / "files").mkdir(parents=True)
    for name in tables:
        path = made.folder / f"{name}.parquet"
        columns = [c for c in made.table(name).columns if not c.startswith("local_")]
        chosen = ", ".join(_planted(name, columns))
        con.execute(f"COPY (SELECT {chosen} FROM read_parquet('{path}'), known) TO '{root}/files/{name}.csv' (HEADER)")
        sources[name] = {"files": f"files/{name}.csv", "columns": _mapping(name, made.table(name).schema(), columns)}
    config = {"name": "Leaks", "currency": "CNY", "zone": "Asia/Shanghai", "consent": "not_required", "consent_reason": "a test",
              "first_order_washout_days": 0, "sources": sources}
    (root / "memtag.yaml").write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    shutil.rmtree(root / "made")
    return root


def _mapping(name, schema, columns):
    how = {c: {"from": c} | ({"zone": "UTC"} if schema[c].is_timestamp() else {}) | ({"unit": "minor"} if c.endswith("cents") else {})
           for c in columns}
    return how | ({what: {"from": what, "type": "string"} for what in ("name", "email")} if name == "members" else {})


def found(text: str) -> list[str]:
    "Planted texts that stand in a text whole."
    return sorted(set(_PATTERN.findall(text)))


_PATTERN = re.compile("|".join(map(re.escape, sorted(secrets(), key=len, reverse=True))))


def break_column(root: Path, made: Path, table: str, column: str, how: str) -> Path:
    """A workspace of one table of `made` (and of members, beside tables that cannot stand alone) with one column broken:
    `moved` holds phones, names and e-mails, `some` holds them in every seventh row, `twice` has each row two times, `gone` lacks the
    column, `empty` has nothing in it."""
    root.mkdir(parents=True)
    config = yaml.safe_load((made / "memtag.yaml").read_text(encoding="utf-8"))
    used = {table, "members"} if table != "order_lines" else {table}
    config["sources"] = {name: spec for name, spec in config["sources"].items() if name in used}
    (root / "memtag.yaml").write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    (root / "files").mkdir()
    for name in used: _break(made / f"files/{name}.csv", root / f"files/{name}.csv", column, how if name == table else "")
    return root


def _break(path, out, column, how):
    con = duckdb.connect()
    con.execute("CREATE TABLE texts AS SELECT ? AS texts", [secrets()])
    planted = f"texts[1 + (row * 7 % {3 * PEOPLE})::INT]"
    chosen = {"moved": f"* EXCLUDE (texts, row) REPLACE ({planted} AS \"{column}\")",
              "some": f"* EXCLUDE (texts, row) REPLACE (CASE WHEN row % 7 = 0 THEN {planted} ELSE \"{column}\" END AS \"{column}\")",
              "empty": f"* EXCLUDE (texts, row) REPLACE (NULL AS \"{column}\")",
              "gone": f"* EXCLUDE (texts, row, \"{column}\")"}.get(how, "* EXCLUDE (texts, row)")
    twice = ", range(2)" if how == "twice" else ""
    chosen = chosen.replace("row)", "row, range)") if twice else chosen
    con.execute(f"""COPY (SELECT {chosen} FROM (SELECT *, row_number() OVER () AS row FROM read_csv('{path}', all_varchar=true)), texts{twice})
                    TO '{out}' (HEADER)""")
