"""Running and publishing reports: what is refused, what is kept, and what a reader sees meanwhile."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from memtag_research.core import DefinitionError, MemtagError, ParameterError
from memtag_research.reports import publish as pub
from memtag_research.reports import runner
from memtag_research.reports.runner import CellFailure, PublishError, run_report

REPO = Path(__file__).parents[1]

PARAMETERS = """period: str = "2017-12"
lang: str = "en"      # one of: en, zh
n: int = 3            # from 1 to 9
workspace: str = "."
output_dir: str = ""  # filled by the runner"""


def write_report(path, *cells, tags=("parameters",)):
    """A report notebook: parameters, a lead sentence, then `cells` under a heading."""
    new = nbformat.v4
    lead = ('from IPython.display import HTML\nfrom pathlib import Path\n'
            'if output_dir: (Path(output_dir)/"tables").mkdir(); (Path(output_dir)/"tables"/"n.csv").write_text(str(n))\n'
            'Path("stray.txt").write_text("relative path")\nHTML(f\'<p class="lead">{n} squared is {n * n}</p>\')')
    nb = new.new_notebook(cells=[
        new.new_markdown_cell("# Squares\n> One number."),
        new.new_code_cell(PARAMETERS, metadata=dict(tags=list(tags))), new.new_code_cell(lead),
        new.new_markdown_cell("## Detail"), *map(new.new_code_cell, cells)])
    nbformat.write(nb, path)
    return path


def run(source, out, **options):
    given = dict(fingerprint="data-1", period="2017-12", lang="en", out=out, source=source) | options
    return run_report("squares", given.pop("params", {}), **given)


def served(out, variant="en-44136f"):
    """The served page and manifest, after checking that they are whole and of one version."""
    folder = (Path(out) / "squares" / "2017-12" / variant).resolve(strict=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, file in manifest["files"].items():
        assert (folder / name).stat().st_size == file["bytes"], name
    page = (folder / "index.html").read_text()
    assert page.rstrip().endswith("</html>") and manifest["run_id"] in page and folder.name == manifest["run_id"]
    return page, manifest


SCRIPT = """import json, sys
sys.path.insert(0, {repo!r})
from memtag_research.reports import runner
runner.code_hash = lambda: "code"
done = runner.run_report("squares", {{}}, fingerprint="data-1", period="2017-12", lang="en", out={out!r}, source={source!r},
                  **json.loads({options!r}))
print("skipped" if done.skipped else "ran")
"""


def start(source, out, env=None, **options):
    """The same run in a process of its own."""
    code = SCRIPT.format(repo=str(REPO), out=str(out), source=str(source), options=json.dumps(options))
    return subprocess.Popen([sys.executable, "-c", code], env=env, cwd=out.parent, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(autouse=True)
def unchanging_code(request, monkeypatch):
    """The package may be edited while its tests run; only the tests of the hash itself look at it."""
    if "hash" not in request.node.name:
        monkeypatch.setattr(runner, "code_hash", lambda: "code")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A report published by a bare environment on a machine whose registered `python3` kernel is broken."""
    folder = tmp_path_factory.mktemp("a {brace} and 中文")
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(dict(argv=["/bin/false"], display_name="x", language="python")))
    source = write_report(folder / "squares.ipynb")
    process = start(source, folder / "reports", env={"JUPYTER_PATH": str(folder / "jupyter")})
    said, errors = process.communicate(timeout=300)
    assert (process.returncode, said, errors) == (0, "ran\n", "")
    return folder


@pytest.fixture
def copied(published, tmp_path):
    """A copy of the published report that a test may spoil: notebook and folder of reports."""
    shutil.copytree(published / "reports", tmp_path / "reports", symlinks=True)
    return shutil.copy(published / "squares.ipynb", tmp_path / "squares.ipynb"), tmp_path / "reports"


def test_a_bare_environment_publishes_silently(published):
    out = published / "reports"
    page, manifest = served(out)
    assert "3 squared is 9" in page and "HTML(f" not in page and "One number." not in page
    assert manifest["parameters"] == {"period": "2017-12", "lang": "en", "n": 3}
    assert sorted(manifest["files"]) == ["index.html", "report.ipynb", "tables/n.csv"]
    assert [c["heading"] for c in manifest["cells"]] == ["Squares"] * 3
    notebook = (out / "squares/2017-12/en-44136f/report.ipynb").read_text()
    assert 'output_dir = \\"\\"' in notebook and ".versions" not in notebook
    assert "squares/2017-12/en-44136f/index.html" in (out / "index.html").read_text()
    assert not list(published.rglob("stray.txt"))


@pytest.mark.parametrize(("params", "message"), [
    ({"m": 1}, "has no parameter 'm'"), ({"N": 1}, "Did you mean 'n'"), ({"n": "three"}, "n must be int, not 'three'"),
    ({"n": 10}, "from 1 to 9, not 10"), ({"output_dir": "/x"}, "filled by the runner"), ({"lang": "zh"}, "given twice")])
def test_bad_parameters_are_refused_before_anything_is_written(tmp_path, params, message):
    source = write_report(tmp_path / "squares.ipynb")
    with pytest.raises(ParameterError, match=message):
        run(source, tmp_path / "reports", params=params)
    assert not (tmp_path / "reports").exists()


def test_a_notebook_without_the_tag_is_refused(tmp_path):
    source = write_report(tmp_path / "squares.ipynb", tags=())
    with pytest.raises(DefinitionError, match="0 cells are tagged"):
        run(source, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_an_unknown_report_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="There is no report 'squares'"):
        run(None, tmp_path / "reports")


def test_the_same_inputs_are_skipped_until_forced(copied, monkeypatch):
    source, out = copied
    before = served(out)
    assert run(source, out).skipped and served(out) == before
    monkeypatch.chdir(out)  # where the workspace lies says nothing about its data
    assert run(source, out, params=dict(workspace="elsewhere")).skipped
    forced = run(source, out, force=True)
    assert not forced.skipped and served(out)[1]["run_id"] != before[1]["run_id"]
    assert len([p for p in (out / "squares/2017-12/.versions").iterdir() if p.is_dir()]) == 2


@pytest.mark.parametrize("change", ["data", "parameter", "notebook", "code", "damage"])
def test_whatever_changes_the_answer_runs_again(copied, monkeypatch, change):
    source, out = copied
    ran = []
    monkeypatch.setattr(runner, "_produce", lambda *a: ran.append(a) or {})
    options = {}
    if change == "data":
        options = dict(fingerprint="data-2")
    if change == "parameter":
        options = dict(params=dict(n=4))
    if change == "notebook":
        write_report(source, "n + 1")
    if change == "code":
        monkeypatch.setattr(runner, "code_hash", lambda: "other")
    if change == "damage":
        (out / "squares/2017-12/en-44136f/tables/n.csv").unlink()
    run(source, out, **options)
    assert len(ran) == 1


def test_a_changed_line_of_code_changes_the_hash(tmp_path, monkeypatch):
    import memtag_research

    package = tmp_path / "memtag_research"
    shutil.copytree(Path(memtag_research.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(memtag_research, "__file__", str(package / "__init__.py"))
    before = runner.code_hash()
    (package / "_modidx.py").write_text("d = {1: 2}")
    assert runner.code_hash() == before
    (package / "core.py").write_text((package / "core.py").read_text() + "\nX = 1\n")
    assert runner.code_hash() != before


def test_a_failing_cell_is_named_and_the_old_report_stays(copied):
    source, out = copied
    before = served(out)
    write_report(source, "total = 1", "total / 0")
    with pytest.raises(CellFailure) as failure:
        run(source, out)
    assert failure.value.exit_code == 1
    assert re.search(r"failed at cell In \[5\], under “Detail”: ZeroDivisionError: division by zero", str(failure.value))
    kept = next(out.glob("_failed/squares/2017-12/*"))
    assert f"{kept}/report.ipynb" in str(failure.value) and oct(kept.stat().st_mode)[-3:] == "700"
    assert "ZeroDivisionError" in (kept / "report.ipynb").read_text()
    assert json.loads((kept / "manifest.json").read_text())["status"] == "failed"
    assert served(out) == before
    assert len([p for p in (out / "squares/2017-12/.versions").iterdir() if p.is_dir()]) == 1


def test_a_kernel_that_dies_is_a_failure_of_its_cell(copied):
    source, out = copied
    before = served(out)
    write_report(source, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(CellFailure, match=r"cell In \[4\], under “Detail”: DeadKernelError"):
        run(source, out)
    assert served(out) == before and list(out.glob("_failed/squares/2017-12/*/report.ipynb"))


def test_a_page_that_loads_from_outside_is_not_published(copied):
    source, out = copied
    before = served(out)
    write_report(source, "HTML('<img src=\"https://example.org/pixel.png\">')")
    with pytest.raises(PublishError, match="from outside"):
        run(source, out)
    assert served(out) == before and list(out.glob("_failed/squares/2017-12/*/report.ipynb"))


def test_of_two_runs_at_once_one_waits_and_then_has_nothing_to_do(tmp_path):
    source = write_report(tmp_path / "squares.ipynb", "import time; time.sleep(2)")
    runs = [start(source, tmp_path / "reports") for _ in range(2)]
    said, errors = zip(*(r.communicate(timeout=300) for r in runs), strict=True)
    assert sorted(said) == ["ran\n", "skipped\n"] and [r.returncode for r in runs] == [0, 0]
    waited, ran = errors if said[0] == "skipped\n" else errors[::-1]
    runner_pid = runs[said.index("ran\n")].pid
    assert f"Waiting for process {runner_pid} on" in waited and ran == ""
    served(tmp_path / "reports")


HOLD = """import sys, time
sys.path.insert(0, {repo!r})
from memtag_research.reports.publish import locked
with locked({path!r}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_outlives_nobody(tmp_path):
    path = tmp_path / "x.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD.format(repo=str(REPO), path=str(path))], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    heard = []
    with pytest.raises(PublishError, match=f"published by process {holder.pid} on .* since 20"):
        with pub.locked(path, wait_seconds=.3, notice=heard.append):
            pass
    assert len(heard) == 1
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads(path.read_text())["pid"] == holder.pid  # the dead process's text is still there
    with pub.locked(path, wait_seconds=0):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def publish_toy(target, text):
    """What a run does after its notebook: render, write, publish, list."""
    version = pub.new_version(target)
    manifest = dict(run_id=version.name, report=target.report, period=target.period, lang="en", finished=version.name,
                    package_version="0", fingerprint="0", notebook_sha256="0", parameters={}, packages={}, seconds=0)
    page = pub.render_page(text, dict(title="Toy"), "en", manifest)
    (version / "index.html").write_text(page)
    pub.publish(target, version, manifest)
    pub.write_index(target.out)


FAULTS = [(pub, "_write"), (pub, "_write_manifest"), (pub, "_sync"), (os, "symlink"), (os, "replace"), (os, "fsync")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_any_one_step_loses_nothing(tmp_path, monkeypatch, code):
    """Every write, sync, link and swap of a publication fails once; a whole report is served after each."""
    target = pub.report_target(tmp_path, "squares", "2017-12", "en", {})
    publish_toy(target, "first")
    refused = step = 0
    while True:
        step += 1
        with monkeypatch.context() as patch:
            calls = iter(range(1, 1000))
            for owner, name in FAULTS:
                def fail(*args, real=getattr(owner, name), calls=calls, step=step, **kw):
                    if next(calls) == step:
                        raise OSError(code, os.strerror(code), args[0])
                    return real(*args, **kw)
                patch.setattr(owner, name, fail)
            try:
                with pub.disk_errors(tmp_path):
                    publish_toy(target, f"step {step}")
            except PublishError as e:
                assert os.strerror(code) in str(e)
                refused += 1
            last = next(calls) <= step
        page, _ = served(tmp_path)
        assert "first" in page or "step" in page
        assert pub.check_writable(tmp_path)
        if last:
            break
    assert refused >= 12  # two manifests and pages, their syncs, link, swap, index
    publish_toy(target, "at last")
    assert "at last" in served(tmp_path)[0]
    assert len(list(target.versions.iterdir())) == 2 and len(list(tmp_path.glob(".index-*"))) == 0


def test_a_target_that_takes_no_file_is_refused_before_the_run(tmp_path, monkeypatch):
    source = write_report(tmp_path / "squares.ipynb", "1/0")
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="Not a directory"):
        run(source, tmp_path / "file" / "reports")

    def refuse(path, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    monkeypatch.setattr(pub, "_write", refuse)
    with pytest.raises(PublishError, match="Read-only file system"):
        run(source, tmp_path / "reports")
    assert list((tmp_path / "reports").iterdir()) == []


def test_somebody_elses_index_is_not_overwritten(tmp_path):
    source = write_report(tmp_path / "squares.ipynb")
    (tmp_path / "index.html").write_text("<h1>Mine</h1>")
    with pytest.raises(PublishError, match="was not made by memtag"):
        run(source, tmp_path)
    assert (tmp_path / "index.html").read_text() == "<h1>Mine</h1>"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_fills_up_during_the_run(copied, small_disk):
    source, reports = copied
    out = small_disk / "reports"
    shutil.copytree(reports, out, symlinks=True)
    before = served(out)
    write_report(source, "print('x' * 3_000_000)")
    with pytest.raises(PublishError, match="No space left on device"):
        run(source, out)
    assert served(out) == before
    write_report(source)
    assert not run(source, out, force=True).skipped


def test_a_read_only_disk(copied, small_disk):
    source, reports = copied
    shutil.copytree(reports, small_disk / "reports", symlinks=True)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    before = served(small_disk / "reports")
    with pytest.raises(PublishError, match="Read-only file system"):
        run(source, small_disk / "reports", force=True)
    assert served(small_disk / "reports") == before


def test_readers_are_served_whole_pages_while_versions_are_swapped(tmp_path):
    target = pub.report_target(tmp_path, "squares", "2017-12", "en", {})
    publish_toy(target, "0")
    stop, reads, broken = threading.Event(), [], []

    def read():
        while not stop.is_set():
            try:
                page = (target.link / "index.html").read_text()
                reads.append(page.count("</html>"))
            except OSError as e:
                broken.append(e)
            time.sleep(.0005)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for r in readers:
        r.start()
    for n in range(40):
        publish_toy(target, f"{n} " * 20000)
    stop.set()
    for r in readers:
        r.join()
    assert broken == [] and set(reads) == {1} and len(reads) > 40


def test_what_a_killed_run_left_is_cleared_by_the_next(copied):
    out = copied[1]
    versions = out / "squares/2017-12/.versions"
    half = versions / "en-44136f-20990101T000000000000Z-dead"
    half.mkdir()
    (half / "report.ipynb").write_text("{")
    (versions / "en-44136f-20990101T000000000000Z-dead.link").symlink_to("nowhere")
    other = versions / "zh-44136f-20990101T000000000000Z-dead"
    other.mkdir()  # of another target, perhaps running now
    pub.new_version(pub.report_target(out, "squares", "2017-12", "en", {}))  # before its notebook runs
    assert not half.exists() and other.exists() and not list(versions.glob("*.link"))


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(MemtagError, match=r"needs papermill: pip install 'memtag_research\[reports\]'"):
        run(write_report(tmp_path / "squares.ipynb"), tmp_path / "reports")


def test_importing_the_runner_loads_nothing_heavy():
    code = ("import sys, memtag_research.reports.runner\n"
            "print({m.split('.')[0] for m in sys.modules} & {'papermill', 'nbconvert', 'jinja2', 'nbformat', 'IPython', "
            "'jupyter_client', 'pandas', 'matplotlib'})")
    said = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert said == "set()\n"


def test_progress_counts_every_cell_once(tmp_path):
    seen, begun = [], time.monotonic()
    run(write_report(tmp_path / "squares.ipynb", "1", "2"), tmp_path / "reports", progress=lambda *step: seen.append(step))
    assert [s[0] for s in seen] == [1, 2, 3, 4, 5] and {s[1] for s in seen} == {5}
    assert seen[-1][2] == "Detail" and 0 < seen[0][3] <= seen[-1][3] < time.monotonic() - begun
