"""Train recommenders on feedback and features, evaluate them, and write the top-K lists of all users."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.runs.options import Budget, Count, Natural, ScriptOptions, option
from common.runs.record import Run, read_config
from common.runs.script import script
from multimedia_recsys.models.settings import KINDS, Kind, Settings
from multimedia_recsys.train_cnn import CATALOG_FIELDS, CatalogOptions, load_catalog

if TYPE_CHECKING:
    import numpy as np

# Items with fewer training interactions are cold.
COLD = 5


@dataclass(kw_only=True)
class RecommenderOptions(CatalogOptions, ScriptOptions):
    """How recommenders are trained."""

    factors: Count = option(20, "emb1_K")
    """Length of the latent vectors; 64 in the original."""
    visual_factors: Natural = 20
    """Length of the visual vectors of VBPR and AMR."""
    epochs: Count = option(20, "epoch")
    """Passes over the interactions; AMR spends the second half on adversarial training."""
    batch_size: Count = 256
    """Triplets a step."""
    learning_rate: Budget = option(0.05, "lr")
    """Learning rate of Adagrad."""
    l2: Budget = 0.01
    """L2 weight of the vectors that a triplet looks up."""
    l2_visual: Budget = 0.1
    """L2 weight of the projection and the visual bias."""
    eps: Budget = option(1.0, "epsilon")
    """AMR: L2 length of the change of a feature; features are scaled to at most 1."""
    lambd: Budget = option(0.1, "lmd")
    """AMR: weight of the adversarial term."""


@dataclass(kw_only=True)
class Options(RecommenderOptions):
    """Which recommenders."""

    models: tuple[Kind, ...] = option(KINDS, "model")
    """Recommenders: vbpr, amr, and the baselines bprmf and popularity, which use no images; the first is the
    headline."""
    features: Path | None = None
    """Features of the images, a run of classify_extract.py or a folder with classes.csv and features.npy; by default
    the run of the same name."""
    top_k: Count = option(100, "tp_k_predictions")
    """Length of the lists; 1000 in the original."""


def needs(options: Options) -> None:
    """What classify_extract.py would refuse, where it is to be run."""
    from multimedia_recsys import classify_extract

    classify_extract.expected(options.features, options)


@script(app="multimedia_recsys", name="rec_generator", needs=needs)
def rec_generator(options: Options, run: Run) -> None:
    """Writes `<model>.npz`, the weights, and `top_<model>.npz`, the lists, of each recommender."""
    import numpy as np

    from common.files import write_npz
    from multimedia_recsys import classify_extract
    from multimedia_recsys.data.visual_features import read_visual
    from multimedia_recsys.evaluation import ranking
    from multimedia_recsys.models import recommendations

    catalog = load_catalog(options)
    run.data(catalog.name, catalog.sha256)
    visual = read_visual(classify_extract.required(options.features, options, run), catalog.file_names)
    scaled = visual.features / np.float32(visual.scale)
    feedback = catalog.feedback
    cold = feedback.popularity() < COLD
    run.log(
        f"{feedback.users} users, {feedback.items} items ({cold.sum()} with fewer than {COLD} interactions),"
        f" {len(feedback.item)} interactions, {(feedback.test >= 0).sum()} held out"
    )
    settings = settings_of(options)
    for kind in options.models:
        run.log(f"training {kind}")
        place = run.checkpoints / kind
        model = recommendations.trained(
            kind, feedback, scaled, settings, seed=options.seed, checkpoint_folder=place, verbose=True
        )
        factors = recommendations.factors_of(model, feedback, scaled)
        found = ranking.ranks(factors, feedback)
        per_user = ranking.quality(found)
        _record(run, kind, per_user, cold[feedback.test[found.user]], headline=kind == options.models[0])
        lists = ranking.top_k(factors, feedback, options.top_k)
        write_npz(run.folder / f"top_{kind}.npz", {"items": lists})
        run.artifact(f"top_{kind}", run.folder / f"top_{kind}.npz")
        if model is not None:
            recommendations.save(run.folder / f"{kind}.npz", model, visual.scale)
            run.artifact(kind, run.folder / f"{kind}.npz")


def settings_of(options: RecommenderOptions) -> Settings:
    """The settings that `options` hold."""
    return Settings(**{name: getattr(options, name) for name in Settings._fields})


def settings_in(folder: Path) -> Settings:
    """The settings of a run of this script."""
    config = rec_generator.parser.renamed(read_config(folder))
    return settings_of(rec_generator.options(**{name: config[name] for name in Settings._fields}))


def required(given: Path | None, options: CatalogOptions, run: Run) -> Path:
    """The run of recommenders that another script works on: `given`, or that of the same name."""
    return run.require(rec_generator, given, options, CATALOG_FIELDS)


def expected(given: Path | None, options: CatalogOptions, *files: str, longest: int = 0) -> None:
    """What `required` would refuse; a run without one of its `files`, and, where one is to be made, lists that are
    shorter than `longest`."""
    from multimedia_recsys.data.categories import check_length

    rec_generator.expect(given, options, CATALOG_FIELDS)
    for name in files if given is not None else ():
        if not (given / name).is_file():
            raise UserError(f"{given / name}: no such file; make it by rec_generator.py")
    if (planned := rec_generator.planned(given, options, CATALOG_FIELDS)) is not None:
        check_length(planned.top_k, longest)


def _record(run: Run, kind: str, per_user: "dict[str, np.ndarray]", cold: "np.ndarray", *, headline: bool) -> None:
    """Means over users, with intervals, of all held-out items and of the cold ones among them."""
    import numpy as np

    from common.evaluation import statistics

    for name, values in per_user.items():
        for split, among in (("all", slice(None)), ("cold items", cold)):
            chosen = values[among]
            if len(chosen) < 2:
                continue
            mean = statistics.mean(chosen, np.arange(len(chosen)))
            run.row(model=kind, split=split, metric=name, **mean._asdict())
            if headline and split == "all" and name in ("hr_at_10", "ndcg_at_10", "auc"):
                run.metrics(**{name: mean.value})


if __name__ == "__main__":
    rec_generator.main()
