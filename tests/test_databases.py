"""Databases as sources: a real PostgreSQL, DuckDB and SQLite against values written by hand; nothing written, nothing told."""

import grp
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import duckdb
import ibis
import pyarrow.parquet as pq
import pytest

from memtag_research.core import DefinitionError, MemtagError, NotComputable
from memtag_research.data import databases
from memtag_research.data.databases import address, fetch, question, shown
from memtag_research.data.ingest import check_workspace, ingest
from memtag_research.data.workspace import open_workspace

PASSWORD = "p@ss/w?rd:1%"   # every sign that a URL takes for itself
SETTINGS = ["-c", "timezone=Asia/Shanghai", "-c", "datestyle=German", "-c", "extra_float_digits=0"]   # of a server far away
TABLE = """
    CREATE TYPE kind AS ENUM ('sale', 'return');
    CREATE DOMAIN cents AS numeric(12, 2);
    CREATE SCHEMA shop;
    CREATE TABLE shop.lines (id uuid, card text, paid timestamptz, clock timestamp, day date, amount numeric(12, 2), price cents, free numeric,
        fee money, n bigint, rate double precision, kind kind, tags text[], extra jsonb, ok boolean, "a ""b" varchar(5), fixed char(4));
    INSERT INTO shop.lines VALUES
      ('6a2f41a3-c54c-4b8c-9a0e-5d4b7d9f6f01', '007', '2024-03-01 08:05:00.123456+08', '2024-03-01 08:05', '2024-02-29', 12345678.35, 0.10,
       0.12345678901234567890123456789, 1234.50, 9007199254740993, 0.1, 'return', '{a,"b,c"}', '{"x": [1, null]}', true, 'x,"y', 'ab'),
      (NULL, '', NULL, NULL, NULL, -0.01, NULL, NULL, NULL, NULL, 'NaN', NULL, NULL, NULL, false, NULL, NULL),
      (NULL, E'two\\nlines', NULL, NULL, NULL, NULL, NULL, 100, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE shop.secrets (phone text); INSERT INTO shop.secrets VALUES ('13812345678');
    CREATE TABLE shop.sold (order_id text, card text, paid timestamptz, amount numeric(12, 2));
    INSERT INTO shop.sold SELECT 'o' || i, CASE WHEN i % 5 > 0 THEN lpad((i % 40)::text, 6, '0') END,
        timestamptz '2024-01-01 12:00+08' + i * interval '3 hours', (i % 997) + 0.35 FROM generate_series(1, 1000) i;
    CREATE SEQUENCE shop.numbers;
    CREATE TABLE shop.log (n int);
    CREATE FUNCTION shop.tidy() RETURNS int LANGUAGE sql AS 'INSERT INTO shop.log VALUES (1) RETURNING n';
    CREATE ROLE reader LOGIN PASSWORD 'reads only'; GRANT USAGE ON SCHEMA shop TO reader; GRANT SELECT ON shop.sold TO reader;
"""


def binary(name):
    "A program of PostgreSQL: the one in PATH, else the newest that Debian installed."
    found = shutil.which(name)
    return found or str(max(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[-3]), default="")) or None


def when_up(psycopg, process, port):
    "A connection as soon as the server takes one."
    while process.poll() is None:
        try: return psycopg.connect(host="127.0.0.1", port=port, user="anna", password=PASSWORD, dbname="postgres", autocommit=True)
        except psycopg.OperationalError: time.sleep(.1)
    pytest.fail("the PostgreSQL server ended before it took a connection")


@pytest.fixture(scope="session")
def server():
    "A PostgreSQL of this session alone, on a port of its own and on a socket, which asks for passwords."
    initdb, postgres = binary("initdb"), binary("postgres")
    if not (initdb and postgres): pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgres]'")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))   # a path of a socket has 107 characters at most
    who = {}
    if os.getuid() == 0:   # PostgreSQL refuses to be run by root
        who = {"user": "nobody", "group": "nogroup" if "nogroup" in {g.gr_name for g in grp.getgrall()} else "nobody", "extra_groups": []}
        shutil.chown(folder, "nobody")
    (folder / "password").write_text(PASSWORD)
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    subprocess.run([initdb, "-D", folder / "db", "-U", "anna", "-A", "scram-sha-256", "--pwfile", folder / "password", "-E", "UTF8",
                    "--no-locale", "--no-sync"], check=True, capture_output=True, cwd="/", **who)   # fmt: skip
    process = subprocess.Popen([postgres, "-D", folder / "db", "-k", folder, "-p", str(port), "-h", "127.0.0.1", "-F",
                                *SETTINGS],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **who)   # fmt: skip
    try:
        with when_up(psycopg, process, port) as con: con.execute(TABLE)
        yield {"port": port, "folder": folder}
    finally:
        process.send_signal(signal.SIGINT)   # a fast shutdown
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def shop(server, monkeypatch):
    "The URL as a mapping holds it, its password in the environment."
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    return f"postgres://anna:$SHOP_PASSWORD@127.0.0.1:{server['port']}/postgres"


def fetched(spec, folder):
    return pq.read_table(fetch(spec, folder, folder))


def test_every_type_comes_through(shop, tmp_path):
    got = fetched({"url": shop, "table": "shop.lines"}, tmp_path)
    kinds = {name: str(kind) for name, kind in zip(got.schema.names, got.schema.types)}
    assert kinds == {"id": "string", "card": "string", "paid": "timestamp[us, tz=UTC]", "clock": "timestamp[us]", "day": "date32[day]",
                     "amount": "decimal128(12, 2)", "price": "decimal128(12, 2)", "free": "string", "fee": "decimal128(20, 2)", "n": "int64",
                     "rate": "double", "kind": "string", "tags": "string", "extra": "string", "ok": "bool", 'a "b': "string", "fixed": "string"}  # fmt: skip
    first, second, third = got.to_pylist()
    assert first["id"] == "6a2f41a3-c54c-4b8c-9a0e-5d4b7d9f6f01" and first["card"] == "007" and first["n"] == 2**53 + 1
    assert (first["amount"], first["price"], first["fee"]) == (Decimal("12345678.35"), Decimal("0.10"), Decimal("1234.50"))
    assert first["free"] == "0.12345678901234567890123456789" and third["free"] == "100"
    assert first["paid"].isoformat() == "2024-03-01T00:05:00.123456+00:00" and str(first["clock"]) == "2024-03-01 08:05:00"
    assert str(first["day"]) == "2024-02-29" and first["rate"] == .1 and first["ok"] is True
    assert (first["kind"], first["tags"], first["extra"], first['a "b']) == ("return", '{a,"b,c"}', '{"x": [1, null]}', 'x,"y')
    assert second["card"] == "" and second["paid"] is None and second["amount"] == Decimal("-0.01") and second["rate"] != second["rate"]
    assert third["card"] == "two\nlines" and third["ok"] is None


def test_the_servers_habits_do_not_change_values(shop, tmp_path):
    query = "SELECT timestamptz '2024-03-01 02:00+08' AS paid, (timestamptz '2024-03-01 02:00+08')::text AS said, date '2024-03-01' AS day, 1/3::float8 AS r"
    row, = fetched({"url": shop, "query": query}, tmp_path).to_pylist()
    assert row["said"] == "2024-02-29 18:00:00+00" and str(row["paid"]) == "2024-02-29 18:00:00+00:00"
    assert str(row["day"]) == "2024-03-01" and row["r"] == 1 / 3


def test_line_breaks_inside_values_at_the_seams_of_blocks(shop, tmp_path):
    query = "SELECT i AS n, repeat(E'x,\\n\"', 40) AS notes FROM generate_series(1, 120000) i"
    got = fetched({"url": shop, "query": query}, tmp_path)   # 24 MB in blocks of 16
    assert got["n"].to_pylist() == list(range(1, 120_001)) and set(got["notes"].to_pylist()) == {'x,\n"' * 40}


def test_as_psycopg_reads_it(shop, server, tmp_path):
    "Another way to the same rows, value by value."
    import psycopg
    query = "SELECT order_id, card, paid, amount FROM shop.sold ORDER BY paid"
    with psycopg.connect(address(shop)) as con:
        con.execute("SET DateStyle = ISO")
        theirs = con.execute(query).fetchall()
    ours = fetched({"url": shop, "query": query}, tmp_path).to_pylist()
    assert [tuple(row.values()) for row in ours] == theirs and len(theirs) == 1000


def test_a_socket_and_the_names_that_others_give_the_scheme(server, shop, tmp_path):
    by_socket = f"postgresql+psycopg://anna:$SHOP_PASSWORD@/postgres?host={server['folder']}&port={server['port']}"
    assert fetched({"url": by_socket, "query": "SELECT 1 AS n"}, tmp_path).to_pylist() == [{"n": 1}]


def test_the_file_is_its_owners_and_equal_rows_make_an_equal_file(shop, tmp_path):
    spec = {"url": shop, "query": "SELECT * FROM shop.sold ORDER BY order_id -- newest last"}
    path = fetch(spec, tmp_path, tmp_path)
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600 and fetch(spec, tmp_path, tmp_path) == path and path.read_bytes() == before
    assert fetch({**spec, "query": "SELECT 1 AS n"}, tmp_path, tmp_path) != path
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({path.name, *(p.name for p in tmp_path.glob("query-*"))})


def test_no_rows_keep_their_columns(shop, tmp_path):
    got = fetched({"url": shop, "query": "SELECT order_id, amount FROM shop.sold WHERE false"}, tmp_path)
    assert got.num_rows == 0 and got.schema.names == ["order_id", "amount"]
    assert fetched({"url": shop, "query": "SELECT NULL::text AS x UNION ALL SELECT ''"}, tmp_path)["x"].to_pylist() == [None, ""]


MAPPING = """name: Shop
currency: CNY
zone: Asia/Shanghai
sources:
  order_lines:
    {source}
    columns: {{order_id: order_id, member_id: card, ts: paid, net_cents: amount, quantity: {{value: 1}}, line_kind: {{value: sale}}}}
    drop: [{{reason: before the programme, where: "{early}"}}]
  members:
    {members}
    columns: {{member_id: card}}
"""


def workspace(root, source, members, early):
    root.mkdir(exist_ok=True)
    (root / "memtag.yaml").write_text(MAPPING.format(source=source, members=members, early=early))
    return root


def test_ingest_reads_a_database_like_a_file(shop, tmp_path):
    "The same rows from the server and from the CSV that it writes: one answer, to the cent."
    import psycopg
    cards = "SELECT DISTINCT card FROM shop.sold WHERE card IS NOT NULL ORDER BY card"
    with psycopg.connect(address(shop)) as con:
        con.execute("SET DateStyle = ISO")
        local = "SELECT order_id, card, paid AT TIME ZONE 'Asia/Shanghai' AS paid, amount FROM shop.sold"   # the clock on the wall
        for name, what in {"sold.csv": f"({local})", "cards.csv": f"({cards})"}.items():
            with con.cursor().copy(f"COPY {what} TO STDOUT (FORMAT csv, HEADER)") as copy: (tmp_path / name).write_bytes(b"".join(copy))
        wanted = con.execute("SELECT sum(amount) * 100, count(*) FROM shop.sold WHERE amount >= 1").fetchone()
    by_server = workspace(tmp_path / "server", f'url: "{shop}"\n    table: shop.sold', f'url: "{shop}"\n    query: {cards}', "amount < 1")
    by_file = workspace(tmp_path / "file", f"files: [{tmp_path}/sold.csv]", f"files: [{tmp_path}/cards.csv]", "TRY_CAST(amount AS DOUBLE) < 1")
    first = ingest(by_server)
    assert first.tables["order_lines"].dropped == {"before the programme": 1} and ingest(by_server).unchanged
    ours, theirs = (open_workspace(root) for root in (by_server, by_file))
    ingest(by_file)
    for name in ("order_lines", "members", "orders", "member_days"):
        assert ours.table(name).execute().equals(theirs.table(name).execute()), name
    lines = ours.table("order_lines")
    assert (int(lines.net_cents.sum().execute()), int(lines.count().execute())) == wanted and check_workspace(ours) == []
    assert not [p for p in (by_server / "data").iterdir() if "fetch" in p.name]   # nothing of the fetched rows stays
    for file in by_server.rglob("*"):
        if file.is_file(): assert PASSWORD.encode() not in file.read_bytes()


def test_an_ingest_that_the_server_refuses_changes_nothing(shop, tmp_path, monkeypatch):
    root = workspace(tmp_path, f'url: "{shop}"\n    table: shop.sold', f'url: "{shop}"\n    query: SELECT DISTINCT card FROM shop.sold WHERE card IS NOT NULL ORDER BY 1', "false")
    before = ingest(root)
    monkeypatch.setenv("SHOP_PASSWORD", "wrong")
    with pytest.raises(MemtagError, match="does not let this user in") as e: ingest(root)
    assert "wrong" not in str(e.value) and open_workspace(root).manifest["tables"]["order_lines"]["rows"] == before.tables["order_lines"].rows
    assert not list((root / "data").glob(".fetch*"))


@pytest.mark.parametrize("query", ["SELECT shop.tidy()", "SELECT nextval('shop.numbers')",
                                   "SELECT set_config('transaction_read_only', 'off', true), shop.tidy()"])  # fmt: skip
def test_a_select_that_writes_is_refused_by_the_session(shop, server, tmp_path, query):
    import psycopg
    with pytest.raises(MemtagError, match="may only be read"): fetch({"url": shop, "query": query}, tmp_path, tmp_path)
    with psycopg.connect(address(shop)) as con: assert con.execute("SELECT count(*) FROM shop.log").fetchone() == (0,)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ask, told", [
    ({"table": "shop.line"}, "Did you mean 'shop.lines'? It has: shop.lines"),
    ({"query": "SELECT crad FROM shop.lines"}, 'column "crad" does not exist'),
    ({"query": "SELECT card::int FROM shop.lines"}, "InvalidTextRepresentation 22P02"),
    ({"query": "SELECT phone::int FROM shop.secrets"}, "NumericValueOutOfRange 22003"),
    ({"query": "SELECT * FROM shop.secrets WHERE \"13812345678\" = 1"}, "138****5678"),
    ({"query": "SELECT 1 / (n - n) FROM shop.lines"}, "22012"),
    ({"query": "SELECT card AS \"id\", id FROM shop.lines"}, "Tell them apart with AS"),
    ({"query": "SELECT 1 AS n, timestamp 'infinity' AS closed"}, "a value in column 2 that a file cannot hold"),
    ({"query": "SELECT 'NaN'::numeric(5, 2) AS rate"}, "a value in column 1 that a file cannot hold"),
])  # fmt: skip
def test_mistakes_are_told_without_values(shop, tmp_path, ask, told):
    with pytest.raises(MemtagError) as e: fetch({"url": shop, **ask}, tmp_path, tmp_path)
    assert told in str(e.value)
    assert "13812345678" not in str(e.value) and "p@ss" not in str(e.value) and "anna" not in str(e.value)
    assert (e.value.__suppress_context__ or e.value.__context__ is None) and not list(tmp_path.iterdir())


def test_a_mistake_in_the_millionth_row_leaves_no_file(shop, tmp_path):
    query = "SELECT 1 / (1000000 - i) AS n, repeat('x', 40) AS pad FROM generate_series(1, 1000000) i"
    with pytest.raises(MemtagError, match="22012"): fetch({"url": shop, "query": query}, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("password, user, base, told", [
    ("wrong-secret", "anna", "postgres", "does not let this user in"), (PASSWORD, "nobody_here", "postgres", "does not let this user in"),
    (PASSWORD, "anna", "shpo", "no such database"),
])  # fmt: skip
def test_who_is_not_let_in(shop, server, tmp_path, monkeypatch, password, user, base, told):
    monkeypatch.setenv("SHOP_PASSWORD", password)
    url = f"postgres://{user}:$SHOP_PASSWORD@127.0.0.1:{server['port']}/{base}"
    with pytest.raises(MemtagError, match=told) as e: fetch({"url": url, "table": "shop.lines"}, tmp_path, tmp_path)
    assert password not in str(e.value) and user not in str(e.value)


def test_rights_are_the_databases_own(shop, server, tmp_path, monkeypatch):
    monkeypatch.setenv("READER", f"postgres://reader:reads%20only@127.0.0.1:{server['port']}/postgres")
    assert fetched({"url": "$READER", "table": "shop.sold"}, tmp_path).num_rows == 1000
    with pytest.raises(MemtagError, match="permission denied for table secrets"):
        fetch({"url": "$READER", "table": "shop.secrets"}, tmp_path, tmp_path)


def test_a_server_that_is_not_there(tmp_path):
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgres]'")
    with pytest.raises(MemtagError, match="postgres://127.0.0.1:9/shop does not answer"):
        fetch({"url": "postgres://127.0.0.1:9/shop", "table": "lines"}, tmp_path, tmp_path)


def test_a_whole_url_in_a_variable_that_is_not_well_formed(tmp_path, monkeypatch):
    "A slash in a password, not quoted: drivers say a piece of it."
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgres]'")
    monkeypatch.setenv("SHOP_DB", "postgres://anna:sec/ret@127.0.0.1:9/shop")
    with pytest.raises(MemtagError) as e: fetch({"url": "$SHOP_DB", "table": "lines"}, tmp_path, tmp_path)
    assert not any(part in str(e.value) for part in ("sec", "ret@", "anna"))


def test_without_the_driver_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(NotComputable, match=r"pip install 'memtag_research\[postgres\]'"):
        fetch({"url": "postgres://127.0.0.1/shop", "table": "lines"}, tmp_path, tmp_path)


@pytest.mark.parametrize("url", ["postgres://anna:secret@h/shop", "postgres://anna:se/c@ret@h/shop", "postgres://h/shop?password=secret",
                                 "mysql://anna:x$SHOP_PASSWORD@h/shop", "postgres://h/shop?sslpassword=secret&x=1"])  # fmt: skip
def test_a_password_in_the_mapping_is_refused(url, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    with pytest.raises(DefinitionError, match="holds a password") as e: address(url)
    assert "secret" not in str(e.value)


def test_addresses_without_a_password_are_left_alone():
    for url in ("postgres://anna@h/shop", "postgres://h:5432/shop", "postgres:///shop?host=/tmp", "duckdb:///a/b.duckdb"): assert address(url) == url
    assert shown("postgres://anna:x@h:5432/shop?sslmode=require") == "postgres://h:5432/shop"


def test_no_other_statement_is_a_question():
    for text in ("UPDATE a SET b = 1", "DROP TABLE a", "SELECT 1; DROP TABLE a", "WITH x AS (UPDATE a SET b = 1 RETURNING *) SELECT * FROM x",
                 "COPY a TO '/tmp/a'", "VACUUM", "SET ROLE postgres", "EXPLAIN ANALYZE DELETE FROM a", "MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE"):  # fmt: skip
        with pytest.raises(DefinitionError): question({"query": text}, "postgres")
    assert question({"query": "SELECT 1 UNION SELECT 2"}, "postgres")
    assert question({"table": 'a"b.c; DROP TABLE d'}, "postgres") == 'SELECT * FROM "a""b"."c; DROP TABLE d"'


@pytest.fixture
def duck(tmp_path):
    with duckdb.connect(tmp_path / "shop.duckdb") as con:
        con.execute("""CREATE TABLE lines AS SELECT 170141183460469231731687303715884105::HUGEINT AS big, '6a2f41a3-c54c-4b8c-9a0e-5d4b7d9f6f01'::UUID AS id,
            12.35::DECIMAL(12, 2) AS amount, TIMESTAMPTZ '2024-03-01 08:05:00+08' AS paid, ['a', 'b'] AS tags, {'x': 1} AS extra,
            'sale'::ENUM('sale', 'return') AS kind, 7::UTINYINT AS n, INTERVAL 1 DAY AS span""")
    return tmp_path


def test_duckdb(duck, tmp_path):
    row, = fetched({"url": f"duckdb://{duck}/shop.duckdb", "table": "main.lines"}, tmp_path).to_pylist()
    assert row["amount"] == Decimal("12.35") and row["big"] == 170141183460469231731687303715884105
    assert row["paid"].isoformat() == "2024-03-01T00:05:00+00:00" and row["n"] == 7
    assert (row["id"], row["tags"], row["kind"], row["span"]) == ("6a2f41a3-c54c-4b8c-9a0e-5d4b7d9f6f01", "[a, b]", "sale", "1 day")
    with pytest.raises(MemtagError, match='"crad" not found'): fetch({"url": "duckdb://shop.duckdb", "query": "SELECT crad FROM lines"}, duck, duck)


def test_duckdb_in_another_zone(duck):
    text = f"import pyarrow.parquet as pq; from memtag_research.data.databases import fetch; r = {str(duck)!r}; " \
           "print(pq.read_table(fetch({'url': 'duckdb://shop.duckdb', 'query': 'SELECT paid, paid::VARCHAR AS said FROM lines'}, r, r)).to_pylist())"
    said = subprocess.run([sys.executable, "-c", text], env={**os.environ, "TZ": "Asia/Shanghai"}, capture_output=True, text=True, check=True)
    assert "2024-03-01 00:05:00+00" in said.stdout


def test_any_other_database_goes_through_ibis(duck, tmp_path, monkeypatch):
    "DuckDB stands in for one that has no way of its own."
    monkeypatch.setattr(databases, "_ENGINES", {})
    monkeypatch.setattr(ibis, "connect", lambda url, real=ibis.connect: real(f"duckdb://{duck}/shop.duckdb", read_only=True))
    row, = fetched({"url": "mysql://h/shop", "query": "SELECT id, amount, paid, kind, tags FROM lines"}, tmp_path).to_pylist()
    assert row["id"] == "6a2f41a3-c54c-4b8c-9a0e-5d4b7d9f6f01" and row["amount"] == Decimal("12.35") and row["tags"] == "[a, b]"


@pytest.mark.parametrize("url, told", [("postgre://h/shop", "Did you mean 'postgres'"), ("mysql://h/shop", r"pip install 'ibis-framework\[mysql\]'")])
def test_other_schemes_are_named(url, told, tmp_path):
    with pytest.raises(MemtagError, match=told): fetch({"url": url, "table": "a"}, tmp_path, tmp_path)


def test_sqlite_is_text_and_stays_as_it_was(tmp_path):
    with closing(sqlite3.connect(tmp_path / "till.sqlite")) as con:
        con.executescript("CREATE TABLE sales (card, amount REAL); INSERT INTO sales VALUES ('007', 12.35), (7, 0.1), (NULL, 17850)")
    before = (tmp_path / "till.sqlite").read_bytes()
    got = fetched({"url": "sqlite://till.sqlite", "table": "sales"}, tmp_path).to_pydict()
    assert got == {"card": ["007", "7", None], "amount": ["12.35", "0.1", "17850.0"]}
    assert (tmp_path / "till.sqlite").read_bytes() == before
    with pytest.raises(MemtagError, match="no such column: crad"): fetch({"url": "sqlite://till.sqlite", "query": "SELECT crad FROM sales"}, tmp_path, tmp_path)
    (tmp_path / "not.sqlite").write_text("this is no database, only text " * 40)
    with pytest.raises(MemtagError, match="is not a database"): fetch({"url": "sqlite://not.sqlite", "table": "sales"}, tmp_path, tmp_path)


def test_files_without_rows_in_use_or_not_text(duck, tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as con: con.executescript("CREATE TABLE t (x, y); CREATE TABLE b AS SELECT x'ff' AS z")
    for url in ("sqlite://a.sqlite", f"sqlite:///{tmp_path}/a.sqlite", f"sqlite:////{tmp_path}/a.sqlite"):
        got = fetched({"url": url, "table": "t"}, tmp_path)
        assert got.num_rows == 0 and got.schema.names == ["x", "y"]
    with pytest.raises(MemtagError, match="not UTF-8"): fetch({"url": "sqlite://a.sqlite", "table": "b"}, tmp_path, tmp_path)
    assert fetched({"url": f"duckdb://{duck}/shop.duckdb", "query": "SELECT n FROM lines WHERE false"}, tmp_path).schema.names == ["n"]
    with duckdb.connect(duck / "shop.duckdb"), pytest.raises(MemtagError, match="Close that connection first"):
        fetch({"url": "duckdb://shop.duckdb", "table": "lines"}, duck, duck)
    hold = f"import duckdb, sys; con = duckdb.connect({str(duck / 'shop.duckdb')!r}); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(MemtagError, match="open in another program"): fetch({"url": "duckdb://shop.duckdb", "table": "lines"}, duck, duck)
        other.stdin.close()
