"""What supervisor and workers say to each other."""

from __future__ import annotations

from proxy import ipc

NO_UTF_8 = b"caf\xe9".decode("utf-8", "surrogateescape")
"""As the protocols keep the text of a client that sends Latin-1, say."""


def test_names_that_are_no_utf_8_reach_the_supervisor_in_a_readable_form() -> None:
    """A client may send any bytes as user or database; the fact that has them has those of everybody else too."""
    ended = ipc.Interrupted(session=7, user=NO_UTF_8, reason="ended", code_sent="57P01")
    said = ipc.Released(switch="s1", service="shop", sessions=1, first_request_ns=0, waits_us=[], interrupted=[ended])
    heard = ipc.decode_fact(ipc.encode(said)[4:])
    assert isinstance(heard, ipc.Released)
    assert [(one.session, one.user) for one in heard.interrupted] == [(7, "caf\\xe9")]


def test_bytes_stay_bytes_beside_such_a_name() -> None:
    said = ipc.Configure(config=b"\xff{}", active={NO_UTF_8: "blue"}, epochs={})
    heard = ipc.decode_order(ipc.encode(said)[4:])
    assert isinstance(heard, ipc.Configure)
    assert (heard.config, heard.active) == (b"\xff{}", {"caf\\xe9": "blue"})
