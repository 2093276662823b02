import hashlib

import numpy as np

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.fingerprints import fingerprints, fingerprints_of_rows, folds_of_rows

MOS2 = Supercell.parse(catalogue_host("MoS2"), "4x4")
PAIR = Configuration((3, 16), (42 * 128, 16 * 128 + 34))


def test_a_fingerprint_is_the_hash_of_the_written_encoding() -> None:
    # by hand: length and name of the host, the nine integers of the matrix, number of defects, sites, codes
    encoded = bytes.fromhex("04000000") + b"MoS2"
    for entry in (4, 0, 0, 0, 4, 0, 0, 0, 1):
        encoded += entry.to_bytes(8, "little")
    for entry in (2, 3, 16, 42 * 128, 16 * 128 + 34):
        encoded += entry.to_bytes(4, "little")
    expected = hashlib.blake2b(encoded, digest_size=8, person=b"configuration 1").digest()
    (found,) = fingerprints(MOS2, [PAIR])
    assert found == int.from_bytes(expected, "little")


def test_fingerprints_never_change() -> None:
    # models in use hold such numbers; a change here makes them count learnt rows as new
    assert fingerprints(MOS2, [PAIR, Configuration((16,), (16 * 128,))]).tolist() == [
        10257097157053500128,
        17855906439050825835,
    ]


def test_host_supercell_sites_and_types_all_count() -> None:
    others = [
        fingerprints(Supercell.parse(catalogue_host("WSe2"), "4x4"), [PAIR]),
        fingerprints(Supercell.parse(catalogue_host("MoS2"), "5x5"), [PAIR]),
        fingerprints(MOS2, [Configuration((4, 16), PAIR.defect_types)]),
        fingerprints(MOS2, [Configuration(PAIR.sites, (42 * 128 + 74, 16 * 128 + 34))]),
        fingerprints(MOS2, [Configuration((3,), PAIR.defect_types[:1])]),
    ]
    assert len(set(np.concatenate([fingerprints(MOS2, [PAIR]), *others]).tolist())) == 6


def test_rows_of_several_supercells_keep_their_order() -> None:
    wse2 = Supercell.parse(catalogue_host("WSe2"), "4x4")
    of_wse2 = Configuration((0,), (74 * 128,))
    rows = LabelledRows(
        (MOS2, wse2), np.array([1, 0, 1]), (of_wse2, PAIR, Configuration((1,), (74 * 128,))), ("homo",),
        np.zeros((3, 1)), np.array([False, True, False]), np.zeros(3, np.int64),
    )  # fmt: skip
    found = fingerprints_of_rows(rows)
    assert found[0] == fingerprints(wse2, [of_wse2])[0]
    assert found[1] == fingerprints(MOS2, [PAIR])[0]
    assert found.dtype == np.uint64


def test_folds_never_change() -> None:
    # members of models in use have left rows out by them; 10257097157053500128 and the other one modulo 2^31
    rows = LabelledRows(
        (MOS2,), np.zeros(2, np.int64), (PAIR, Configuration((16,), (16 * 128,))), ("homo",), np.zeros((2, 1)),
        np.zeros(2, bool), np.zeros(2, np.int64),
    )  # fmt: skip
    assert rows.fold.tolist() == [10257097157053500128 % 2**31, 17855906439050825835 % 2**31]
    assert folds_of_rows(rows.chosen(np.array([1]))).tolist() == rows.fold[1:].tolist()


def test_none_have_none() -> None:
    assert fingerprints(MOS2, []).shape == (0,)
