from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from poller.core.request_ids import request_id


@given(bits=st.integers(0, 2**128 - 1))
def test_a_request_id_is_a_random_uuid_as_the_library_makes_it(bits: int) -> None:
    assert request_id(bits) == str(UUID(int=bits, version=4))
