"""Files of GPS points of which no line can be used: the refusal says what its lines look like."""

import numpy as np
import pytest

from common.errors import UserError
from mobility_humid.data.gps import Reader

HEADER = "driver,time,lat,lon,occupied\n"


def refusal(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        list(Reader(path if path.suffix == ".csv" else path.parent))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ('7,1372636800,"41,1","-8,6",0\n', "lat '41,1' has a decimal comma"),
        ("7,1372636800,41.1,,0\n", "lon '' is no number of degrees"),
        ("7,1372636800,41,1,-8,6,0\n", "7 fields where 5 are expected; write decimal points"),
        ("7,1372636800,41.1,-8.6,0,\n", "lines end in a ',' that the first line has not"),
        ("7,1372636800,41.1\n", "3 fields where 5 are expected"),
        ("7,1372636800,-122.39,37.75,0\n", "lat -122.39 is no latitude, but lon 37.75 would be: exchange"),
        ("7,1372636800,411000000,-86000000,0\n", "lat 411000000, lon -86000000 are no degrees"),
        ("7,1372636800000,41.1,-8.6,0\n", "time '1372636800000' counts milliseconds; expected Unix seconds"),
        ("7,1372636800000000000,41.1,-8.6,0\n", "counts nanoseconds"),
        ("7,01/07/2013 10:00,41.1,-8.6,0\n", "time '01/07/2013 10:00'; expected Unix seconds or ISO times"),
        ('7,"1372636800,5",41.1,-8.6,0\n', "has a decimal comma"),
        ("7,1372636800,41.1,-8.6,taken\n", "occupied 'taken'; expected 0 or 1"),
        (",1372636800,41.1,-8.6,0\n", "no driver is named"),
        ("", "it is empty"),
    ],
)
def test_a_csv_without_a_good_line_says_why(tmp_path, rows, cause):
    assert cause in refusal(tmp_path / "a.csv", HEADER + rows)
    # The commonest fault is the file's; that of a single line is not.
    if rows:
        assert cause in refusal(tmp_path / "a.csv", HEADER + 3 * rows + "x,soon,0,0,0\noops\n")


@pytest.mark.parametrize(
    ("times", "cause"),
    [
        (["41456.0301", "41456.0308", "41456.5", "0"], "time '41456.0301' counts days, as spreadsheets do"),
        (["41456.03", "41456.04", "41456.05"], "counts days"),
        (["735416.0301", "735416.0308"], "counts days"),
        (["2456474.53012", "2456474.53082"], "counts days"),
        (["20130701", "20130702", "20130703"], "time '20130701' is a date without a time of day"),
    ],
)
def test_dates_that_are_numbers_are_not_the_year_1970(tmp_path, times, cause):
    rows = "".join(f"7,{time},41.1,-8.6,0\n" for time in times)
    assert cause in refusal(tmp_path / "a.csv", HEADER + rows)
    # Among times that are read as text, too.
    assert cause in refusal(tmp_path / "a.csv", HEADER + rows + "oops\n")
    lines = "".join(f"41.1 -8.6 0 {time}\n" for time in times)
    (tmp_path / "cabs").mkdir()
    assert cause in refusal(tmp_path / "cabs" / "new_a.txt", lines)


@pytest.mark.parametrize("step", [60, 1, 0.5, 0.1, 1.013])
def test_seconds_of_a_simulation_that_begins_at_0_are_seconds(tmp_path, step):
    times = [25_000 + i * step for i in range(60)] + [70_000 + i * step for i in range(60)]
    path = tmp_path / "a.csv"
    path.write_text(HEADER + "".join(f"{i % 2},{time:.3f},41.1,-8.6,0\n" for i, time in enumerate(times)))
    found = np.sort(np.concatenate([track.time for track in Reader(path)]))
    assert found.tolist() == [int(round(time, 3)) for time in times]


def test_lines_that_end_in_carriage_returns_alone_are_named(tmp_path):
    row = "7,1372636800,41.1,-8.6,0\r"
    assert "carriage returns alone" in refusal(tmp_path / "a.csv", HEADER.replace("\n", "\r") + 2 * row)
    (tmp_path / "cabs").mkdir()
    cab = tmp_path / "cabs" / "new_a.txt"
    assert "carriage returns alone" in refusal(cab, "37.75 -122.39 0 1211030353\r37.76 -122.38 1 1211030413\r")
    assert "expected `lat lon occupied unixtime`" in refusal(cab, "37.75,-122.39,0,1211030353\n")


def test_utf_16_is_named(tmp_path):
    assert "UTF-16" in refusal(tmp_path / "a.csv", (HEADER + "7,1372636800,41.1,-8.6,0\n").encode("utf-16"))
