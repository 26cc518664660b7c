"""Ask a trained verifier: are these two drivers one and the same? Of raw GPS points that it has never seen."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, one_line
from common.runs.model_input import look_at
from common.runs.options import Count, RunOptions, ScriptOptions
from common.runs.record import Run
from common.runs.script import script
from mobility_humid.prepare import columns_of, prepare
from mobility_humid.train import train

if TYPE_CHECKING:
    import numpy as np

    from mobility_humid.data.questions import Question
    from mobility_humid.data.trips import TripSet
    from mobility_humid.models.networks import TripModel

_BLOCK, _SHOWN = 50, 10


@dataclass(kw_only=True)
class Options(ScriptOptions, RunOptions):
    """The verifier, the trips, and the questions."""

    model: Path | None = None
    """Verifier that train.py or certify.py wrote; by default that of train.py, trained if need be."""
    dataset: str = "city"
    """GPS points of the drivers asked about, in any form that prepare.py reads, or trips that it wrote (.npz). They are
    cut into trips as the verifier's were, on its map, in its time zone."""
    columns: str | None = None
    """Names of the columns where they are others, as for prepare.py."""
    pairs: Path | None = None
    """CSV file of the questions: columns first and second, the drivers' names, and ISO dates first_from, first_to,
    second_from, second_to to take the trips of some days only. By default the later days of --n-drivers drivers against
    the earlier ones of each of them, whose answers are known."""
    n_drivers: Count = 10
    """Drivers, the first ones, when no --pairs are given."""
    draws: Count = 3
    """Samples of either driver's trips for each question; the answer is their mean."""
    eps: tuple[Count, ...] = (1, 2)
    """Of a certified verifier: cells that seek points may have been moved by; is the answer the same whatever they
    were?"""


def refusals(options: Options) -> None:
    """What is refused before points are read."""
    from common.evaluation.classifiers import load_network
    from mobility_humid.data.questions import read_questions
    from mobility_humid.models import certified  # noqa: F401 - its layers must be known before a file is read

    columns_of(options.columns)
    if options.pairs is not None:
        read_questions(options.pairs)
    if options.model is not None:
        look_at(options.model, lambda: _checked(load_network(options.model, input_scale=1.0)[0], options.model))


def needs(options: Options) -> None:
    """What train.py and prepare.py would refuse, where they are to be run."""
    train.expect(options.model, options, ["seed"], dataset="city")
    if options.dataset == "city":
        prepare.expect(None, options)


@script(app="mobility_humid", name="identify", refusals=refusals, needs=needs)
def identify(options: Options, run: Run) -> None:
    """Write `answers.csv`, a line for each question; where the truth is known, how often they are right."""
    import pandas as pd

    from common import files
    from common.evaluation import classifiers, statistics
    from mobility_humid.data import questions as asking
    from mobility_humid.data.trips import KINDS

    path = classifiers.model_file(run.require(train, options.model, options, ["seed"], dataset="city"))
    model = _checked(classifiers.load_network(path, input_scale=1.0)[0], path)
    trips = _trips(options, run, model)
    run.data(options.dataset, trips.sha256)
    if missing := set(model.layout.kinds) - set(trips.kinds):
        names = " and ".join(KINDS[kind] for kind in sorted(missing))
        raise UserError(f"{options.dataset}: has no {names} trips, which {path} compares")
    known = options.pairs is None
    asked = asking.later_against_earlier(trips, options.n_drivers) if known else asking.read_questions(options.pairs)
    run.log(f"{len(asked)} questions to {path}")
    answers = pd.DataFrame([{"first": q.first, "second": q.second} for q in asked])
    score, certain = _ask(options, model, trips, asked)
    answers["score"], answers["same"] = score.round(4), score > 0
    for eps, sure in certain.items():
        answers[f"certain_{eps}"] = sure
    files.write_text(run.folder / "answers.csv", answers.to_csv(index=False, lineterminator="\n"))
    run.artifact("answers", run.folder / "answers.csv")
    for line in answers.sort_values("score", ascending=False).head(_SHOWN).to_string(index=False).splitlines():
        run.log(line)
    # Questions share drivers, so that their number says little about how sure such a share is: no interval.
    shares = {"accepted_share": score > 0} | {f"certain_share_{eps}": sure for eps, sure in certain.items()}
    for metric, answer in shares.items():
        run.row(metric=metric, value=float(answer.mean()))
        run.metrics(**{metric: float(answer.mean())})
    if known:
        first, second = (answers[side].to_numpy() for side in ("first", "second"))
        best = answers.loc[answers.groupby("second")["score"].idxmax()]
        hits = (best["first"] == best["second"]).to_numpy()
        named = statistics.independent(float(hits.mean()), len(hits))
        run.row(metric="named_rightly", **named._asdict())
        run.intervals({"named_rightly": named})
        run.metrics(auc=statistics.auc(score, (first == second).astype(int)))


def _checked(model, path: Path | None) -> "TripModel":
    """`model`, a verifier that knows its map. Errors: `UserError` for any other."""
    from mobility_humid.models.networks import TripModel

    if not isinstance(model, TripModel) or model.layout.sides != 2:
        raise UserError(f"{path}: is no verifier of drivers; expected one that train.py or certify.py wrote")
    if model.world is None:
        raise UserError(f"{path}: does not say on which map it was trained; train it again")
    return model


def _trips(options: Options, run: Run, model: "TripModel") -> "TripSet":
    """The trips to ask about, on the map of `model`, cut as those that it was trained on."""
    from mobility_humid.data.gps import Reader
    from mobility_humid.data.preparation import Rules, find_zone, prepare_trips
    from mobility_humid.data.trips import Grid, load_trips

    grid, is_file = Grid(**model.world["grid"]), Path(options.dataset).suffix == ".npz"
    if is_file or options.dataset == "city":
        path = Path(options.dataset) if is_file else run.require(prepare, None, options) / "trips.npz"
        trips = load_trips(path)
        if trips.grid != grid:
            raise UserError(f"{path}: lies on another map than the verifier's; give the points that it was made of")
        return trips
    try:
        rules = Rules(**model.world["rules"])
    except TypeError as error:
        raise UserError(
            f"{options.model}: was trained on trips that prepare.py did not cut ({one_line(error, 80)})"
        ) from error
    zone = find_zone(grid.time_zone)
    reader = Reader(options.dataset, columns=columns_of(options.columns), zone=zone, spool=run.folder, progress=True)
    counts = reader.counts
    trips = prepare_trips(reader, rules, counts, grid=grid)
    if counts["out_of_map"] * 2 > counts["points"]:
        run.log(f"{counts['out_of_map']:,} of {counts['points']:,} points lie off the verifier's map")
    return trips


def _ask(
    options: Options, model: "TripModel", trips: "TripSet", asked: "list[Question]"
) -> "tuple[np.ndarray, dict[int, np.ndarray]]":
    """The mean score of each question, above 0 for the same driver, and by eps whether no move of seek points within it
    changes the answer, of a certified verifier."""
    import numpy as np

    from common.progress import blocks
    from mobility_humid.data import questions as asking
    from mobility_humid.models.certified import CertifiedSiamese

    drawn, profiles = asking.draw_sides(trips, asked, model.layout, options.draws, options.seed)
    sides = options.eps if isinstance(model, CertifiedSiamese) else ()
    found = {key: np.zeros(len(drawn), np.float64) for key in (0, *((eps, end) for eps in sides for end in range(2)))}
    for rows in blocks(len(drawn), _BLOCK, "asking", units="samples"):
        x = asking.samples(trips, drawn[rows], profiles[rows], model.layout, model.mean_profile)
        found[0][rows] = np.asarray(model(x, training=False))[:, 0]
        if sides:
            seen = model.observe(x)
            for eps in sides:
                for end, value in enumerate(model.bounds(seen, eps)):
                    found[eps, end][rows] = np.asarray(value)
    mean = {key: values.reshape(-1, options.draws).mean(axis=1) for key, values in found.items()}
    # The mean of the ends lies outside of what moving points that draws share can do.
    return mean[0], {eps: (mean[eps, 0] > 0) | (mean[eps, 1] <= 0) for eps in sides}


if __name__ == "__main__":
    identify.main()
