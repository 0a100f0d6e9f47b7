"""The planted faults can be planted: running them takes an hour, and so is done seldom."""

from tests.benchmarks.faults import FAULTS
from tests.programs import ROOT


def test_each_fault_changes_one_line_that_is_there():
    assert {
        fault.name: found for fault in FAULTS if (found := (ROOT / fault.file).read_text().count(fault.old)) != 1
    } == {}
    assert [fault.name for fault in FAULTS if fault.old == fault.new] == []


def test_each_fault_names_tests_that_are_there():
    missing = []
    for fault in FAULTS:
        for test in fault.tests:
            path, _, function = test.partition("::")
            if not (ROOT / path).is_file() or f"def {function}" not in (ROOT / path).read_text():
                missing.append(test)
    assert missing == []
