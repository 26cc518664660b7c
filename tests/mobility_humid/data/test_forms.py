"""Fleets as they are published: small files of each true form, as a folder, a tar and a zip."""

import io
import tarfile
import zipfile
import zoneinfo

import numpy as np
import pytest

from common.errors import UserError
from mobility_humid.data import forms, gps
from mobility_humid.data.gps import Reader
from tests.mobility_humid.data.test_gps import GOOD, bad, found, refused

GEOLIFE = {
    "Data/000/Trajectory/20081023025304.plt": (
        "Geolife trajectory\r\nWGS 84\r\nAltitude is in Feet\r\nReserved 3\r\n0,2,255,My Track,0,0,2,8421376\r\n0\r\n"
        "39.984702,116.318417,0,492,39744.1201851852,2008-10-23,02:53:04\r\n"
        "39.984683,116.31845,0,492,39744.1202546296,2008-10-23,02:53:10\r\n"
    ),
    "Data/000/Trajectory/20081024.plt": "a\nb\nc\nd\ne\nf\n39.9,116.3,0,-777,39745.5,2008-10-24,12:00:00\n",
    "Data/017/Trajectory/1.plt": "a\nb\nc\nd\ne\nf\n40,116,0,-777,39745.5,2008-10-24,12:00:00\n",
    "Data/017/labels.txt": "Start Time\tEnd Time\tTransportation Mode\n",
}
FIRST = 1_224_730_384
T_DRIVE = {
    "1.txt": "1,2008-02-02 15:36:08,116.51172,39.92123\n1,2008-02-02 15:46:08,116.51135,39.93883\n",
    "10.txt": "10,2008-02-02 13:32:03,116.44457,39.92157\n",
    "11.txt": "",
}
GPX = {
    "ann.gpx": (
        '<?xml version="1.0"?><gpx version="1.1" xmlns="http://www.topografix.com/GPX/1/1"><wpt lat="1" lon="1"/><trk>'
        '<trkseg><trkpt lat="47.5" lon="8.5"><ele>1</ele><time>2008-10-23T02:53:04Z</time></trkpt>'
        '<trkpt lat="47.6" lon="8.6"/></trkseg></trk></gpx>'
    ),
    "bob.gpx": (
        '<gpx><trk><trkseg><trkpt lat="1" lon="2"><time>2008-10-23T02:53:04Z</time></trkpt></trkseg></trk></gpx>'
    ),
}
TABLES = {
    "ann.csv": "datetime,lat,lng\n2008-10-23 02:53:04,47.5,8.5\n",
    "bob.csv": "lng,lat,datetime\n2,1,2008-10-23 02:53:04\n",
}


def as_folder(path, files):
    for name, text in files.items():
        file = path / "fleet" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    return path / "fleet"


def as_tar(path, files):
    with tarfile.open(path / "fleet.tgz", "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path / "fleet.tgz"


def as_zip(path, files):
    with zipfile.ZipFile(path / "fleet.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(f"top/{name}", text)
        archive.writestr("__MACOSX/top/._1.txt", b"\0\1")
    return path / "fleet.zip"


@pytest.mark.parametrize("packed", [as_folder, as_tar, as_zip])
@pytest.mark.parametrize(
    ("files", "wanted", "left_out"),
    [
        (
            GEOLIFE,
            {
                "000": [
                    (FIRST, 39.984702, 116.318417, None),
                    (FIRST + 6, 39.984683, 116.31845, None),
                    (1_224_849_600, 39.9, 116.3, None),
                ],
                "017": [(1_224_849_600, 40.0, 116.0, None)],
            },
            {},
        ),
        (
            T_DRIVE,
            {
                "1": [(1_201_937_768, 39.92123, 116.51172, None), (1_201_938_368, 39.93883, 116.51135, None)],
                "10": [(1_201_930_323, 39.92157, 116.44457, None)],
            },
            {},
        ),
        (GPX, {"ann": [(FIRST, 47.5, 8.5, None)], "bob": [(FIRST, 1.0, 2.0, None)]}, {"time": 1}),
        (TABLES, {"ann": [(FIRST, 47.5, 8.5, None)], "bob": [(FIRST, 1.0, 2.0, None)]}, {}),
        (
            {"new_a.txt": GOOD},
            {"a": [(1211030353, 37.75, -122.39, False), (1211030413, 37.76, -122.38, True)]},
            {},
        ),
    ],
)
def test_each_form_is_read(tmp_path, packed, files, wanted, left_out):
    zone = zoneinfo.ZoneInfo("Asia/Shanghai" if files is T_DRIVE else "UTC")
    reader = Reader(packed(tmp_path, files), zone=zone)
    assert found(reader) == wanted
    assert bad(reader) == left_out and reader.counts["points"] == sum(map(len, wanted.values()))
    assert len(reader.sha256) == 64


@pytest.mark.parametrize("packed", [as_folder, as_tar, as_zip])
def test_the_files_of_a_driver_may_lie_in_a_folder_of_that_name(tmp_path, packed):
    files = {"ann/1.gpx": GPX["bob.gpx"], "ann/deep/2.gpx": GPX["bob.gpx"], "bob/1.gpx": GPX["ann.gpx"]}
    assert {driver: len(rows) for driver, rows in found(Reader(packed(tmp_path, files))).items()} == {
        "ann": 2,
        "bob": 1,
    }


def test_a_file_of_many_by_itself(tmp_path):
    folder = as_folder(tmp_path, {**GPX, "new_a.txt": GOOD})
    assert list(found(Reader(folder / "ann.gpx"))) == ["ann"]
    assert list(found(Reader(folder / "new_a.txt"))) == ["a"]


PORTO = (
    '"TRIP_ID","CALL_TYPE","ORIGIN_CALL","ORIGIN_STAND","TAXI_ID","TIMESTAMP","DAY_TYPE","MISSING_DATA","POLYLINE"\n'
    '"1","C",,,"20000589","1372636858","A","False","[[-8.618643,41.141412],[-8.618499,41.141376]]"\n'
    '"2","B",,"7","20000596","1372637303","A","False","[]"\n'
    '"3","C",,,"20000589","1372640000","A","True","[[-8.6,41.1]]"\n'
    '"4","C",,,"20000320","1372636951","A","False","[[-8.6,41.1"\n'
    '"5","C",,,"20000320","1372636951","A","False","[[-8.5,41.2]]"\n'
)


def test_trips_in_rows_are_points_every_15_seconds(tmp_path):
    """Porto's: all with a passenger; what is missing points or is cut off is left out."""
    path = tmp_path / "train.csv"
    path.write_text(PORTO)
    reader = Reader(path)
    assert found(reader) == {
        "20000589": [(1372636858, 41.141412, -8.618643, True), (1372636873, 41.141376, -8.618499, True)],
        "20000320": [(1372636951, 41.2, -8.5, True)],
    }
    assert bad(reader) == {"fields": 2}


@pytest.mark.parametrize("separator", [",", " ", "\t"])
def test_columns_by_number_where_there_is_no_header(tmp_path, separator):
    """The order of Shenzhen's sample."""
    path = tmp_path / "taxis.txt"
    rows = ["22223,1380582544,114.138535,22.609266,1,19", "22224,1380582545,114.1,22.6,0,7"]
    path.write_text("\n".join(rows).replace(",", separator) + "\n")
    columns = {"driver": "1", "time": "2", "lon": "3", "lat": "4", "occupied": "5"}
    wanted = {"22223": [(1380582544, 22.609266, 114.138535, True)], "22224": [(1380582545, 22.6, 114.1, False)]}
    assert found(Reader(path, columns=columns)) == wanted
    refused(path, "no column 'driver'", "22223", "its first line is no header", "driver=1")
    refused(path, "--columns time=9, but its first line has 6 fields", columns=columns | {"time": "9"})
    del columns["time"]
    refused(path, "a table without a header needs time=<number of its column>", columns=columns)


@pytest.mark.parametrize(
    "header",
    [
        "user_id,tracked_at,longitude,latitude",
        "uid,datetime,lng,lat",
        "medallion,timestamp,lon,lat",
        "Driver,Time,LON,LAT",
        "taxi_id,date_time,x,y",
    ],
)
def test_names_that_others_give_columns_are_known(tmp_path, header):
    path = tmp_path / "points.csv"
    path.write_text(f"{header}\nann,2008-10-23 02:53:04+00:00,8.5,47.5\n")
    assert found(Reader(path)) == {"ann": [(FIRST, 47.5, 8.5, None)]}


def test_a_fields_own_name_comes_before_others(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y,lat,lon,time,timestamp,driver\n0,0,47.5,8.5,1224730384,7,ann\n")
    assert found(Reader(path)) == {"ann": [(FIRST, 47.5, 8.5, None)]}
    assert found(Reader(path, columns={"lat": "y", "lon": "x"})) == {"ann": [(FIRST, 0.0, 0.0, None)]}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.gpx": '<!DOCTYPE gpx [<!ENTITY a "b">]><gpx/>'}, ["a.gpx", "document type"]),
        ({"a.gpx": "<gpx><trk>"}, ["a.gpx", "not a readable GPX file"]),
        ({"a.gpx": "<gpx/>"}, ["no good line", "empty"]),
        ({"a.csv": "lat,lon\n1,2\n"}, ["a.csv", "no column 'time'"]),
        ({"notes.md": "hello"}, ["holds no file to read", "GeoLife"]),
        ({"1/Trajectory/1.plt": "a\nb\n"}, ["no good line", "empty"]),
        ({"7.txt": "7;2008-02-02;1;2\n"}, ["no good line (1 lines with a bad fields)"]),
    ],
)
@pytest.mark.parametrize("packed", [as_folder, as_tar, as_zip])
def test_what_is_refused(tmp_path, packed, files, words):
    refused(packed(tmp_path, files), *words)


def test_zips_that_are_damaged_or_too_large_are_refused(tmp_path, monkeypatch):
    path = as_zip(tmp_path, T_DRIVE)
    whole = path.read_bytes()
    for end in range(0, len(whole), 17):
        path.write_bytes(whole[:end])
        refused(path, "fleet.zip: cannot be read to its end")
    broken = bytearray(whole)
    broken[whole.index(b"top/1.txt") + 14] ^= 255
    path.write_bytes(broken)
    refused(path, "fleet.zip: cannot be read to its end")
    path.write_bytes(whole)
    monkeypatch.setattr(gps, "MAX_DRIVER_BYTES", 20)
    refused(path, "fleet.zip[top/1.txt]", "too many for one driver")


def test_drivers_of_a_thousand_files_are_whole(tmp_path):
    """Their files come one after the other, in no order of drivers."""
    files = {f"{n}.txt": f"{n % 7},2008-02-02 15:{n // 60:02}:{n % 60:02},116.5,39.9\n" for n in range(1000)}
    tracks = found(Reader(as_tar(tmp_path, files)))
    assert sorted(tracks) == [str(n) for n in range(7)]
    assert sum(map(len, tracks.values())) == 1000


def test_depth_is_what_all_have_in_common():
    assert forms.depth_of(["a/b/1", "a/b/2"]) == 2 and forms.depth_of(["a/b/1", "a/c/2"]) == 1
    assert forms.depth_of(["1", "a/2"]) == 0
    days = forms.seconds_of_days(np.array(["39744.1201851852", "x"], object))
    assert days[0] == FIRST and np.isnan(days[1])


def test_an_unknown_field_is_refused():
    with pytest.raises(UserError, match="no field 'who'"):
        Reader("a.csv", columns={"who": "1"})
