"""Questions about drivers: on the verifier's map, of the days asked about, and answered."""

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from common.training import checkpoints
from mobility_humid.attacks.trips import replace_rows
from mobility_humid.data import questions
from mobility_humid.data.city import city
from mobility_humid.data.gps import Reader
from mobility_humid.data.layout import Layout
from mobility_humid.data.preparation import Rules, prepare_trips
from mobility_humid.data.questions import Question
from mobility_humid.data.trips import SEEK, SERVE, SLOT, X, Y, load_trips, save_trips, world_of
from mobility_humid.identify import identify
from mobility_humid.models.certified import CertifiedSiamese
from mobility_humid.models.networks import Siamese
from mobility_humid.train import network_arguments
from tests.helpers.trip_toys import SMALLEST


def write_points(path, drivers):
    """Points of the simulated city's first `drivers`."""
    tracks = [
        pd.DataFrame({"driver": t.driver, "time": t.time, "lat": t.lat, "lon": t.lon, "occupied": t.occupied})
        for t in list(city(5, drivers=4, days=6))[:drivers]
    ]
    pd.concat(tracks).to_csv(path, index=False)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A folder with the points of four drivers, and of two of them, the trips of the four, and untrained verifiers."""
    folder = tmp_path_factory.mktemp("town")
    for name, drivers in (("four.csv", 4), ("two.csv", 2)):
        write_points(folder / name, drivers)
    reader = Reader(str(folder / "four.csv"), spool=folder)
    trips = prepare_trips(reader, Rules(min_points=4), reader.counts)
    save_trips(folder / "trips.npz", trips)
    layout = Layout((SEEK, SERVE), 3, 2, 20, 3)
    common = {"layout": layout, "grid": trips.grid.size, "profile_scale": (), "seed": 0, "dropout": 0.0}
    model = Siamese(**common, encoder="lstm", units=(4, 4, 4), place_spacing=1.0, world=world_of(trips))
    checkpoints.save_model(model, folder / "model.keras")
    certified = CertifiedSiamese(**common, encoder="ways", units=(), place_spacing=1.0, world=world_of(trips))
    sides = questions.draw_sides(trips, questions.later_against_earlier(trips, 4), layout, 1, 0)
    certified.adapt(questions.samples(trips, *sides, layout, ()))
    certified.weigh(np.random.default_rng(0).normal(size=certified.weigh_fixed.kernel.shape[0]), 0.0)
    certified.weigh_tables.assign(np.linspace(-0.2, 0.5, 8))
    checkpoints.save_model(certified, folder / "certified.keras")
    return folder


def answers_of(folder, name, **options):
    results = identify(identify.options(name=name, **options))
    return results, pd.read_csv(folder / "runs/mobility_humid/identify" / name / "answers.csv")


def test_points_are_laid_on_the_map_and_cut_as_the_verifiers_were(town, monkeypatch):
    """Two of the drivers, whose points alone make another map, and a rule that is not the default."""
    monkeypatch.chdir(town)
    (town / "who.csv").write_text("first, second\ndriver0000,driver0001\ndriver0001,driver0001\n")
    shared = {"model": town / "model.keras", "pairs": town / "who.csv"}
    _, of_trips = answers_of(town, "trips", dataset=str(town / "trips.npz"), **shared)
    _, of_points = answers_of(town, "points", dataset=str(town / "two.csv"), **shared)
    pd.testing.assert_frame_equal(of_points, of_trips)
    assert list(of_trips.columns) == ["first", "second", "score", "same"]
    assert ((of_trips["score"] > 0) == of_trips["same"]).all() and of_trips["score"].nunique() == 2
    reader = Reader(str(town / "two.csv"), spool=town)
    save_trips(town / "elsewhere.npz", prepare_trips(reader, Rules(), reader.counts))
    with pytest.raises(UserError, match="lies on another map"):
        answers_of(town, "elsewhere", dataset=str(town / "elsewhere.npz"), **shared)


def test_answers_that_are_certain_are_so(town, monkeypatch):
    """However seek points are moved; a wider move makes none more certain. Without questions the truth is known."""
    monkeypatch.chdir(town)
    options = {"model": town / "certified.keras", "dataset": str(town / "trips.npz"), "draws": 1}
    results, answers = answers_of(town, "certified", **options)
    assert len(answers) == 16 and results["metrics"]["certain_share_1"] == answers["certain_1"].mean() > 0
    assert not (answers["certain_2"] & ~answers["certain_1"]).any()
    assert {"auc", "named_rightly", "named_rightly_low"} <= set(results["metrics"])
    model, trips = checkpoints.load_model(town / "certified.keras"), load_trips(town / "trips.npz")
    asked = questions.later_against_earlier(trips, 10)
    x = questions.samples(trips, *questions.draw_sides(trips, asked, model.layout, 1, 0), model.layout, [0.0] * 11)
    np.testing.assert_allclose(np.asarray(model(x))[:, 0], answers["score"], atol=1e-3)
    rng, sure = np.random.default_rng(0), answers["certain_1"].to_numpy()
    for _ in range(20):
        moving = x[:, model.layout.moving].copy()
        shift = rng.integers(-1, 2, (*moving.shape[:-1], 2)) * (moving[..., SLOT : SLOT + 1] > 0)
        moving[..., X : Y + 1] = np.clip(moving[..., X : Y + 1] + shift, 0, np.array(trips.grid.size) - 1)
        moved = np.asarray(model(replace_rows(model.layout, x, moving)))[:, 0] > 0
        assert (moved == answers["same"])[sure].all()


def test_only_the_trips_of_the_days_asked_about_are_read(tiny_trips, tiny_fleet):
    layout = tiny_fleet().layout
    asked = [
        Question("d1", "d4", ("2020-01-03", "2020-01-03"), ("", "2020-01-02")),
        Question("d2", "d2"),
        Question("d2", "d3"),
    ]
    drawn, profiles = questions.draw_sides(tiny_trips, asked, layout, 5, 0)
    assert drawn.shape == (15, 2, 2, 2) and profiles.shape == (15, 2, 11)
    days = [np.unique(tiny_trips.day[drawn[5 * q : 5 * q + 5, side]]) for q in range(3) for side in range(2)]
    assert days[0].tolist() == [2] and set(days[1]) <= {0, 1}
    assert days[2].max() < 4 <= days[3].min() and len(set(days[4]) | set(days[5])) > 4
    for q, question in enumerate(asked):
        for side, name in enumerate(question[:2]):
            own = drawn[5 * q : 5 * q + 5, side]
            assert (tiny_trips.driver[own] == int(name[1:])).all() and (np.diff(own, axis=-1) > 0).all()
            assert (tiny_trips.kind[own] == np.array(layout.kinds)[:, None]).all()
    np.testing.assert_allclose(profiles[0, 0], tiny_trips.profiles[1, 2])
    np.testing.assert_allclose(profiles[0, 1], tiny_trips.profiles[4, :2].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("nobody", "d1"), "no driver 'nobody' among the 8"),
        (Question("d0", "d1", ("2021-01-01", "")), "'d0' has no seek trips from 2021-01-01 to the last"),
    ],
)
def test_what_cannot_be_asked(tiny_trips, tiny_fleet, question, message):
    with pytest.raises(UserError, match=message):
        questions.draw_sides(tiny_trips, [question], tiny_fleet().layout, 1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'first'"),
        ("first,second\n", "asks nothing"),
        ("first,other\na,b\n", "no column 'second'"),
        ("first,second,when\na,b,1\n", "unknown column 'when'"),
        ("first,second\na,\n", "line 2: expected the names of two drivers"),
        ("first,second\na,b,c\n", "line 2: expected the names of two drivers"),
        ("first,second,first_to\na,b,yesterday\n", "line 2: first_to is 'yesterday'"),
        (b"\xff\xfef\0", "UTF-16"),
        (b"first,second\n\xe9,b\n", "no CSV file in UTF-8"),
    ],
)
def test_files_that_ask_nothing(tmp_path, text, message):
    path = tmp_path / "who.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        questions.read_questions(path)


def test_a_file_of_questions(tmp_path):
    path = tmp_path / "who.csv"
    path.write_bytes(b'\xef\xbb\xbfsecond, first,second_from\r\nb, 007,2026-11-28\r\n"d, e",c,\r\n')
    assert questions.read_questions(path) == [
        Question("007", "b", ("", ""), ("2026-11-28", "")),
        Question("c", "d, e"),
    ]


def test_other_models_are_refused(tiny_file, tiny_fleet, tmp_path, monkeypatch):
    """A classifier, and a verifier of before it knew its map."""
    from mobility_humid.models.networks import Classifier
    from mobility_humid.train import Options

    monkeypatch.chdir(tmp_path)
    options = Options(dataset=str(tiny_file), **SMALLEST, units=(4, 4, 4))
    for sides, make, message in (
        (1, lambda a: Classifier(classes=8, **a), "is no verifier of drivers"),
        (2, lambda a: Siamese(**a | {"world": None}), "does not say on which map"),
    ):
        path = tmp_path / f"{sides}.keras"
        checkpoints.save_model(make(network_arguments(options, tiny_fleet(sides=sides))), path)
        with pytest.raises(UserError, match=message):
            identify(identify.options(model=path, dataset=str(tiny_file)))
