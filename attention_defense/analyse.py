"""Test the paper's claims about attention and attacks (O1, O2, O3), with intervals and controls."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from attention_defense.attack import VictimOptions, check_models, load_test_set, load_victim, needs
from attention_defense.attacks.names import AttackName
from common.errors import UserError
from common.runs.options import Count, LinfBudget
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import keras
    import numpy as np

    from attention_defense.attack import Victim
    from attention_defense.attacks.table import Attack
    from attention_defense.evaluation.analysis import AttentionMaps
    from common.evaluation.statistics import Estimate

# Numbers of steps at which O3 is looked at.
STEPS = (1, 2, 3, 4, 8)


@dataclass(kw_only=True)
class Options(VictimOptions):
    """Which attacks."""

    attack: tuple[AttackName, ...] = ("pgd20", "step_ll")
    """Attacks whose successes and failures are compared, as in attack.py; the first is the headline's."""
    eps: LinfBudget = 8 / 255
    """Radius of the attacks (L-inf), in [0, 1]."""
    n_test: Count | None = 500
    """Number of test images; null takes all."""


class Case(NamedTuple):
    """The images that `victim` answers rightly: `x` float32 (N, H, W, C) in [0, 1], `y` int32 (N,), `masks` bool
    (N, H, W) or None; its attention to them, `seen`; and that to others for the same classes, `compute_attention`."""

    victim: "Victim"
    x: "np.ndarray"
    y: "np.ndarray"
    masks: "np.ndarray | None"
    seen: "AttentionMaps"
    options: Options

    def compute_attention(self, x: "np.ndarray") -> "AttentionMaps":
        from attention_defense.evaluation import analysis

        model, layer = self.victim.model, self.victim.layer
        return analysis.compute_attention(
            model, x, self.y, layer=layer, batch_size=self.options.batch_size, progress=True
        )

    def attacked(self, kind: str, eps: float) -> "np.ndarray":
        """The images under the attack `kind`, at 8 bits; successes and failures alike take all steps."""
        from attention_defense.attacks import table as attacks

        model, _, layer, training = self.victim
        attack = attacks.make_attack(kind, model, eps=eps, layer=layer, training=training, seed=self.options.seed)
        return self.changed(attack)

    def changed(self, attack: "Attack") -> "np.ndarray":
        """What `attack` makes of the images, at 8 bits."""
        from common.evaluation.robustness import adversarial_examples

        return adversarial_examples(attack, self.x, self.y, batch_size=self.options.batch_size, progress=True)


class Table:
    """Rows and headlines of one model's run."""

    def __init__(self, run: Run, model: str, eps: float) -> None:
        self.run, self.model, self.eps = run, model, eps

    def write(
        self,
        metric: str,
        found: "Estimate | None",
        *,
        attack: str,
        split: str,
        headline: str | None = None,
        **columns: str,
    ) -> None:
        """A row, if there is an estimate, with key `columns`; and under `headline` a figure of the run."""
        if found is None:
            return
        self.run.row(
            model=self.model,
            attack=attack,
            norm="linf",
            eps=self.eps,
            split=split,
            metric=metric,
            **columns,
            **found._asdict(),
        )
        if headline is not None:
            self.run.intervals({headline: found})


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from common.evaluation.quality import whole_levels

    whole_levels(options.eps)
    check_models(options)


KEYS = ("less", "weights", "steps", "budget", "given")
"""Key columns of the table: what `split` is compared with; shuffled weights; O3's steps and budget; what O1 holds."""


@script(app="attention_defense", name="analyse", columns=KEYS, refusals=refusals, needs=needs)
def analyse(options: Options, run: Run) -> None:
    """Attack what is answered rightly, and compare attention before and after, by outcome."""
    import numpy as np

    from attention_defense.evaluation import analysis, figures
    from common.arrays import as_float
    from common.evaluation.classifiers import class_count
    from common.evaluation.predictions import predict

    test_set = load_test_set(options, run)
    picked = load_victim(options, test_set, run)
    test_set = test_set.for_outputs(class_count(picked.model))
    model, name, layer, _ = picked
    right = predict(model, test_set.x, batch_size=options.batch_size, progress=True) == test_set.y
    run.rate("clean_accuracy", float(right.mean()), len(right), model=name, split="test")
    if not right.any():
        raise UserError(f"{name}: classifies none of the {len(right)} images correctly; there is nothing to attack")
    run.log(f"{right.sum()} of {len(right)} images are classified correctly and attacked")
    x, y = np.asarray(as_float(test_set.x[right])), test_set.y[right]
    seen = analysis.compute_attention(model, x, y, layer=layer, batch_size=options.batch_size, progress=True)
    case = Case(picked, x, y, None if test_set.masks is None else test_set.masks[right], seen, options)
    table = Table(run, name, options.eps)
    histograms = {}
    noise = analysis.attention_iou(seen.area, case.compute_attention(case.attacked("noise", options.eps)).area)
    found = analysis.mean(noise, noise >= 0, seed=options.seed)
    table.write("iou_clean_adv", found, attack="noise", split="all")
    randomised = case._replace(victim=picked._replace(model=_shuffled(model, options.seed)))
    randomised = randomised._replace(seen=randomised.compute_attention(x))
    for kind in dict.fromkeys(options.attack):
        run.log(f"{kind}, eps {255 * options.eps:.5g}/255")
        changed = case.attacked(kind, options.eps)
        after = case.compute_attention(changed)
        success = after.logits.argmax(axis=1) != y
        if success.all() or not success.any():
            run.log(
                f"{kind}: {success.sum()} of {len(success)} succeed; there is nothing to compare with, change --eps"
            )
        overlap = _outcomes(case, table, kind, after, success, headline=kind == options.attack[0])
        histograms[kind] = overlap[success], overlap[~success]
        _controls(randomised, table, kind, changed, overlap, success, noise)
    run.log(f"Step-LL, {STEPS[-1]} times")
    curves = _iterated(case, table)
    title = f"{name}: attention before and after, eps {table.eps * 255:.3g}/255"
    run.figure("overlap", figures.overlap_histograms, histograms, title=title)
    run.figure("steps", figures.iteration_curves, curves, title=f"{name}: Step-LL, iterated")


def _outcomes(
    case: Case, table: Table, kind: str, after: "AttentionMaps", success: "np.ndarray", *, headline: bool
) -> "np.ndarray":
    """Attention of successes against that of failures, and O1; the IoU of clean and attacked attention (N,)."""
    from attention_defense.evaluation import analysis

    seed = case.options.seed
    overlap = analysis.attention_iou(case.seen.area, after.area)
    measures = {"iou_clean_adv": overlap}
    causes = {"margin": analysis.margin(case.seen.logits, case.y)}
    if case.masks is not None and case.masks.any():
        measures["iou_object"] = causes["iou_object"] = analysis.object_overlap(case.seen.attention, case.masks)
        causes["object_area"] = case.masks.mean(axis=(1, 2))
    everything = success | ~success
    table.run.rate("success", float(success.mean()), len(success), model=table.model, attack=kind, eps=table.eps)
    for metric, values in measures.items():
        for split, rows in (("success", success), ("failure", ~success)):
            key = f"{metric}_{split}" if headline else None
            found = analysis.mean(values, rows, seed=seed)
            table.write(metric, found, attack=kind, split=split, headline=key)
        found = analysis.difference(values, success, ~success, seed=seed)
        table.write(metric, found, attack=kind, split="success", less="failure")
    for metric, of in (("trust", lambda maps: analysis.confidence(maps.logits)), ("entropy", _entropy)):
        for when, maps in (("clean", case.seen), ("adv", after)):
            values = of(maps)
            for split, rows in (("all", everything), ("success", success), ("failure", ~success)):
                key = f"{metric}_{when}" if headline and metric == "trust" and split == "all" else None
                found = analysis.mean(values, rows, seed=seed)
                table.write(f"{metric}_{when}", found, attack=kind, split=split, headline=key)
    # With the margin, and without it: an effect that runs through the margin is gone once that is held.
    for given, kept in ({"given": "other causes"}, causes), ({}, {"iou_object": measures.get("iou_object")}):
        if given or "iou_object" in measures:
            for cause, found in analysis.odds(success, kept, seed=seed).items():
                table.write(f"log_odds_{cause}", found, attack=kind, split="all", **given)
    return overlap


def _entropy(maps: "AttentionMaps") -> "np.ndarray":
    from attention_defense.evaluation import analysis

    return analysis.entropy(maps.attention)


def _controls(
    randomised: Case,
    table: Table,
    kind: str,
    changed: "np.ndarray",
    overlap: "np.ndarray",
    success: "np.ndarray",
    noise: "np.ndarray",
) -> None:
    """O2 against controls that change no prediction: noise of the same budget, which gave the IoU `noise` (N,),
    and the same images seen by `randomised`, the same network with its weights shuffled (Adebayo et al. 2018)."""
    from attention_defense.evaluation import analysis

    seed, everything = randomised.options.seed, success | ~success
    paired = analysis.mean(overlap - noise, everything, seed=seed)
    table.write("iou_clean_adv", paired, attack=kind, split="all", less="noise")
    of_random = analysis.attention_iou(randomised.seen.area, randomised.compute_attention(changed).area)
    shuffled = {"attack": kind, "weights": "shuffled"}
    table.write("iou_clean_adv", analysis.mean(of_random, everything, seed=seed), split="all", **shuffled)
    found = analysis.difference(of_random, success, ~success, seed=seed)
    table.write("iou_clean_adv", found, split="success", less="failure", **shuffled)


def _shuffled(model: "keras.Model", seed: int) -> "keras.Model":
    """`model` with the weights of every kernel in an order of their own: as large as they were, and nothing learnt."""
    import keras
    import numpy as np

    rng = np.random.default_rng([seed, 0x5AF])
    other = keras.models.clone_model(model)
    for new, old in zip(other.weights, model.weights, strict=True):
        value = np.asarray(old)
        new.assign(rng.permutation(value.ravel()).reshape(value.shape) if value.ndim > 1 else value)
    return other


def _iterated(case: Case, table: Table) -> "dict[str, dict[int, tuple[Estimate, Estimate]]]":
    """O3: success and IoU by the number of steps, within the ball and, as in the original, with a budget that grows
    by eps at each step."""
    from attention_defense.evaluation import analysis
    from common.attacks import iter_ll
    from common.evaluation import statistics
    from common.evaluation.quality import whole_levels

    step = whole_levels(table.eps)
    curves: dict[str, dict[int, tuple[Estimate, Estimate]]] = {}
    for budget, growth in (("eps", 0), ("eps a step", 1)):
        for steps in STEPS:
            eps = min(step * (1 + growth * (steps - 1)), 1.0)
            # In one ball a second step of its radius would only take pixels back.
            alpha = step if growth else step / min(steps, 4)
            after = case.compute_attention(
                case.changed(partial(iter_ll, case.victim.model, eps=eps, alpha=alpha, steps=steps))
            )
            success = after.logits.argmax(axis=1) != case.y
            found = analysis.mean(
                analysis.attention_iou(case.seen.area, after.area), success | ~success, seed=case.options.seed
            )
            where = {"attack": "step_ll", "split": "all", "steps": str(steps), "budget": budget}
            rate = statistics.rate(success, None)
            table.run.row(metric="success", model=table.model, norm="linf", eps=table.eps, **where, **rate._asdict())
            table.write("iou_clean_adv", found, **where)
            curves.setdefault(budget, {})[steps] = rate, found
    return curves


if __name__ == "__main__":
    analyse.main()
