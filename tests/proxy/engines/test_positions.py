"""Which of two places in a stream of changes has more."""

from __future__ import annotations

import pytest

from proxy.engines.positions import PositionKind, covers

A, B = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "4e11fa47-71ca-11e1-9e33-c80aa9429562"


@pytest.mark.parametrize(
    ("kind", "have", "wanted", "is_covered"),
    [
        ("lsn", "16/B374D848", "16/B374D848", True),
        ("lsn", "16/B374D848", "2/FFFFFFFF", True),
        ("lsn", "2/FFFFFFFF", "16/0", False),
        ("mariadb-gtid", "0-1-42,1-2-7", "0-9-42", True),
        ("mariadb-gtid", "0-1-42", "0-1-43", False),
        ("mariadb-gtid", "0-1-42", "0-1-1,1-1-1", False),
        ("mariadb-gtid", "", "", True),
        ("mysql-gtid", f"{A}:1-10", f"{A}:1-5:7-10", True),
        ("mysql-gtid", f"{A}:1-5:7-10", f"{A}:1-10", False),
        ("mysql-gtid", f"{A}:1-5,{A}:6-10", f"{A}:3-8", True),
        ("mysql-gtid", f"{A}:1-5,\n{B}:1-3", f"{A.upper()}:5, {B}:2", True),
        ("mysql-gtid", f"{A}:1-5", f"{B}:1", False),
        ("mysql-gtid", f"{A}:1-5:batch:1-3", f"{A}:batch:2", True),
        ("mysql-gtid", f"{A}:1-5", f"{A}:batch:2", False),
        ("mysql-gtid", f"{A}:1", "", True),
    ],
)
def test_a_position_covers_what_is_in_it(kind: PositionKind, have: str, wanted: str, is_covered: bool) -> None:
    assert covers(kind, have, wanted) is is_covered
