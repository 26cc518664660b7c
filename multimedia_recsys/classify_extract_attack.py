"""Attack the images of a class towards another class, and extract their features as the recommender would."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.errors import UserError
from common.runs.options import Budget, Count, LinfBudget, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from multimedia_recsys import classify_extract, rec_generator, results_analyzer
from multimedia_recsys.classify_extract import ClassifierOptions, check_classifier, classifier, classifier_needs
from multimedia_recsys.train_cnn import load_catalog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.evaluation.robustness import Outcome
    from common.evaluation.statistics import Estimate
    from multimedia_recsys.data.categories import Pair
    from multimedia_recsys.data.visual_features import VisualFeatures

_EXAMPLES = 8


@dataclass(kw_only=True)
class Options(ClassifierOptions, ScriptOptions):
    """The attack."""

    attack: Literal["fgsm", "pgd", "cw", "insa", "noise", "swap"] = option("pgd", "attack_type")
    """Towards the target class by fgsm, pgd or cw (L2, no budget); insa raises the mean score over users instead; noise
    of the same budget, and swap, a real image of the target class, are controls."""
    eps: LinfBudget = 8 / 255
    """Budget (L-inf), in [0, 1]."""
    eps_space: Literal["pixels", "normalised"] = "pixels"
    """Where the budget counts: in pixels, or, as in the original, in pixels over ImageNet's deviation of the channel,
    which is about a quarter of it."""
    steps: Count = option(10, "nb_iter")
    """Steps of pgd and insa, of a sixth of the budget each."""
    pair: Literal["near", "far"] = "near"
    """Which of the proposed pairs of classes, unless both classes are given."""
    origin_class: str | None = None
    """Class whose items are attacked, by name or number: all that the network predicts as it."""
    target_class: str | None = None
    """Target class of the attack."""
    analysis: Path | None = None
    """Run of results_analyzer.py that proposes the pairs; by default that of the same name."""
    features: Path | None = None
    """Features of the clean images, a run of classify_extract.py; by default that of the same name."""
    recommendations: Path | None = None
    """Run of rec_generator.py, for insa; by default that of the same name."""
    recommender: Literal["vbpr", "amr"] = "vbpr"
    """Whose scores insa raises."""
    confidence: Budget = 0.0
    """cw: margin by which the target's logit has to lead."""
    cw_steps: Count = 200
    """cw: gradients of each round."""
    cw_rounds: Count = 5
    """cw: rounds of the search for the weight c."""
    cw_weight: Budget = option(1e-2, "c")
    """cw: initial weight c."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    check_classifier(options)
    given = (options.origin_class, options.target_class)
    if (given[0] is None) != (given[1] is None):
        raise UserError("--origin-class, --target-class: give both or neither")
    if given[0] is not None and given[0] == given[1]:
        raise UserError(f"--target-class: {given[1]} is the origin too; choose another")


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    classifier_needs(options)
    classify_extract.expected(options.features, options, *_alike(options))
    if options.origin_class is None:
        results_analyzer.expected(options.analysis, options)
    if options.attack == "insa":
        rec_generator.expected(options.recommendations, options, f"{options.recommender}.npz")


def _alike(options: Options) -> tuple[str, ...]:
    """What a run of classify_extract.py that was not named must have in common with this one."""
    return ("model", "input_scale", "input_offset") if options.features is None else ()


@script(app="multimedia_recsys", name="classify_extract_attack", refusals=refusals, needs=needs)
def classify_extract_attack(options: Options, run: Run) -> None:
    """Writes `<attack>_<origin>_<target>_<budget>_images/` with `images/`, `classes.csv` and `features.npy`."""
    import numpy as np

    from common.evaluation import plots
    from common.evaluation.robustness import Entry, Examples, Outcome
    from common.files import write_text
    from multimedia_recsys.attacks.images import ATTACKS
    from multimedia_recsys.data import attack_folders
    from multimedia_recsys.data.visual_features import Extracted, read_visual, write_visual
    from multimedia_recsys.models.cnn import extract

    catalog = load_catalog(options)
    run.data(catalog.name, catalog.sha256)
    model, names = classifier(options, catalog, run)
    folder_of_clean = classify_extract.required(options.features, options, run, *_alike(options))
    clean = read_visual(folder_of_clean, catalog.file_names)
    pair = _pair(options, run, names)
    items = np.flatnonzero(clean.label == pair.origin)
    if not len(items):
        raise UserError(f"--origin-class: the network takes no image for {names[pair.origin]}; choose another")
    listed = ATTACKS[options.attack]
    budget = f"eps{255 * options.eps:g}" if listed.budgeted else "free"
    name = f"{options.attack}_{pair.origin}_{pair.target}_{budget}"
    run.log(
        f"{name}: {len(items)} images of {names[pair.origin]}"
        + (f" towards {names[pair.target]}" if listed.aimed else "")
    )
    begun = run.checkpoints / f"{name}_images" / "images"
    attack_folders.write_images(begun, catalog, items, _change(options, run, catalog, model, clean, pair))
    folder = run.folder / f"{name}_images"
    folder.mkdir(exist_ok=True)
    begun.rename(folder / "images")
    # From the files, as a shop would have them.
    changed = attack_folders.read_images(folder / "images", catalog, items)
    extracted = extract(model, changed, progress=True)
    label, prob, features = (np.array(values) for values in clean[:3])
    label[items], prob[items], features[items] = extracted
    write_visual(folder, catalog, Extracted(label, prob, features), names, started=clean)
    write_text(folder / "items.csv", "".join(f"{item}\n" for item in items))
    run.artifact("images", folder)
    limits = {"norm": "linf", "eps": options.eps} if listed.budgeted else {"norm": None, "eps": None}
    entry = Entry(name=name, control=listed.control, **limits)
    outcome = Outcome(entry, Examples(items, clean.label[items]), None, clean.label[items], extracted.label)
    for row in outcome.rows(partial(_answers, pair=pair)):
        run.row(**row)
        if row["metric"] == "attack_success":
            run.metrics(attack_success=row["value"], attack_success_n=row["n"], origin=pair.origin, target=pair.target)
    if catalog.category is not None and len(catalog.category_names) == len(names):
        run.row(
            attack=name,
            metric="shop_says_origin",
            value=float((catalog.category[items] == pair.origin).mean()),
            n=len(items),
        )
    before, after = catalog.images.read(items[:_EXAMPLES]), changed[:_EXAMPLES]
    added = np.clip(0.5 + 8 * (after / 255.0 - before / 255.0), 0, 1)
    run.figure(
        "examples",
        plots.image_rows,
        {"clean": list(before), "attacked": list(after), "difference x 8": list(added)},
        title=f"{options.attack}, {names[pair.origin]} towards {names[pair.target]}; on top the answers it got",
        columns=[names[label] for label in extracted.label[:_EXAMPLES]],
    )


def _answers(outcome: "Outcome", *, pair: "Pair") -> "Iterator[tuple[str, Estimate]]":
    """What images of the origin class are taken for after the attack."""
    label = outcome.after
    yield "attack_success", outcome.rate(label == pair.target)
    yield "origin_kept", outcome.rate(label == pair.origin)
    yield "other_class", outcome.rate((label != pair.target) & (label != pair.origin))


def _pair(options: Options, run: Run, names: tuple[str, ...]) -> "Pair":
    from multimedia_recsys.data.categories import Pair, parse_class

    given = (options.origin_class, options.target_class)
    if given[0] is None:
        return results_analyzer.proposed(options.analysis, options, run)[options.pair]
    pair = Pair(parse_class(given[0], names, "--origin-class"), parse_class(given[1], names, "--target-class"))
    if pair.origin == pair.target:
        raise UserError(f"--target-class: {given[1]} is the origin too; choose another")
    return pair


def _change(options: Options, run: Run, catalog, model, clean: "VisualFeatures", pair: "Pair"):
    """images (n, H, W, 3), items (n,) -> changed images."""
    import numpy as np

    from multimedia_recsys.attacks.images import IMAGENET_STD, ImageAttack, swap_control
    from multimedia_recsys.models import recommendations
    from multimedia_recsys.models.recommenders import mean_score_direction

    if options.attack == "swap":
        candidates = np.flatnonzero(clean.label == pair.target)
        if not len(candidates):
            raise UserError("--target-class: the network takes no image for it; there is nothing to swap in")
        return lambda images, items: catalog.images.read(swap_control(candidates, items, options.seed))
    direction = None
    if options.attack == "insa":
        place = rec_generator.required(options.recommendations, options, run)
        path = place / f"{options.recommender}.npz"
        recommender, _ = recommendations.load(path, catalog.feedback, clean.features.shape[1])
        direction = mean_score_direction(recommender)
        if not len(direction):
            raise UserError(f"{path}: has no visual factors; insa needs a recommender that looks at images")
    eps = [options.eps * std for std in IMAGENET_STD] if options.eps_space == "normalised" else options.eps
    attack = ImageAttack(
        options.attack,
        model,
        eps=eps,
        steps=options.steps,
        confidence=options.confidence,
        cw_steps=options.cw_steps,
        cw_rounds=options.cw_rounds,
        cw_weight=options.cw_weight,
        direction=direction,
        seed=options.seed,
    )
    return lambda images, items: attack(images, pair.target, items)


if __name__ == "__main__":
    classify_extract_attack.main()
