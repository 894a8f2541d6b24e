"""Writes the small messy files of the tutorials `01` (data/shipped/own_files): an invented shop's members, tills and market place.

    .venv/bin/python scripts/make_samples.py

Everybody in them is invented (`make_programme`), phones included. The files are shipped as they are; run this only to change them,
and change the numbers in the tutorials `01` with them.
"""

import shutil
import tempfile
from pathlib import Path

import pandas as pd

from memtag_research.data.simulate import make_programme

OUT = Path(__file__).resolve().parents[1] / "data/shipped/own_files"
NAMES = {   # what the generator calls them → what they are shipped as; encoding, delimiter and word for a total of the tills' files
    "zh": {"会员.xlsx": "会员.xlsx", "天猫订单.csv": "天猫订单.csv", "tills": ("订单_*.csv", "订单_上半年.csv", "gb18030", ",", "合计")},
    "en": {"members.xlsx": "members.xlsx", "marketplace_orders.csv": "marketplace_orders.csv",
           "tills": ("orders_*.csv", "till_receipts.csv", "utf-8-sig", ";", "TOTAL")}}


def one_file(folder, pattern, name, encoding, delimiter, total):
    "The months of the tills as one export: the columns that all have, the lines of totals added up at the end."
    months = [pd.read_csv(p, dtype=str, encoding=encoding, sep=delimiter, keep_default_na=False) for p in sorted(folder.glob(pattern))]
    columns = [c for c in months[0].columns if all(c in m.columns for m in months)]
    rows = pd.concat([m[columns] for m in months], ignore_index=True)
    totals = rows[rows[columns[0]] == total].replace(r"[^\d.-]", "", regex=True)
    paid = next(c for c in columns if totals[c].str.contains(".", regex=False).all())
    last = dict.fromkeys(columns, "") | {columns[0]: total, paid: f"{pd.to_numeric(totals[paid]).sum():.2f}"}
    rows = pd.concat([rows[rows[columns[0]] != total], pd.DataFrame([last])], ignore_index=True)
    rows.to_csv(name, index=False, encoding=encoding, sep=delimiter, lineterminator="\r\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for lang, names in NAMES.items():
        (OUT / lang).mkdir(parents=True)
        with tempfile.TemporaryDirectory() as scratch:
            make_programme(90, "2024-01-01", "2024-07-01", seed=7, directory=Path(scratch) / "p", locale=lang, as_messy_files=True)
            files = Path(scratch) / "p/files"
            pattern, name, *how = names["tills"]
            one_file(files, pattern, OUT / lang / name, *how)
            for made, shipped in names.items():
                if made != "tills": shutil.copy(files / made, OUT / lang / shipped)
    for path in sorted(OUT.rglob("*.*")): print(f"{path.stat().st_size:>9,}  {path.relative_to(OUT)}")


if __name__ == "__main__":
    main()
