"""SIGKILL at random moments of a run and of its publication: what is served stays whole, and of one version."""

import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import psutil
import pytest

REPO = Path(__file__).parents[2]
PUBLICATIONS, RUNS = 50, 12  # random moments in the publishing step alone, and in whole runs with their kernels

# One process imports everything and forks a child for each command, so that a moment costs no import.
FORKER = """
import os, sys, time
sys.path.insert(0, {repo!r})
import nbconvert, papermill
from memtag_research.reports import publish, runner
runner.code_hash = lambda: "code"

def publish_for_ever():
    job = runner._prepare("numbers", {{}}, "data", "2017-12", "en", {out!r}, {source!r})
    record = {{**job.record, "packages": {{}}, "commit": None, "finished": runner._utc(), "seconds": 1, "run_id": "RUN"}}
    page = publish.render_page("<p>" + "one " * 100_000, {{"title": "Numbers"}}, "en", record)
    while True:
        with publish.locked(job.target.versions/f"{{job.target.variant}}.lock"):
            version = publish.new_version(job.target)
            (version/"tables").mkdir()
            for n in range(12): (version/"tables"/f"{{n}}.csv").write_text(version.name * 4000)
            (version/"index.html").write_text(page.replace("RUN", version.name))
            publish.publish(job.target, version, {{**record, "run_id": version.name}})
        publish.write_index({out!r})

def run_once():
    done = runner.run_report("numbers", {{}}, fingerprint="data", period="2017-12", lang="en", out={out!r},
                             source={source!r}, force=True, wait_seconds=5)
    assert not done.skipped

print("ready", flush=True)
for command in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try: dict(publish=publish_for_ever, run=run_once)[command.strip()]()
        except BaseException as e:
            print(type(e).__name__, e, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def write_report(path):
    new = nbformat.v4
    parameters = new.new_code_cell('period: str = "2017-12"\noutput_dir: str = ""', metadata=dict(tags=["parameters"]))
    work = ('from pathlib import Path; from IPython.display import HTML, display; import time\n'
            '(Path(output_dir)/"tables").mkdir(); (Path(output_dir)/"tables"/"n.csv").write_text("1,2\\n" * 9)\n'
            'time.sleep(.3); display(HTML("<p class=\'lead\'>one</p>"))')
    nbformat.write(new.new_notebook(cells=[new.new_markdown_cell("# Numbers"), parameters,
                                           new.new_code_cell(work)]), path)
    return path


def served(out):
    """The run that is served, after checking its every file, its page and the list of reports."""
    folder = (out / "numbers/2017-12/en-44136f").resolve(strict=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {*manifest["files"], "manifest.json"}
    for name, file in manifest["files"].items():
        assert (folder / name).stat().st_size == file["bytes"], name
    page = (folder / "index.html").read_text()
    assert page.rstrip().endswith("</html>") and f'content="{manifest["run_id"]}"' in page
    assert folder.name == manifest["run_id"]
    listed = (out / "index.html").read_text()
    assert listed.rstrip().endswith("</html>") and "numbers/2017-12/en-44136f/index.html" in listed
    return manifest["run_id"]


class Forker:
    """Starts a command in a child and ends it, at once or after a while."""

    def __init__(self, source, out):
        code = FORKER.format(repo=str(REPO), source=str(source), out=str(out))
        self.process = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, command, kill_after=None) -> int:
        """Exit status: -9 when the child was killed, 0 when it ended well before that."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        child = psutil.Process(int(self.process.stdout.readline()))
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(psutil.NoSuchProcess):  # it was done before
                child.kill()
        status = int(self.process.stdout.readline().split()[1])
        assert status in (0, -9), f"{command} failed of itself"
        return status

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.mark.proof(name="kill_reports", covers=["memtag_research/core.py", "memtag_research/reports/parameters.py",
                                                "memtag_research/reports/publish.py", "memtag_research/reports/runner.py",
                                                "memtag_research/reports/page.html"])
def test_a_report_killed_at_any_moment_is_served_whole(tmp_path, record_proof):
    moments = random.Random(20171231)
    out, begun = tmp_path / "reports", time.monotonic()
    fork = Forker(write_report(tmp_path / "numbers.ipynb"), out)
    versions = out / "numbers/2017-12/.versions"
    assert fork("run") == 0
    started = time.monotonic()
    assert fork("run") == 0
    whole_run = time.monotonic() - started
    killed = mid_version = replaced = 0
    for command, longest in [("publish", .6)] * PUBLICATIONS + [("run", whole_run)] * RUNS:
        before = served(out)
        killed += fork(command, kill_after=moments.uniform(0, longest)) == -9
        after = served(out)
        replaced += before != after
        mid_version += any(p.name > after for p in versions.glob("en-44136f-*"))
    assert fork("run") == 0
    assert served(out) > after
    left = sorted(p.name for p in versions.iterdir())
    fork.close()
    assert len(left) == 3 and left[2] == "en-44136f.lock" and after in left  # one lock, the new version, the one before
    assert killed >= PUBLICATIONS and mid_version >= 20 and replaced >= 10  # the kills did strike
    record_proof({"kills": killed, "in the publishing step": PUBLICATIONS, "in whole runs": killed - PUBLICATIONS,
                  "left a half version": mid_version, "served a newer version by then": replaced, "served broken": 0,
                  "seconds": round(time.monotonic() - begun)})
