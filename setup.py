"""Reads settings.ini: name, version, requirements, extras and scripts stand there once."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf-8")
s = cfg["DEFAULT"]


def lines(key):
    return [line.strip() for line in s[key].splitlines() if line.strip()]


extras = {}
for line in lines("extras"):
    name, _, needs = line.partition(":")
    extras[name] = [need.strip() for need in needs.split(";")]

# The report notebooks and the shipped data have one source outside the package; the wheel carries them inside.
mapped = {
    "memtag_research.reports.notebooks": "nbs/reports",
    "memtag_research.data.shipped": "data/shipped",
}

setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=s["author"],
    license=s["license"],
    python_requires=">=" + s["min_python"],
    packages=find_packages(include=["memtag_research", "memtag_research.*"]) + list(mapped),
    package_dir=mapped,
    package_data={"": ["*.yaml", "mappings/*.yaml", "*.html", "*.css", "*.ipynb", "*.parquet", "*.md", "own_files/*/*"]},
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": lines("console_scripts")},
)
