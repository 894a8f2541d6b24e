"""Proofs that stand: what each covers, a hash of that, and the figures that it found.

A proof is a test marked `proof(name=…, covers=[globs], data=[globs or "package:<name>"])`. Its figures lie in
docs/proofs/<name>.json with the hash of its own file and of everything that it covers; while that hash stands the
proof is skipped. To prove again without a change, delete the file.
"""

import ast
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/proofs"


def matches(glob: str) -> list[Path]:
    "Files under the repository that `glob` names; none is an error, for a dead glob proves nothing."
    if not (files := sorted(f for f in ROOT.glob(glob) if f.is_file())):
        raise ValueError(f"The proof covers {glob!r}, and no file has that name.")
    return files


def proof_hash(test_file: Path, covers: list[str], data: list[str]) -> str:
    "sha256 over the proof's own file, every covered file, data file and named package version."
    lines = [f"{item} {version(item.removeprefix('package:'))}" for item in data if item.startswith("package:")]
    globs = [*covers, *(item for item in data if not item.startswith("package:"))]
    files = {Path(test_file).resolve(), *(f for glob in globs for f in matches(glob))}
    for f in sorted(files):
        lines.append(f"{f.relative_to(ROOT).as_posix()} {hashlib.sha256(f.read_bytes()).hexdigest()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def proofs() -> dict[str, dict]:
    "Every committed proof by name."
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def write(name: str, entry: dict) -> None:
    "Write one proof and the page that lists them all."
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(entry, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (FOLDER / "README.md").write_text(page(proofs()), "utf-8")


def page(entries: dict[str, dict]) -> str:
    "The committed proofs as a table to read."
    lines = [
        "# Proofs",
        "",
        "Written by `make prove`; each stands while its hash does (the code and data that it covers are in its file).",
        "",
        "| proof | figures | proved on | seconds |",
        "|---|---|---|---:|",
    ]
    for name, entry in entries.items():
        figures = "; ".join(f"{key}: {value}" for key, value in entry["figures"].items()).replace("|", "\\|")
        lines.append(f"| [{name}]({name}.json) | {figures} | {entry['proved_on']} | {entry['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def declared(folder: Path = ROOT / "tests/proofs") -> list[tuple[str, str]]:
    "(name, test) of each proof that the test files mark, read without importing them."
    found = []
    for path in sorted(folder.glob("test_*.py")):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            for mark in getattr(function, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.proof":
                    name = next(k.value.value for k in mark.keywords if k.arg == "name")
                    found.append((name, f"{path.name}::{function.name}"))
    return found
