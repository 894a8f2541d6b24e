"""Every committed proof can be read, belongs to a proof that is still there, and is on the page."""

import ledger


def test_every_committed_proof_has_its_test():
    tests = dict(ledger.declared())
    for name, entry in ledger.proofs().items():
        message = f"docs/proofs/{name}.json names {entry['test']}; no such proof is marked"
        assert tests.get(name) == entry["test"], message
        assert entry["figures"] and len(entry["hash"]) == 64, f"docs/proofs/{name}.json"


def test_each_proof_has_a_name_of_its_own():
    names = [name for name, _ in ledger.declared()]
    assert sorted(names) == sorted(set(names))


def test_the_page_lists_what_is_committed():
    if entries := ledger.proofs():
        assert (ledger.FOLDER / "README.md").read_text("utf-8") == ledger.page(entries)
