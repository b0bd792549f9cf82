from itertools import pairwise

import pytest

from edgeq.sources.fingerprint import EDGE_BYTES, hash_model, sampled_ranges


@pytest.mark.parametrize(
    "size", [0, 1, EDGE_BYTES, 6 * EDGE_BYTES, 6 * EDGE_BYTES + 1, 10**8 + 7, 10**11]
)
def test_samples_lie_in_order_inside_the_file_and_hold_both_ends(size):
    ranges = sampled_ranges(size)
    assert ranges[0][0] == 0
    assert sum(ranges[-1]) == size
    assert all(start + count <= following for (start, count), (following, _) in pairwise(ranges))
    assert sum(count for _, count in ranges) <= 6 * EDGE_BYTES + 1


def test_the_hash_of_a_large_file_follows_both_ends_and_the_length(tmp_path):
    file = tmp_path / "weights"
    hashes = set()
    for size, changed in [(10**7, None), (10**7 + 1, None), (10**7, 0), (10**7, 10**7 - 1)]:
        content = bytearray(size)
        if changed is not None:
            content[changed] = 1
        file.write_bytes(content)
        hashes.add(hash_model({}, {}, [file]))
    assert len(hashes) == 4
