"""The command line as a user meets it: exit codes, messages, files written whole or not at all."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from click.testing import CliRunner

from memtag_research.cli import main


def memtag(*words):
    result = CliRunner().invoke(main, [str(w) for w in words])
    return result.exit_code, result.output


def test_help_lists_every_command():
    code, text = memtag("--help")
    assert code == 0
    for command in ("init", "ingest", "check", "metrics", "rfm", "report"): assert command in text
    for command in ("init", "ingest", "check", "metrics", "rfm"): assert memtag(command, "--help")[0] == 0


def test_check_and_metrics(online_retail, tmp_path):
    code, text = memtag("check", "-w", online_retail)
    assert code == 0 and "order_lines          539,391 rows" in text
    code, text = memtag("metrics", "-w", online_retail, "--period", "2011-11")
    assert code == 0 and "£1,161,817.38" in text and "1,664" in text   # metrics.md
    code, text = memtag("metrics", "-w", online_retail, "--period", "2011-11", "--lang", "zh")
    assert code == 0 and "会员销售额" in text and "无法计算" in text
    assert memtag("metrics", "-w", online_retail, "--period", "2011-11", "--out", tmp_path / "m.csv")[0] == 0
    table = pd.read_csv(tmp_path / "m.csv").set_index("name")
    assert table.loc["buyers", "value"] == 1_664 and table.loc["gross_member_sales_cents", "value"] == 116_181_738


@pytest.mark.parametrize("ending, read", [(".csv", lambda p: pd.read_csv(p, dtype={"member_id": str})), (".parquet", pd.read_parquet),
                                          (".xlsx", lambda p: pd.read_excel(p, dtype={"member_id": str}))])
def test_rfm_files(online_retail, tmp_path, ending, read):
    out = tmp_path / f"rfm{ending}"
    code, text = memtag("rfm", "-w", online_retail, "--as-of", "2011-12-10", "--out", out)
    assert code == 0, text
    table = read(out)
    assert len(table) == 4_338 and table.orders.sum() == 18_532 and table.spend_cents.sum() <= 891_140_790
    assert out.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("words, says", [
    (["rfm", "--as-of", "2009-01-01", "--out", "x.csv"], "2010-12-01"),
    (["rfm", "--as-of", "soon", "--out", "x.csv"], "must be a date"),
    (["rfm", "--as-of", "2011-12-10", "--out", "x.doc"], "must end in"),
    (["rfm", "--as-of", "2011-12-10", "--out", "/dev/null/x.csv"], "cannot write"),
    (["metrics", "--period", "2011-13"], "2011-13"),
    (["metrics", "--period", "2011-11", "--scope", "chanel=Spain"], "Did you mean 'channel'?"),
    (["metrics", "--period", "2011-11", "--scope", "channel=Spian"], "Did you mean 'Spain'?"),
    (["report", "run", "segmant", "--period", "2011-11"], "Did you mean 'segment'?"),
    (["report", "run", "segment", "--period", "last month"], "last month"),
    (["report", "run", "segment", "--period", "2011-11", "-p", "langg=zh"], "Did you mean 'lang'?"),
    (["report", "run", "segment", "--period", "2011-11", "-p", "k=five"], "k"),
])
def test_mistakes_end_in_2_and_write_nothing(online_retail, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    extra = ["--out", str(tmp_path / "published")] if words[0] == "report" else []
    code, text = memtag(*words, "-w", online_retail, *extra)
    assert code == 2 and says in text, text
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".csv", ".html", ".ipynb")]


def test_a_failure_shows_no_values(online_retail, monkeypatch):
    "The text of an unforeseen error may quote a member; it is shown with --debug only."
    import memtag_research.data.workspace as workspace
    def broken(root): raise ValueError("13812345678 is odd")
    monkeypatch.setattr(workspace, "open_workspace", broken)
    code, text = memtag("check", "-w", online_retail)
    assert code == 1 and "ValueError" in text and "13812345678" not in text and "Traceback" not in text
    assert isinstance(CliRunner().invoke(main, ["--debug", "check", "-w", str(online_retail)]).exception, ValueError)


def test_no_colour_and_no_progress_in_a_pipe(online_retail):
    run = subprocess.run([sys.executable, "-c", "from memtag_research.cli import main; main()", "check", "-w", str(online_retail)], capture_output=True, text=True,
                         env={**os.environ, "TERM": "xterm-256color"})
    assert run.returncode == 0 and "ok  order_lines" in run.stdout and "\x1b" not in run.stdout + run.stderr


def test_report_parameters_are_listed():
    code, text = memtag("report", "params", "segment")
    assert code == 0 and "period" in text and "lang" in text
    code, text = memtag("report", "list")
    assert code == 0 and "segment" in text


def test_a_simulated_programme(tmp_path):
    "From nothing to a checked workspace with figures, in English or Chinese."
    code, text = memtag("init", tmp_path / "it", "--dataset", "simulated", "--members", 120, "--seed", 3, "--end", "2023-09-01", "--lang", "zh",
                        "--messy")
    assert code == 0 and "member_days" in text and "2023-01-01 to 2023-08-31" in text, text
    assert (tmp_path / "it/truth/people.parquet").exists() and (tmp_path / "it/files/会员.xlsx").exists()
    assert memtag("check", "-w", tmp_path / "it")[0] == 0
    code, text = memtag("ingest", "-w", tmp_path / "it")
    assert code == 0 and "自上次读入以来没有变化" in text
    code, text = memtag("metrics", "-w", tmp_path / "it", "--period", "2023-07")
    assert code == 0 and "¥" in text and "会员销售额" in text


@pytest.mark.parametrize("words, says", [
    (("--dataset", "online-retail", "--members", 5), "--members goes with --dataset simulated only"),
    (("--dataset", "cdnow-sample", "--lang", "zh"), "--lang goes with --dataset simulated only"),
    (("--dataset", "simulated", "--members", 0), "n_members must be a whole number of at least 1"),
    (("--dataset", "simulated", "--start", "2024-13-01"), "start must be a date such as '2023-01-31'"),
    (("--dataset", "simulated", "--end", "2023-01-20"), "needs at least 90 days"),
    (("--dataset", "simulation"), "and simulated, which is invented"),
])
def test_programmes_that_cannot_be_made(tmp_path, words, says):
    code, text = memtag("init", tmp_path / "it", *words)
    assert code == 2 and says in text, text
    assert not (tmp_path / "it/memtag.yaml").exists()
