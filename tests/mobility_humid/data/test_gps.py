"""Readers of GPS points: what they give, what they leave out and count, and what they refuse."""

import builtins
import bz2
import datetime
import gzip
import hashlib
import io
import lzma
import tarfile
import tracemalloc
import zoneinfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from mobility_humid.data import gps
from mobility_humid.data.gps import Reader

GOOD = "37.75 -122.39 0 1211030353\n37.76 -122.38 1 1211030413\n"
HEADER = "driver,time,lat,lon,occupied"


def refused(source, *words, **options):
    with pytest.raises(UserError) as caught:
        list(Reader(source, **options))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def cabs(folder, **contents):
    folder.mkdir(exist_ok=True)
    for name, text in contents.items():
        (folder / f"new_{name}.txt").write_bytes(text.encode())
    return folder


def pack(path, members, mode="w"):
    """A tar of `members`, name -> text or a ready `TarInfo`."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content.encode()))
    return path


def table(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def found(reader):
    """What a reader gives, as driver -> sorted rows."""
    out = {}
    for track in reader:
        occupied = [None] * len(track.time) if track.occupied is None else track.occupied.tolist()
        rows = zip(track.time.tolist(), track.lat.tolist(), track.lon.tolist(), occupied, strict=True)
        out[track.driver] = sorted(rows)
    return out


def bad(reader):
    return {name.removeprefix("malformed_"): n for name, n in reader.counts.items() if n and name != "points"}


# cabspotting


def test_a_folder_gives_one_track_a_cab(tmp_path):
    reader = Reader(cabs(tmp_path / "cabs", b=GOOD, a=GOOD.replace("\n", "\r\n")))
    tracks = list(reader)
    assert [track.driver for track in tracks] == ["a", "b"]
    for track in tracks:
        assert track.time.dtype == np.int64 and track.time.tolist() == [1211030353, 1211030413]
        assert track.lat.tolist() == [37.75, 37.76] and track.lon.tolist() == [-122.39, -122.38]
        assert track.occupied.dtype == bool and track.occupied.tolist() == [False, True]
    assert reader.counts["points"] == 4 and not bad(reader) and len(reader.sha256) == 64


def test_a_folders_hash_follows_names_and_contents(tmp_path):
    hashes = set()
    for number, contents in enumerate(({"a": GOOD}, {"b": GOOD}, {"a": GOOD + GOOD}, {"a": GOOD})):
        reader = Reader(cabs(tmp_path / str(number), **contents))
        list(reader)
        hashes.add(reader.sha256)
    assert len(hashes) == 3


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_gives_what_its_folder_gives(tmp_path, mode):
    name = "cabs.tar" + mode[1:].replace(":", ".")
    path = pack(tmp_path / name, {"x/README": "hello", "x/new_a.txt": GOOD, "x/new_b.txt": GOOD * 2}, mode)
    reader = Reader(path)
    assert found(reader) == found(Reader(cabs(tmp_path / "cabs", a=GOOD, b=GOOD * 2)))
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_names_and_links_in_a_tar_do_no_harm(tmp_path):
    link = tarfile.TarInfo("new_linked.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("new_hard.txt")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../new_evil.txt"
    device = tarfile.TarInfo("new_device.txt")
    device.type = tarfile.CHRTYPE
    members = {"../../new_evil.txt": GOOD, "/new_abs.txt": GOOD, "l": link, "h": hard, "d": device}
    before = sorted(tmp_path.parent.rglob("*"))
    assert sorted(found(Reader(pack(tmp_path / "cabs.tar", members)))) == ["abs", "evil"]
    assert sorted(tmp_path.parent.rglob("*")) == sorted([*before, tmp_path / "cabs.tar"])


def test_a_cab_that_occurs_twice_is_refused(tmp_path):
    refused(pack(tmp_path / "a.tar", {"x/new_a.txt": GOOD, "y/new_a.txt": GOOD}), "a.tar", "new_a.txt occurs twice")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_truncated_tar_is_refused_wherever_it_ends(tmp_path, mode):
    text = "".join(f"37.{i:05} -122.{i * 7 % 10**5:05} 0 {1211030353 + i}\n" for i in range(400))
    path = pack(tmp_path / "cabs.tar.x", {f"new_{i}.txt": text for i in range(5)}, mode)
    whole = path.read_bytes()
    # Also between two members, where what is left is a tar but for its end.
    ends = (
        {1, 600, len(whole) // 2, len(whole) - 8}
        if mode != "w"
        else {1, 512, 700, 2 * (512 + -(-len(text) // 512) * 512)}
    )
    for end in ends:
        path.write_bytes(whole[:end])
        refused(path, str(path), "get it again")


def test_a_damaged_tar_is_refused(tmp_path):
    path = tmp_path / "cabs.tar"
    path.write_bytes(b"no tar at all " * 100)
    refused(path, "cabs.tar", "get it again")
    whole = bytearray(lzma.compress(pack(tmp_path / "good.tar", {"new_a.txt": GOOD * 500}).read_bytes()))
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    refused(path, "cabs.tar", "get it again")


def test_malformed_lines_are_counted_by_reason_and_left_out(tmp_path):
    lines = [
        "37.75 -122.39 0 1211030353",
        "37.75 -122.39 0",
        "37.75 -122.39 0 1211030353 7",
        "x -122.39 0 1211030354",
        "nan -122.39 0 1211030354",
        "inf -122.39 0 1211030354",
        "97.75 -122.39 0 1211030354",
        "37.75 -182.39 0 1211030354",
        "37.75 -122.39 2 1211030354",
        "37.75 -122.39 yes 1211030354",
        "37.75 -122.39 0 soon",
        "37.75 -122.39 0 -5",
        "37.75 -122.39 0 1211030354000",
        "",
        "37.76 -122.38 1 1211030413",
        "\0",
    ]
    reader = Reader(cabs(tmp_path / "cabs", a="\n".join(lines)))
    assert found(reader)["a"] == [(1211030353, 37.75, -122.39, False), (1211030413, 37.76, -122.38, True)]
    assert bad(reader) == {"fields": 3, "number": 3, "place": 2, "occupied": 2, "time": 3}


TOKENS = st.sampled_from(
    ["37.75", "-122.4", "0", "1", "1211030353", "1211030413.7", "x", "", "nan", "inf", "-", "1e2", "2", "\0", '"', "é"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(TOKENS, max_size=6), max_size=6), st.booleans())
def test_the_fast_path_sees_what_the_careful_one_sees(tmp_path_factory, rows, spaces):
    rows = [["37.75", "-122.39", "0", "1211030353"], *rows]
    folder = tmp_path_factory.mktemp("lines")
    if spaces:
        source = cabs(folder / "cabs", a="\n".join(" ".join(row) for row in rows))
    else:
        named = [[f"d{len(row) % 2}", *row] for row in rows]
        source = table(folder / "a.csv", *(",".join(row) for row in named), header="driver,lat,lon,occupied,time")
    quick = Reader(source)
    result = found(quick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gps, "_fast", lambda *_: None)
        careful = Reader(source)
        assert found(careful) == result and careful.counts == quick.counts


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "absent", ["absent", "no such file", "new_<id>.txt"]),
        (lambda p: cabs(p / "cabs"), ["cabs", "holds no file to read", "new_<id>.txt"]),
        (lambda p: cabs(p / "cabs", a=GOOD, b=""), ["new_b.txt", "no good line", "empty", "remove"]),
        (lambda p: cabs(p / "cabs", a="1;2;3\n4;5;6\n"), ["new_a.txt", "no good line (2 lines with a bad fields)"]),
        (lambda p: pack(p / "a.tar", {"x/other.txt": GOOD}), ["a.tar", "holds no file to read", "new_<id>.txt"]),
        (lambda p: pack(p / "a.tgz", {"new_a.txt": "q\n"}, "w:gz"), ["a.tgz[new_a.txt]", "no good line"]),
        (lambda p: table(p / "a.csv", "1,2"), ["a.csv", "no good line (1 lines with a bad fields)"]),
        (lambda p: table(p / "a.csv"), ["a.csv", "no good line", "empty"]),
        (
            lambda p: table(p / "a.csv", header="driver,when,lat,lon"),
            ["no column 'time'", "driver, when", "--columns time"],
        ),
        (lambda p: table(p / "a.csv", header=""), ["no column 'driver'", "there are none"]),
        (lambda p: table(p / "a.dat"), ["a.dat", "form that is not read", ".parquet"]),
        (lambda p: table(p / "a.csv", "a,1211030353000,37,-122,0"), ["no good line (1 lines with a bad time)", "Unix"]),
    ],
)
def test_what_holds_nothing_is_refused_in_one_line(tmp_path, make, words):
    refused(make(tmp_path), *words)


def test_a_driver_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gps, "MAX_DRIVER_BYTES", 20)
    refused(cabs(tmp_path / "cabs", a=GOOD), "new_a.txt", "too many for one driver")
    refused(pack(tmp_path / "a.tar", {"new_a.txt": GOOD}), "a.tar[new_a.txt]", "too many for one driver")


# CSV


def rows_of(drivers, points, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        f"d{driver},{1211030353 + 60 * i},{37 + rng.random():.5f},{-122 - rng.random():.5f},{rng.integers(2)}"
        for driver in range(drivers)
        for i in range(points)
    ]
    return rows


def test_interleaved_drivers_come_out_one_by_one(tmp_path, monkeypatch):
    """More of them than groups in the temporary file, in blocks of a few lines."""
    rows = rows_of(300, 3)
    whole = found(Reader(table(tmp_path / "a.csv", *rows)))
    assert len(whole) == 300 and all(len(points) == 3 for points in whole.values())
    monkeypatch.setattr(gps, "_BLOCK_BYTES", 400)
    shuffled = np.random.default_rng(1).permutation(rows)
    spool = tmp_path / "spool"
    spool.mkdir()
    reader = Reader(table(tmp_path / "b.csv", *shuffled), spool=spool)
    tracks = list(reader)
    assert len(tracks) == 300 and found(tracks) == whole
    assert reader.counts["points"] == 900 and not list(spool.iterdir())
    assert reader.sha256 == hashlib.sha256((tmp_path / "b.csv").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("d1", '"d1"').replace("lat", '"lat"'),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.rstrip("\n"),
        lambda text: "\n".join(f'{line},"free, text"' for line in text.splitlines()),
        lambda text: "\n".join(",".join(reversed(line.split(","))) for line in text.splitlines()),
        lambda text: text.replace(",0\n", ",False\n").replace(",1\n", ",True\n"),
    ],
)
def test_the_dialects_of_csv_say_the_same(tmp_path, dress):
    text = "\n".join([HEADER, *rows_of(3, 4)]) + "\n"
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    plain = found(Reader(path))
    path.write_bytes(dress(text).encode())
    reader = Reader(path)
    assert found(reader) == plain and not bad(reader)


@pytest.mark.parametrize(("ending", "squeeze"), [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)])
def test_packed_csv_is_read_and_refused_when_truncated(tmp_path, ending, squeeze):
    text = "\n".join([HEADER, *rows_of(3, 40)]) + "\n"
    path = tmp_path / f"a.csv.{ending}"
    path.write_bytes(squeeze(text.encode()))
    assert found(Reader(path)) == found(Reader(table(tmp_path / "a.csv", *rows_of(3, 40))))
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, f"a.csv.{ending}", "get it again")


def test_an_open_quote_costs_its_own_line_only(tmp_path):
    reader = Reader(table(tmp_path / "a.csv", *rows_of(1, 3), '"d0,1211030353,37.5,-122.5,0', *rows_of(1, 2, seed=1)))
    assert len(found(reader)["d0"]) == 5 and bad(reader) == {"fields": 1}


def test_columns_may_have_other_names(tmp_path):
    source = table(tmp_path / "a.csv", "7,1211030353,37.5,-122.5,1", header="medallion,ts,y,x,hired")
    names = {"driver": "medallion", "time": "ts", "lat": "y", "lon": "x", "occupied": "hired"}
    assert found(Reader(source, columns=names)) == {"7": [(1211030353, 37.5, -122.5, True)]}
    refused(source, "no column 'oc'", "--columns occupied=...", columns=names | {"occupied": "oc"})
    refused(source, "--columns: no field 'speed'", columns={"speed": "v"})


def test_without_a_column_for_it_tracks_say_nothing_of_passengers(tmp_path):
    (track,) = Reader(table(tmp_path / "a.csv", "7,1211030353,37.5,-122.5", header="driver,time,lat,lon"))
    assert track.occupied is None


def test_drivers_without_a_name_are_counted(tmp_path):
    reader = Reader(table(tmp_path / "a.csv", ",1211030353,37.5,-122.5,0", "NA,1211030353,37.5,-122.5,0"))
    assert list(found(reader)) == ["NA"] and bad(reader) == {"driver": 1}


SUMMER = 1211025600


@pytest.mark.parametrize(
    ("text", "zone", "seconds"),
    [
        ("1211025600", "UTC", SUMMER),
        ("1211025600.9", "UTC", SUMMER),
        ("2008-05-17T12:00:00Z", "America/New_York", SUMMER),
        ("2008-05-17 12:00:00.250+00:00", "America/New_York", SUMMER),
        ("2008-05-17T14:00:00+0200", "America/New_York", SUMMER),
        ("2008-05-17 12:00:00", "UTC", SUMMER),
        ("2008-05-17 08:00:00", "America/New_York", SUMMER),
        # The hour that the clock shows twice, and the one that it leaves out.
        ("2008-11-02 01:30:00", "America/New_York", 1225603800),
        ("2008-03-09 02:30:00", "America/New_York", 1205046000),
    ],
)
def test_times_are_unix_seconds_or_iso_text(tmp_path, text, zone, seconds):
    source = table(tmp_path / "a.csv", f"7,{text},37.5,-122.5,0")
    assert found(Reader(source, zone=zoneinfo.ZoneInfo(zone)))["7"][0][0] == seconds


def test_ways_to_write_the_time_may_be_mixed(tmp_path):
    times = ["2008-05-17 08:00:00", "2008-05-17T12:00:00Z", "never", "1211025600", "2008-05-17T14:00:00+02:00", "08:00"]
    source = table(tmp_path / "a.csv", *(f"7,{time},37.5,-122.5,0" for time in times))
    reader = Reader(source, zone=zoneinfo.ZoneInfo("America/New_York"))
    assert [row[0] for row in found(reader)["7"]] == [SUMMER] * 4 and bad(reader) == {"time": 2}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, gps.LATEST - 1), min_size=1, max_size=5))
def test_iso_text_and_seconds_are_the_same_time(tmp_path_factory, times):
    folder = tmp_path_factory.mktemp("times")
    iso = [datetime.datetime.fromtimestamp(t, datetime.UTC).isoformat() for t in times]
    rows = [table(folder / f"{i}.csv", *(f"7,{t},0,0,0" for t in text)) for i, text in enumerate((times, iso))]
    assert found(Reader(rows[0])) == found(Reader(rows[1])) == {"7": [(t, 0.0, 0.0, False) for t in sorted(times)]}


# Parquet


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    refused(tmp_path / "a.parquet", "a.parquet", "pip install pyarrow")


def test_parquet_says_what_csv_says(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    table(tmp_path / "a.csv", *rows_of(5, 6))
    plain, frame = found(Reader(tmp_path / "a.csv")), pd.read_csv(tmp_path / "a.csv")
    path = tmp_path / "a.parquet"
    dates = pd.to_datetime(frame["time"], unit="s")
    for time in (frame["time"], dates, dates.dt.tz_localize("UTC"), dates.dt.strftime("%Y-%m-%d %H:%M:%S")):
        for occupied in (frame["occupied"], frame["occupied"].astype(bool), frame["occupied"].astype(float)):
            frame.assign(time=time, occupied=occupied).to_parquet(path)
            reader = Reader(path)
            assert found(reader) == plain and not bad(reader)
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    frame.loc[0, "lat"] = None
    frame.to_parquet(path)
    reader = Reader(path)
    list(reader)
    assert bad(reader) == {"number": 1}
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "a.parquet", "not a readable Parquet file")
    frame.drop(columns="lon").to_parquet(path)
    refused(path, "no column 'lon'")


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tar", "csv"])
def test_memory_does_not_grow_with_the_fleet(tmp_path, monkeypatch, form):
    """Of 120 drivers as of 40, one at a time; among ten none may be of the most there is."""
    monkeypatch.setattr(gps, "_BLOCK_BYTES", 2**16)
    peaks = []
    for drivers in (2, 40, 120):
        text = {f"d{i}": rows_of(1, 2000, seed=i) for i in range(drivers)}
        if form == "csv":
            path = table(tmp_path / "a.csv", *(row.replace("d0", d) for d, rows in text.items() for row in rows))
        else:
            lines = {
                d: "".join("{2} {3} {4} {1}\n".format(*row.split(",")) for row in rows) for d, rows in text.items()
            }
            path = pack(tmp_path / "a.tar", {f"new_{d}.txt": content for d, content in lines.items()})
        tracemalloc.start()
        assert sum(len(track.time) for track in Reader(path)) == 2000 * drivers
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.25 * peaks[1]
