"""A driver's id is text, byte by byte as it stands in the file, in every form that is read and on every path."""

import os
import tarfile
from collections import Counter

import numpy as np
import pytest

from common.errors import UserError
from mobility_humid.data.gps import Reader
from mobility_humid.data.preparation import Rules, prepare_trips
from mobility_humid.data.trips import load_trips, save_trips

HEADER = b"driver,time,lat,lon\n"
LOOK_ALIKES = [
    (b"007", b"7"),
    (b"1E5", b"100000"),
    (b"12e3", b"1.2e4"),
    (b"7", b"7.0"),
    (b"+7", b"7"),
    (b"True", b"TRUE"),
    (b"NaN", b"nan"),
    (b"0x10", b"16"),
    (b"1_000", b"1000"),
    (b"12345678901234567890", b"12345678901234567891"),
    (b"Jos\xe9", b"Jos\xe8"),
    ("José".encode(), b"Jos\xe9"),
]


def points(reader):
    return {os.fsencode(track.driver): len(track.time) for track in reader}


def csv(path, content):
    path.write_bytes(HEADER + content)
    return path


@pytest.mark.parametrize("ids", LOOK_ALIKES)
@pytest.mark.parametrize("bad_line", [b"", b"oops\n"])
def test_ids_that_look_alike_stay_apart_whatever_stands_elsewhere(tmp_path, ids, bad_line):
    """A line that cannot be used sends the whole block through another parser."""
    rows = b"".join(b"%b,%d,41.1,-8.6\n" % (name, 1372636800 + i) for i, name in enumerate(ids))
    assert points(Reader(csv(tmp_path / "a.csv", rows + bad_line))) == dict.fromkeys(ids, 1)
    quoted = b"".join(b'"%b",%d,41.1,-8.6\n' % (name, 1372636800 + i) for i, name in enumerate(ids))
    assert points(Reader(csv(tmp_path / "a.csv", quoted + bad_line))) == dict.fromkeys(ids, 1)


def test_an_id_is_one_in_all_blocks_of_a_file(tmp_path):
    """An id that is no number, far behind in the file, does not change what those before it are."""
    rows = [b"%b,%d,41.10000000,-8.60000000\n" % (b"0007", 1372636800 + i) for i in range(230_000)]
    rows[-3:] = [row.replace(b"0007", b"K12") for row in rows[-3:]]
    assert sum(map(len, rows)) > 9_000_000
    assert points(Reader(csv(tmp_path / "a.csv", b"".join(rows)))) == {b"0007": 229_997, b"K12": 3}


def test_an_id_with_a_nul_is_none(tmp_path):
    """Where text in NumPy, and in pandas' parser, would end."""
    reader = Reader(csv(tmp_path / "a.csv", b"a\0b,1372636800,41.1,-8.6\na,1372636800,41.1,-8.6\n"))
    assert points(reader) == {b"a": 1}
    assert reader.counts["malformed_driver"] == 1


@pytest.mark.parametrize("state", ["0", "1", "01", "0.0", "1.00", "true", "FALSE", "2", "-1", "yes"])
def test_occupied_reads_alike_whatever_stands_elsewhere(tmp_path, state):
    found = []
    for bad_line in ("", "oops\n"):
        path = tmp_path / "a.csv"
        path.write_text(
            f"driver,time,lat,lon,occupied\n7,1372636800,41.1,-8.6,{state}\n7,1372636801,41.1,-8.6,1\n{bad_line}"
        )
        found.append([track.occupied.tolist() for track in Reader(path)])
    assert found[0] == found[1]


def test_ids_in_names_of_files_may_be_any_bytes(tmp_path):
    names = [b"007", b"7", b"Jos\xe9", b"Jos\xe8"]
    folder = tmp_path / "cabs"
    folder.mkdir()
    for name in names:
        with open(os.fsencode(folder) + b"/new_" + name + b".txt", "wb") as file:
            file.write(b"37.75 -122.39 0 1211030353\n")
    with tarfile.open(tmp_path / "cabs.tar", "w") as archive:
        archive.add(folder, "cabs")
    for source in (folder, tmp_path / "cabs.tar"):
        reader = Reader(source)
        assert points(reader) == dict.fromkeys(names, 1)
        assert len(reader.sha256) == 64


def test_prepared_trips_have_the_ids_of_the_file(tmp_path):
    ids = [b"007", b"7", b"Jos\xe9"]
    rows = b"".join(b"%b,%d,41.1%02d,-8.6%02d\n" % (name, 1372636800 + 60 * i, i, i) for name in ids for i in range(20))
    trips = prepare_trips(Reader(csv(tmp_path / "a.csv", rows)), Rules(), Counter())
    assert [os.fsencode(name) for name in trips.drivers] == ids
    save_trips(tmp_path / "trips.npz", trips)
    assert load_trips(tmp_path / "trips.npz").drivers == trips.drivers


def parquet(path, ids):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    ids = ids if isinstance(ids, pa.Array) else pa.array(ids)
    count = len(ids)
    columns = {"driver": ids, "time": 1372636800 + np.arange(count), "lat": np.full(count, 41.1)}
    pq.write_table(pa.table(columns | {"lon": np.full(count, -8.6)}), path)
    return path


def test_ids_in_parquet_are_the_same_with_and_without_missing_ones(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    large = 123456789012345678
    assert points(Reader(parquet(path, [7, 7, large]))) == {b"7": 2, b"%d" % large: 1}
    for ids, expected in (
        ([7, None, large], {b"7": 1, b"%d" % large: 1}),
        # What pandas writes for whole numbers of which one is missing.
        ([7.0, None, 8.5, float("nan")], {b"7": 1, b"8.5": 1}),
        (["007", "7", None], {b"007": 1, b"7": 1}),
        (pa.array(["007", "7", None]).dictionary_encode(), {b"007": 1, b"7": 1}),
        ([b"Jos\xe9", b"Jos\xe8", None], {b"Jos\xe9": 1, b"Jos\xe8": 1}),
    ):
        reader = Reader(parquet(path, ids))
        assert points(reader) == expected
        assert reader.counts["malformed_driver"] == len(ids) - len(expected)


def test_ids_in_parquet_that_lost_their_digits_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.parquet\[driver\].*floating point; write ids as text or int64"):
        list(Reader(parquet(tmp_path / "a.parquet", [123456789012345678.0, 7.0])))
    with pytest.raises(UserError, match=r"a.parquet\[driver\]: holds list<.*expected ids"):
        list(Reader(parquet(tmp_path / "a.parquet", [[1], [2]])))
