"""Notebooks and package in step: `check` compares, `edit` opens notebooks as text, `sync` brings the text back.

    python scripts/notebooks.py check
    python scripts/notebooks.py edit measures/03_rfm        # nbs/measures/03_rfm.ipynb → .pct/measures/03_rfm.py
    python scripts/notebooks.py sync [measures/03_rfm]      # every edited text, or the named ones (new ones too)
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "memtag_research"


def rebuilt(root: Path, into: Path) -> Path:
    "A copy of `root` in `into` with every notebook cleaned and the package exported afresh; `root` stays as it is."
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "llms.txt")
    for folder in ("nbs", PACKAGE):
        shutil.copytree(root / folder, into / folder, ignore=skip)
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(root / name, into / name)
    for module in (into / PACKAGE).rglob("*.py"):
        if module.name != "__init__.py":
            module.unlink()  # so that a module without a notebook shows
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # nbdev writes no index when this is set
    script = "import nbdev.clean, nbdev.doclinks; nbdev.clean.nbdev_clean(); nbdev.doclinks.nbdev_export()"
    subprocess.run([sys.executable, "-c", script], cwd=into, env=env, check=True)
    return into


def texts(root: Path) -> dict[str, str]:
    "Path → text of the notebooks and modules that have to agree."
    files = [*(root / "nbs").rglob("*.ipynb"), *(root / PACKAGE).rglob("*.py")]
    return {
        f.relative_to(root).as_posix(): f.read_text("utf-8")
        for f in sorted(files)
        if not {"__pycache__", ".ipynb_checkpoints"} & set(f.parts)
    }


def differences(root: Path) -> list[str]:
    "One line for each file that a fresh export or clean would change."
    with tempfile.TemporaryDirectory() as tmp:
        now, fresh = texts(root), texts(rebuilt(root, Path(tmp)))
    lines = []
    for name in sorted(now.keys() | fresh.keys()):
        if name not in fresh:
            lines.append(f"{name}: no notebook exports it; write it in a notebook, or delete it")
        elif name not in now:
            lines.append(f"{name}: not exported yet")
        elif now[name] != fresh[name]:
            lines.append(f"{name}: " + ("not clean" if name.endswith(".ipynb") else "differs from its notebook"))
    return lines


def untagged_reports(root: Path) -> list[str]:
    "Report notebooks whose first code cell is not the one tagged `parameters` (papermill would run the defaults)."
    lines = []
    for path in sorted((root / "nbs/reports").glob("*.ipynb")):
        cells = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
        tagged = [i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])]
        if tagged != [0]:
            lines.append(f"nbs/reports/{path.name}: its first code cell, and no other, needs the tag `parameters`")
    return lines


def version_mismatch(root: Path) -> list[str]:
    "settings.ini and the package name one version."
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    stated = settings["DEFAULT"]["version"]
    init = re.search(r'^__version__ = "(.+)"$', (root / PACKAGE / "__init__.py").read_text("utf-8"), re.M)
    found = init.group(1) if init else "nothing"
    return [] if found == stated else [f"settings.ini says version {stated}, {PACKAGE}/__init__.py says {found}"]


def check(root: Path = ROOT) -> list[str]:
    "Everything that is out of step in `root`, one line each; nothing is changed."
    return differences(root) + untagged_reports(root) + version_mismatch(root)


def pair(name: str, root: Path) -> tuple[Path, Path]:
    "The text and the notebook that `measures/03_rfm` names."
    name = name.removeprefix("nbs/").removesuffix(".ipynb")
    return root / ".pct" / f"{name}.py", root / "nbs" / f"{name}.ipynb"


def edit(names: list[str], root: Path = ROOT) -> None:
    "Write notebooks as py:percent text."
    import jupytext

    for name in names:
        text, notebook = pair(name, root)
        if text.exists() and text.stat().st_mtime > notebook.stat().st_mtime:
            sys.exit(f"{text.relative_to(root)} has edits that are not in the notebook: `make sync`, or delete it.")
        text.parent.mkdir(parents=True, exist_ok=True)
        jupytext.write(jupytext.read(notebook), text, fmt="py:percent")
        os.utime(text, ns=(notebook.stat().st_mtime_ns,) * 2)  # as old as its notebook until it is edited
        print(text.relative_to(root))


def write_notebook(text: Path, notebook: Path) -> None:
    "Bring edited text into its notebook: ids, tags and outputs of cells that stay are kept."
    import jupytext
    from jupytext.combine import combine_inputs_with_outputs

    new = jupytext.read(text, fmt="py:percent")
    if notebook.exists():
        new = combine_inputs_with_outputs(new, jupytext.read(notebook), fmt="py:percent")
    else:
        new.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    notebook.parent.mkdir(parents=True, exist_ok=True)
    jupytext.write(new, notebook)


def sync(names: list[str], root: Path = ROOT) -> None:
    "Edited text → notebooks → cleaned and exported; then the changed notebooks are run."
    edited = [text.relative_to(root / ".pct").as_posix().removesuffix(".py") for text in sorted(root.glob(".pct/**/*.py"))]
    pairs = [pair(name, root) for name in names or edited]
    if not names:
        pairs = [(t, nb) for t, nb in pairs if nb.exists() and t.stat().st_mtime > nb.stat().st_mtime]
    for text, notebook in pairs:
        write_notebook(text, notebook)
    with tempfile.TemporaryDirectory() as tmp:
        now, fresh = texts(root), texts(rebuilt(root, Path(tmp)))
    for name in [n for n in fresh if now.get(n) != fresh[n]]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(fresh[name], "utf-8")
        print("updated", name)
    for text, notebook in pairs:
        os.utime(text, ns=(notebook.stat().st_mtime_ns,) * 2)
        if notebook.parent != root / "nbs/reports":
            subprocess.run([Path(sys.executable).with_name("nbdev-test"), notebook], cwd=root, check=True)


def main(command: str = "", *names: str) -> None:
    if command == "check":
        if lines := check():
            sys.exit("Out of step (`make sync` mends what it can):\n" + "\n".join(f"  {line}" for line in lines))
        print("Notebooks and package are in step.")
    elif command == "edit" and names:
        edit(list(names))
    elif command == "sync":
        sync(list(names))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
