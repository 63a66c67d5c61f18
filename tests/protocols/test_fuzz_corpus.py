"""What the fuzzer kept, in whichever form is live, whole and in other cuts."""

from __future__ import annotations

import pytest

from tests.fuzz import parsers

TARGETS = {target.name: target for target in parsers.targets()}


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_kept_breaks_no_rule(name: str) -> None:
    inputs = parsers.kept(name)
    assert inputs, "make fuzz ARGS=--keep fills tests/corpus/fuzz"
    for steps in inputs:
        TARGETS[name].replay(steps)


def test_an_input_is_read_as_it_was_written() -> None:
    steps = [("m", b"\1"), ("c", b"Q\0\0\0\5\0"), ("l", b""), ("s", b"Z")]
    assert parsers.read_steps(parsers.write_steps(steps)) == steps
