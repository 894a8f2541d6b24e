"""SIGKILL at random moments of snapshots, refreshes, assignments, of dropping and of forgetting: nothing is half there, nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).parents[2]
KILLS = 60

# One process imports everything and forks a child for each command, so that a moment costs no import.
FORKER = """
import os, sys
sys.path.insert(0, {repo!r})
from datetime import date, timedelta
from memtag_research.data.privacy import forget
from memtag_research.data.workspace import open_workspace
from memtag_research.tags.catalogues import read_catalogue
from memtag_research.tags.given import assign
from memtag_research.tags.runs import refresh, take_snapshot
from memtag_research.tags.store import Store

CATALOGUE = read_catalogue('''
sources: {{orders: {{table: orders}}}}
metrics: {{orders_all: {{source: orders, agg: count, days: all}}}}
tags:
  bought: {{class: behaviour, kind: flag, when: orders_all > 0}}
  orders: {{class: behaviour, kind: number, metric: orders_all, refresh: monthly}}
  vip: {{class: value, kind: assigned, channels: [manual], precedence: [manual], values: [gold, black]}}
''')

def snapshot(arg): return take_snapshot(open_workspace({root!r}, threads=1), CATALOGUE, arg, force=True).run
def refreshed(arg): return refresh(open_workspace({root!r}, threads=1), CATALOGUE, arg, force=True).run
def assigned(arg):
    ws, (start, n) = open_workspace({root!r}, threads=1), map(int, arg.split(":"))
    who = ws.table("members").filter(lambda t: t.closed_date.isnull()).order_by("member_id").limit(1).execute().member_id[0]
    for i in range(n):
        assign(ws, CATALOGUE, "vip", who, "gold", reason=f"entry {{start + i}}", ts="2023-03-01")
        print("wrote", start + i, flush=True)
def dropped(arg):
    store, (day, _, which) = Store(open_workspace({root!r}, threads=1)), arg.partition(" ")
    return store.drop(day, store.snapshot(day).run if which else None)
def forgotten(arg): return forget({root!r}, arg).people if arg else forget({root!r}).people

print("ready", flush=True)
for command in sys.stdin:
    name, _, arg = command.strip().partition(" ")
    pid = os.fork()
    if pid == 0:
        try: dict(snapshot=snapshot, refresh=refreshed, assign=assigned, drop=dropped, forget=forgotten)[name](arg)
        except BaseException as e:
            print("failed", type(e).__name__, e, file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    print("pid", pid, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forker:
    """Runs a command in a child, and kills it after a while where asked to."""

    def __init__(self, root):
        code = FORKER.format(repo=str(REPO), root=str(root))
        self.process = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.said = []
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, command, kill_after=None) -> int:
        """Exit status: -9 when the child was killed, 0 when it ended well, 3 when it raised."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        pid, self.said = int(self._until("pid")), []
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)   # it may have ended before
        return int(self._until("ended"))

    def _until(self, word):
        while not (line := self.process.stdout.readline()).startswith(word): self.said.append(line.split()[-1])
        return line.split()[1]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def snapshots(root) -> dict:
    """Date → run of every snapshot that a reader sees, after comparing all of it with its checksums."""
    from memtag_research.data.workspace import open_workspace
    from memtag_research.tags.store import Store
    store = Store(open_workspace(root))
    assert [p for p in store.check() if not p.startswith("forgetting was interrupted")] == []
    seen = {day: store.snapshot(day) for day in store.dates()}
    for made in seen.values(): assert made.table().count().execute() == made.rows
    return {day: made.run for day, made in seen.items()}


def runs(root) -> set:
    return {p.name for p in (root / "tags").glob("as_of=*/run=*")}


def logged(root) -> list:
    """The reasons of all entries of the log, each once."""
    rows = [r for p in sorted((root / "tags/assigned").glob("*.parquet")) for r in pq.read_table(p).to_pylist()]
    entries = {r["entry"]: r["reason"] for r in rows}
    return sorted(int(reason.split()[-1]) for reason in entries.values())


def names(root, text) -> list:
    """Files of the workspace in which a text stands, the journal of an unfinished run apart."""
    found = []
    for path in (p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
        values = ["\n".join(map(str, c.to_pylist())) for c in pq.read_table(path).columns] if path.suffix == ".parquet" else []
        if text.encode() in path.read_bytes() or any(text in v for v in values): found.append(path.relative_to(root).as_posix())
    return found


def kill_while(fork, root, moments, command, longest, count):
    """Kill a command so often at random moments; (how often, how often a half run was left, how often a new one counted)."""
    hit = half = new = tries = 0
    while hit < count:
        tries += 1
        assert tries < 4 * count
        before, kept = snapshots(root), runs(root)
        hit += fork(command, moments.uniform(0, longest)) == -9
        half += bool(list((root / "tags").rglob(".new-*")))
        after = snapshots(root)
        assert kept <= runs(root) and set(before) <= set(after)          # none is lost
        new += after != before
    assert fork(command) == 0 and not list((root / "tags").rglob(".new-*"))  # the next run works, and sweeps
    return hit, half, new


def kill_drops(fork, root, moments, count):
    """Kill drops of a date, and of the run that counts; (how often, how often it had gone by then, how often files were left)."""
    day, hit, gone, left, tries = "2023-11-01", 0, 0, 0, 0
    assert fork(f"snapshot {day}") == 0
    long = timed(fork, f"drop {day}")
    while hit < count:
        tries += 1
        assert tries < 6 * count
        while len(list((root / f"tags/as_of={day}").glob("run=*"))) < 2: assert fork(f"snapshot {day}") == 0
        before, kept = snapshots(root), runs(root)
        hit += fork(f"drop {day}{' counting' if tries % 2 else ''}", moments.uniform(.3 * long, 1.1 * long)) == -9
        left += bool(list((root / "tags").rglob(".new-*")))
        after, lost = snapshots(root), kept - runs(root)                 # what is seen is whole
        mine = {d: run for d, run in after.items() if str(d) == day}
        assert {d: run for d, run in after.items() if str(d) != day} == {d: run for d, run in before.items() if str(d) != day}
        if tries % 2: assert len(mine) == 1 and len(lost) <= 1           # another run of the date counts, or still this one
        else: assert (len(mine), len(lost)) in ((1, 0), (0, 2))          # all of the date, or nothing of it
        gone += bool(lost)
    if (root / f"tags/as_of={day}").exists(): assert fork(f"drop {day}") == 0
    return hit, gone, left


def timed(fork, command) -> float:
    begun = time.monotonic()
    assert fork(command) == 0
    return time.monotonic() - begun


@pytest.mark.proof(name="kill_tags", covers=["memtag_research/core.py", "memtag_research/data/privacy.py", "memtag_research/data/workspace.py",
                                             "memtag_research/tags/given.py", "memtag_research/tags/runs.py",
                                             "memtag_research/tags/snapshots.py", "memtag_research/tags/store.py"])
def test_tags_killed_at_any_moment_are_whole(tmp_path, record_proof):
    from memtag_research.data.simulate import make_programme
    moments, root, begun = random.Random(20231001), tmp_path / "ws", time.monotonic()
    ws = make_programme(150, "2023-01-01", "2024-01-01", seed=3, directory=root).workspace
    people = sorted(set(ws.table("order_lines").member_id.to_pyarrow().to_pylist()) - {None})
    fork = Forker(root)

    long = max(timed(fork, "snapshot 2023-06-01"), timed(fork, "snapshot 2023-06-01"))
    shots = kill_while(fork, root, moments, "snapshot 2023-07-01", long, 20)
    long = timed(fork, "refresh 2023-08-10")
    freshes = kill_while(fork, root, moments, "refresh 2023-08-20", long, 10)

    drops = kill_drops(fork, root, moments, 10)
    assert fork("snapshot 2023-11-01") == 0 and not list((root / "tags").rglob(".new-*"))

    struck, told = 0, []
    for n in range(25):                                   # more than 64 files, so that some kills fall on the many that become one
        if struck == 10: break
        struck += fork(f"assign {100 * n}:12", moments.uniform(0.05, 1.2)) == -9
        told += map(int, fork.said)
        log = logged(root)
        assert set(told) <= set(log) and len(log) == len(set(log))       # what was said to be written is there, once
    assert fork("assign 5000:1") == 0 and 5000 in logged(root)

    hits = unfinished = 0
    targets, long = moments.sample(people, 30), None
    for who in targets:
        if hits == 10: break
        if long is None:                                  # how long it takes, on one who is not counted
            long = timed(fork, f"forget {next(p for p in people if p not in targets)}")
        status = fork(f"forget {who}", moments.uniform(0, long))
        hits += status == -9
        unfinished += (root / "data/.forgetting.json").exists()
        snapshots(root)                                   # whole at any moment, and so are the tables
        assert json.loads((root / "data/current/manifest.json").read_text())["tables"]
        if (root / "data/.forgetting.json").exists(): assert fork("forget ") == 0
        elif names(root, who): assert fork(f"forget {who}") == 0          # killed before it had begun
        assert names(root, who) == []
    fork.close()

    kills = shots[0] + freshes[0] + drops[0] + struck + hits
    assert kills >= KILLS and shots[1] + freshes[1] >= 5 and unfinished >= 3   # the kills did strike
    record_proof({"kills": kills, "in snapshots": shots[0], "in refreshes": freshes[0], "in drops": drops[0], "in assignments": struck,
                  "in forgetting": hits, "gone by then": drops[1],
                  "left a half run": shots[1] + freshes[1], "left forgetting unfinished": unfinished,
                  "a newer run counted by then": shots[2] + freshes[2], "half snapshots seen": 0, "snapshots or entries lost": 0,
                  "forgotten and still found": 0, "seconds": round(time.monotonic() - begun)})


@pytest.mark.proof(name="two_writers_of_tags", covers=["memtag_research/data/privacy.py", "memtag_research/data/workspace.py",
                                                       "memtag_research/tags/given.py", "memtag_research/tags/runs.py",
                                                       "memtag_research/tags/snapshots.py", "memtag_research/tags/store.py"])
def test_two_writers_at_once(tmp_path, record_proof):
    from memtag_research.data.simulate import make_programme
    root = tmp_path / "ws"
    make_programme(150, "2023-01-01", "2024-01-01", seed=3, directory=root)
    one, other = Forker(root), Forker(root)
    done = refused = 0
    for n in range(10):
        for fork in (one, other):
            fork.process.stdin.write(f"snapshot 2023-0{n % 5 + 3}-01\n")
            fork.process.stdin.flush()
        for fork in (one, other):
            fork._until("pid")
            status = int(fork._until("ended"))
            assert status in (0, 3)
            done, refused = done + (status == 0), refused + (status == 3)
    one.close()
    other.close()
    assert len(runs(root)) == done and len(snapshots(root)) == 5
    assert done >= 10 and refused >= 1
    record_proof({"snapshots asked for by two processes": 20, "made": done, "refused with a message": refused, "runs on disk": len(runs(root)), "damaged": 0})
