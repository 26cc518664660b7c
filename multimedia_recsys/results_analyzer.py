"""Measure how often each class is recommended, propose classes to attack, and measure the effect of an attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.runs.options import Count, ScriptOptions
from common.runs.record import Run, read_results
from common.runs.script import script
from multimedia_recsys import classify_extract, rec_generator
from multimedia_recsys.models.settings import VISUAL, Kind
from multimedia_recsys.train_cnn import CATALOG_FIELDS, CatalogOptions, load_catalog

if TYPE_CHECKING:
    from multimedia_recsys.data.attack_folders import Attack
    from multimedia_recsys.data.catalog import Catalog
    from multimedia_recsys.data.categories import Pair
    from multimedia_recsys.data.visual_features import VisualFeatures

# Classes that the figure shows.
_SHOWN = 24


@dataclass(kw_only=True)
class Options(CatalogOptions, ScriptOptions):
    """Which lists are analysed."""

    features: Path | None = None
    """Features of the clean images, a run of classify_extract.py; by default that of the same name."""
    recommendations: Path | None = None
    """Run of rec_generator.py; by default that of the same name."""
    recommender: Kind = "vbpr"
    """Recommender whose top-K lists are analysed."""
    top_k: Count = 50
    """Length K of the lists that are counted."""
    attacked: Path | None = None
    """Run of classify_extract_attack.py, whose effect on this recommender is measured; for vbpr and amr."""
    retrain: bool = False
    """Measure also a recommender retrained, from the same seed, on the attacked features."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    if options.attacked is not None:
        if options.recommender not in VISUAL:
            raise UserError(f"--attacked: {options.recommender} does not look at images; choose {' or '.join(VISUAL)}")
        check_attack(options.attacked)


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    classify_extract.expected(options.features, options)
    files = [f"top_{options.recommender}.npz"]
    if options.attacked is not None:
        files.append(f"{options.recommender}.npz")
    rec_generator.expected(options.recommendations, options, *files, longest=options.top_k)


@script(app="multimedia_recsys", name="results_analyzer", columns=("threat",), refusals=refusals, needs=needs)
def results_analyzer(options: Options, run: Run) -> None:
    """CHR@K and nCDCG@K of each class; proposes a near and a far pair of origin and target; measures an attack."""
    import numpy as np

    from common.evaluation import plots, statistics
    from multimedia_recsys.data import categories
    from multimedia_recsys.data.visual_features import read_visual
    from multimedia_recsys.models import recommendations

    catalog = load_catalog(options)
    run.data(catalog.name, catalog.sha256)
    visual = read_visual(classify_extract.required(options.features, options, run), catalog.file_names)
    place = rec_generator.required(options.recommendations, options, run)
    lists = recommendations.read_lists(place / f"top_{options.recommender}.npz", catalog.feedback)
    classes = len(visual.names)
    shares = categories.chr_at(lists, visual.label, classes, options.top_k)
    gains = categories.ncdcg_at(lists, visual.label, classes, options.top_k)
    counts = np.bincount(visual.label, minlength=classes)
    for label in np.argsort(-shares):
        if counts[label]:
            for metric, value in (("chr", shares[label]), ("ncdcg", gains[label]), ("items", counts[label])):
                run.row(model=options.recommender, attack="none", split=visual.names[label], metric=metric, value=value)
    near, far = categories.propose(shares, visual.label, visual.features / np.float32(visual.scale))
    for name, pair in (("near", near), ("far", far)):
        run.log(
            f"{name} pair: {visual.names[pair.origin]} (CHR@{options.top_k} {shares[pair.origin]:.4f}) ->"
            f" {visual.names[pair.target]} ({shares[pair.target]:.4f})"
        )
        run.metrics(**{f"{name}_origin": pair.origin, f"{name}_target": pair.target})
    run.metrics(
        chr_origin=float(shares[near.origin]), chr_near=float(shares[near.target]), chr_far=float(shares[far.target])
    )
    shown = np.argsort(-shares)[:_SHOWN]
    shown = shown[counts[shown] > 0]
    users = np.arange(len(lists))
    by_user = [
        statistics.mean(categories.shares_by_user(lists, visual.label, label, options.top_k), users, seed=options.seed)
        for label in shown
    ]
    run.figure(
        "classes",
        plots.grouped_bars,
        [visual.names[label] for label in shown],
        {f"CHR@{options.top_k}": by_user, "share of the items": counts[shown] / counts.sum()},
        title=f"{options.recommender}: what the lists are made of",
        xlabel="share",
        top=None,
    )
    if options.attacked is not None:
        _measure(options, run, catalog, visual, place)


def proposed(given: Path | None, options: CatalogOptions, run: Run) -> "dict[str, Pair]":
    """The near and the far pair of an analysis, `given` or of the same name."""
    from common.runs.record import read_results
    from multimedia_recsys.data.categories import Pair

    place = run.require(results_analyzer, given, options, CATALOG_FIELDS)
    found = read_results(place)["metrics"]
    return {name: Pair(int(found[f"{name}_origin"]), int(found[f"{name}_target"])) for name in ("near", "far")}


def expected(given: Path | None, options: CatalogOptions) -> None:
    """What `proposed` would refuse."""
    from common.runs.record import read_results

    results_analyzer.expect(given, options, CATALOG_FIELDS)
    if given is not None and "near_origin" not in read_results(given)["metrics"]:
        raise UserError(f"{given}: proposes no pair of classes; give a run of results_analyzer.py")


def _measure(options: Options, run: Run, catalog: "Catalog", visual: "VisualFeatures", place: Path) -> None:
    """What an attack does with the recommender."""
    import numpy as np

    from multimedia_recsys.evaluation import exposure
    from multimedia_recsys.models import recommendations

    attack = read_attack(options.attacked, catalog.file_names)
    model, scale = recommendations.load(
        place / f"{options.recommender}.npz", catalog.feedback, visual.features.shape[1]
    )
    before = exposure.exposure_of(
        model.factors(visual.features / np.float32(scale)),
        catalog.feedback,
        visual.label,
        attack.items,
        attack.pair,
        options.top_k,
    )
    scaled = attack.features / np.float32(scale)
    models = {"frozen": model}
    if options.retrain:
        run.log(f"training {options.recommender} again, on the attacked features")
        settings = rec_generator.settings_in(place)
        models["retrained"] = recommendations.trained(
            options.recommender, catalog.feedback, scaled, settings, seed=options.seed, verbose=True
        )
    for threat, recommender in models.items():
        after = exposure.exposure_of(
            recommender.factors(scaled), catalog.feedback, visual.label, attack.items, attack.pair, options.top_k
        )
        for metric, columns in exposure.measures(before, after).items():
            run.row(model=options.recommender, attack=attack.name, threat=threat, metric=metric, **columns)
            run.metrics(**{f"{metric}_{threat}": columns["value"]})
    run.metrics(chr_origin_clean=before.chr_origin, attacked_items=len(attack.items))


def check_attack(run: Path) -> dict[str, Any]:
    """The results of a run of classify_extract_attack.py. Errors: `UserError` for one that is not finished, and for
    another run."""
    results = read_results(run)
    if "images" not in results["artifacts"]:
        raise UserError(f"{run}: holds no attack; make it by classify_extract_attack.py")
    return results


def read_attack(run: Path, file_names: Sequence[str]) -> "Attack":
    """The attack of a finished run of classify_extract_attack.py on a shop whose items' images have these names.

    Errors: `UserError` for one that is not finished or of another shop.
    """
    from multimedia_recsys.data import attack_folders
    from multimedia_recsys.data.categories import Pair

    results = check_attack(run)
    pair = Pair(int(results["metrics"]["origin"]), int(results["metrics"]["target"]))
    return attack_folders.read_attack(run / results["artifacts"]["images"], pair, file_names)


if __name__ == "__main__":
    results_analyzer.main()
