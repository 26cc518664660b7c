"""The whole experiment: networks, recommenders, attacks and controls, frozen and retrained, in one table."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from common.errors import UserError
from common.runs.model_input import IMAGENET_NAMES, InputOptions, check_input, is_run
from common.runs.options import Count, LinfBudget, ScriptOptions, option
from common.runs.record import Run, read_results, read_table
from common.runs.script import Script, script
from common.runs.sub_runs import SubRuns, part_options
from multimedia_recsys import rec_generator
from multimedia_recsys.classify_extract import classify_extract
from multimedia_recsys.classify_extract_attack import classify_extract_attack
from multimedia_recsys.evaluate_visual_images import evaluate_visual_images
from multimedia_recsys.models.settings import VISUAL
from multimedia_recsys.rec_generator import rec_generator as generator
from multimedia_recsys.results_analyzer import read_attack, results_analyzer
from multimedia_recsys.train_cnn import CATALOG_FIELDS, CatalogOptions, load_catalog, train_cnn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from multimedia_recsys.data.catalog import Catalog
    from multimedia_recsys.data.visual_features import VisualFeatures
    from multimedia_recsys.models.recommenders import Bpr
    from multimedia_recsys.models.settings import Settings

STANDARD = "standard"
TRAINED = {STANDARD: "standard", "robust": "pgd"}


@dataclass(kw_only=True)
class Options(InputOptions, CatalogOptions, ScriptOptions):
    """What is run; the settings of each script are in its section of --config."""

    attack: tuple[Literal["fgsm", "pgd", "cw"], ...] = option(("fgsm", "pgd"), "attacks")
    """Attacks towards the target class: fgsm, pgd, cw."""
    eps: tuple[LinfBudget, ...] = option((8 / 255,), "budgets")
    """Budgets (L-inf), in [0, 1]."""
    pairs: tuple[Literal["near", "far"], ...] = ("near", "far")
    """Pairs of classes: near, far."""
    cnns: tuple[str, ...] = (STANDARD,)
    """Image classifiers: standard and robust, which are trained, the latter on PGD examples; resnet50 with ImageNet
    weights; or .keras files, for which --input-scale is."""
    retrain: Literal["none", "headline", "first", "all"] = "headline"
    """After which attacks recommenders are also retrained: PGD at the headline budget on the near pair and its
    controls; all on the first network; or all."""
    headline_eps: LinfBudget = 8 / 255
    """Budget of the headline, of noise and of insa."""
    top_k: Count = 50
    """Length K of the lists that are counted."""


class Attempt(NamedTuple):
    """Attack, budget and, for insa, whose scores it raises."""

    kind: str
    eps: float
    recommender: str | None = None

    @property
    def name(self) -> str:
        """As tables have it: `pgd_8`, `insa_8_vbpr`, and `cw` and `swap`, which have no budget."""
        budget = [] if self.budget is None else [f"{255 * self.budget:g}"]
        return "_".join((self.kind, *budget, *([self.recommender] if self.recommender else [])))

    @property
    def budget(self) -> float | None:
        """The L-inf budget, of an attack that has one."""
        from multimedia_recsys.attacks.images import ATTACKS

        return self.eps if ATTACKS[self.kind].budgeted else None


class Outcome(NamedTuple):
    """Of one attack: by recommender and measure its `exposure` with that frozen; the headlines of attack and images."""

    exposure: dict[str, dict[str, dict[str, float]]]
    attack: dict[str, float]
    quality: dict[str, float]


class Stage(NamedTuple):
    """A network, how it takes images, what it made of the clean ones, and the recommenders that were trained on
    that."""

    name: str
    model: Path | None
    reading: dict[str, Any]
    features: Path
    recommendations: Path
    visual: "VisualFeatures"
    recommenders: "dict[str, Bpr]"
    settings: "Settings"


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from multimedia_recsys.data.categories import check_length

    if len({Path(cnn).stem for cnn in options.cnns}) < len(options.cnns):
        raise UserError("--cnns: expected one or more networks of different names")

    def part(producer: Script, **settings: Any) -> Any:
        wanted = part_options(options, producer, shared=CATALOG_FIELDS, **settings)
        producer.check(wanted, alone=True)
        return wanted

    files = [Path(cnn) for cnn in options.cnns if cnn not in (*TRAINED, *IMAGENET_NAMES)]
    check_input(options, files)
    for path in files:
        if not path.exists():
            names = ", ".join((*TRAINED, *IMAGENET_NAMES))
            raise UserError(f"--cnns: {path}: no such file; choose {names} or a .keras file")
        part(classify_extract, model=path, **_reading(options, path))
    for cnn in TRAINED:
        if cnn in options.cnns:
            part(train_cnn, method=TRAINED[cnn])
    lists = part(generator)
    for top_k in (options.top_k, part(results_analyzer).top_k):
        check_length(lists.top_k, top_k)
    for attempt in _attempts(options):
        part(classify_extract_attack, attack=attempt.kind, eps=attempt.eps)
    part(evaluate_visual_images)


def _reading(options: Options, path: Path) -> dict[str, Any]:
    """Options of a part for how the network in `path` takes images."""
    return {} if is_run(path) else {"input_scale": options.input_scale, "input_offset": options.input_offset}


@script(app="multimedia_recsys", name="run_all", columns=("cnn", "pair", "threat"), refusals=refusals)
def run_all(options: Options, run: Run) -> None:
    """Run what is missing and join the tables; with --force, run all of it again."""
    catalog = load_catalog(options)
    run.data(catalog.name, catalog.sha256)
    part = SubRuns(options, run, shared=CATALOG_FIELDS)
    analysis: Path | None = None
    headline: dict[str, Outcome] = {}
    for cnn in options.cnns:
        stage = _stage(cnn, catalog, part, run)
        if analysis is None:
            # The same classes for every network, or what is compared would be the classes.
            given = {} if cnn == STANDARD else {"features": stage.features, "recommendations": stage.recommendations}
            analysis = part(results_analyzer, *_place(cnn), **given)
        classes = read_results(analysis)["metrics"]
        for pair in options.pairs:
            named = {f"{side}_class": str(int(classes[f"{pair}_{side}"])) for side in ("origin", "target")}
            for attempt in _attempts(options):
                is_first = (cnn, pair, attempt.eps) == (options.cnns[0], options.pairs[0], options.headline_eps)
                retrain = {
                    "none": False,
                    "headline": is_first and attempt.kind in ("pgd", "noise", "swap"),
                    "first": cnn == options.cnns[0],
                    "all": True,
                }[options.retrain]
                outcome = _try(options, catalog, stage, part, run, pair, attempt, named, retrain)
                if is_first:
                    headline[attempt.name] = outcome
    _headline(run, headline, part, 255 * options.headline_eps)
    _draw(options, run, headline)


def _place(cnn: str) -> tuple[str, ...]:
    """Sub-folder of the runs of a network: none for the standard one, whose runs are the scripts' own of this name."""
    return () if cnn == STANDARD else (Path(cnn).stem,)


def _stage(cnn: str, catalog: "Catalog", part: SubRuns, run: Run) -> Stage:
    from multimedia_recsys.data.visual_features import read_visual
    from multimedia_recsys.models import recommendations

    place, name = _place(cnn), Path(cnn).stem
    # A run's own default is the run of the same name, which the standard network's are.
    model: Path | None = None
    how: dict[str, Any] = {}
    if cnn in TRAINED:
        trained = part(train_cnn, *place, method=TRAINED[cnn])
        _copy(run, trained, name)
        model = None if cnn == STANDARD else trained
    else:
        model = Path(cnn)
        how = {} if cnn in IMAGENET_NAMES else _reading(part.options, model)
    features = part(classify_extract, *place, model=model, **how)
    lists = part(generator, *place, features=None if cnn == STANDARD else features)
    _copy(run, lists, name)
    visual = read_visual(features / "original_images", catalog.file_names)
    loaded = {
        kind: recommendations.load(lists / f"{kind}.npz", catalog.feedback, visual.features.shape[1])[0]
        for kind in VISUAL
    }
    return Stage(name, model, how, features, lists, visual, loaded, rec_generator.settings_in(lists))


def _attempts(options: Options) -> "Iterator[Attempt]":
    for kind in options.attack:
        for eps in options.eps if kind != "cw" else options.eps[:1]:
            yield Attempt(kind, eps)
    for control in ("noise", "swap"):
        yield Attempt(control, options.headline_eps)
    for recommender in VISUAL:
        yield Attempt("insa", options.headline_eps, recommender)


def _try(
    options: Options,
    catalog: "Catalog",
    stage: Stage,
    part: SubRuns,
    run: Run,
    pair: str,
    attempt: Attempt,
    classes: dict[str, str],
    retrain: bool,
) -> Outcome:
    """One attack: its images, how they look, and what they do with each recommender; rows of the table."""
    place, where = f"{pair}_{attempt.name}", {"cnn": stage.name, "pair": pair}
    attacked = part(
        classify_extract_attack,
        stage.name,
        place,
        attack=attempt.kind,
        eps=attempt.eps,
        model=stage.model or train_cnn.folder(train_cnn.options_from(options)),
        **stage.reading,
        features=stage.features,
        recommendations=stage.recommendations,
        recommender=attempt.recommender or VISUAL[0],
        **classes,
    )
    quality = part(evaluate_visual_images, stage.name, place, attacked=attacked, features=stage.features)
    for folder in (attacked, quality):
        for row in read_table(folder):
            split = None if row["split"] == "all" else row["split"]
            run.row(**{**row, **where, "attack": attempt.name, "split": split, "eps": attempt.budget})
    frozen = _judge(options, catalog, stage, attacked, run, where, attempt, retrain)
    return Outcome(frozen, read_results(attacked)["metrics"], read_results(quality)["metrics"])


def _judge(
    options: Options,
    catalog: "Catalog",
    stage: Stage,
    place: Path,
    run: Run,
    where: dict[str, str],
    attempt: Attempt,
    retrain: bool,
) -> dict[str, dict[str, dict[str, float]]]:
    """The effect on each recommender, frozen and retrained: rows of the table, and the frozen figures."""
    import numpy as np

    from multimedia_recsys.evaluation import exposure
    from multimedia_recsys.models import recommendations

    attack = read_attack(place, catalog.file_names)
    clean, moved = (features / np.float32(stage.visual.scale) for features in (stage.visual.features, attack.features))

    def stand(model: "Bpr", features: "np.ndarray") -> exposure.Exposure:
        return exposure.exposure_of(
            model.factors(features), catalog.feedback, stage.visual.label, attack.items, attack.pair, options.top_k
        )

    frozen = {}
    for kind, recommender in stage.recommenders.items():
        # What was aimed at one recommender is judged on that one.
        if attempt.recommender not in (None, kind):
            continue
        before = stand(recommender, clean)
        models = {"frozen": recommender}
        if retrain:
            run.log(f"training {kind} again after {attempt.name}")
            models["retrained"] = recommendations.trained(
                kind, catalog.feedback, moved, stage.settings, seed=options.seed, verbose=True
            )
        for threat, model in models.items():
            found = exposure.measures(before, stand(model, moved))
            found |= {"chr_clean": {"value": before.chr_origin}, "chr_target_clean": {"value": before.chr_target}}
            if threat == "frozen":
                frozen[kind] = found
            for metric, columns in found.items():
                run.row(model=kind, attack=attempt.name, threat=threat, metric=metric, **where, **columns)
    return frozen


def _copy(run: Run, folder: Path, cnn: str) -> None:
    """The rows of a part in this run's table."""
    for row in read_table(folder):
        run.row(**{**row, "cnn": cnn})


def _headline(run: Run, headline: dict[str, Outcome], parts: SubRuns, grey: float) -> None:
    recommenders = next(part for part in parts.results if part["script"] == "rec_generator")["metrics"]
    run.metrics(**{name: recommenders[name] for name in ("hr_at_10", "ndcg_at_10", "auc")})
    if (pgd := headline.get(f"pgd_{grey:g}")) is not None:
        effect, attack, quality = pgd.exposure["vbpr"], pgd.attack, pgd.quality
        run.metrics(
            chr_origin_clean=effect["chr_clean"]["value"],
            chr_origin_attacked=effect["chr_origin"]["value"],
            chr_origin_noise=headline[f"noise_{grey:g}"].exposure["vbpr"]["chr_origin"]["value"],
            chr_origin_swap=headline["swap"].exposure["vbpr"]["chr_origin"]["value"],
            chr_target_clean=effect["chr_target_clean"]["value"],
            attack_success=attack["attack_success"],
            attack_success_n=attack["attack_success_n"],
            psnr_mean=quality["psnr_mean"],
            ssim_mean=quality["ssim_mean"],
            psm_mean=quality["psm_mean"],
            mean_rank_shift=effect["rank_shift"]["value"],
            mean_item_lift=effect["item_lift"]["value"],
        )
    run.metrics(minutes=parts.minutes)


def _draw(options: Options, run: Run, headline: dict[str, Outcome]) -> None:
    """In how many more lists an attacked item is under each attack at the headline's budget, frozen."""
    from common.evaluation import plots
    from common.evaluation.statistics import Estimate

    shown = {name: outcome.exposure for name, outcome in headline.items() if set(outcome.exposure) == set(VISUAL)}
    lifts = {kind: [of[kind]["item_lift"] for of in shown.values()] for kind in VISUAL}
    # A single item has a lift and no interval.
    bars = {kind: [Estimate(**of) if "n" in of else of["value"] for of in found] for kind, found in lifts.items()}
    title = f"lists with an attacked item, after less before ({Path(options.cnns[0]).stem}, {options.pairs[0]})"
    groups, xlabel = [name.replace("_", " ") for name in shown], f"share of the top-{options.top_k} lists, 95 % by item"
    run.figure("lift", plots.grouped_bars, groups, bars, title=title, xlabel=xlabel, top=None)


if __name__ == "__main__":
    run_all.main()
