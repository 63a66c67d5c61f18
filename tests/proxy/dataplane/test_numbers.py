from __future__ import annotations

from proxy.dataplane.numbers import NUMBER_BITS, Numbers

LAST = (1 << NUMBER_BITS) - 1


def test_no_two_workers_have_a_number_in_common_however_many_clients_one_has_had() -> None:
    for index in (0, 1, 63):
        numbers = Numbers(index, last=LAST - 2)
        given = [numbers.take(()) for _ in range(4)]
        assert [number >> NUMBER_BITS for number in given] == [index] * 4
        assert [number & LAST for number in given] == [LAST - 1, LAST, 1, 2]
        assert min(given) > 0
        assert max(given) < 1 << 31


def test_a_number_that_is_in_use_is_passed_over() -> None:
    numbers = Numbers(0, last=LAST - 1)
    assert [numbers.take({1, 2}) for _ in range(3)] == [LAST, 3, 4]
