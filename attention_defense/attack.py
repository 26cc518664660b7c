"""Attack a classifier: by the gradients of its answer, and by those of its attention."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from attention_defense.data.images import AttackName, TestedOptions, load_tested
from attention_defense.models.victim import check_models, chosen, needs, source_of
from common.errors import UserError
from common.runs.options import Budget, Count, LinfBudget
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import keras
    import numpy as np

    from attention_defense.attacks.table import Attack
    from attention_defense.models.victim import Chosen

# Of the others only rows are written; these are also the headline.
HEADLINE = ("fgsm", "step_ll", "pgd20", "attention")


@dataclass(kw_only=True)
class Options(TestedOptions):
    """Which attacks, how strong."""

    attack: tuple[AttackName, ...] = get_args(AttackName)
    """Attacks: fgsm, step_ll, r_step_ll, iter_ll, pgd20, margin20, pgd100, attention, displace, gated, adaptive; and
    noise, the control."""
    budgets: tuple[LinfBudget, ...] = (8 / 255,)
    """Radii of the attacks (L-inf), in [0, 1]; the first is the headline's. The paper's 0.15 on [-1, 1] is
    19.125/255."""
    curve: tuple[LinfBudget, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 1.0)
    """Radii at which PGD-20 is measured for the curve; without bound, at 1, nothing should stand."""
    n_strongest: Count = 200
    """Pictures for pgd100, adaptive and the curve, the first of --n-test."""
    source: Path | None = None
    """Another model, a .keras file: the pictures that PGD-20 makes for it are shown to --model too."""
    iou_key: Budget = 0.59513
    """gated: attacks while the attended areas overlap by more than this."""
    n_test: Count | None = 300
    """Number of test pictures; null takes all."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from attention_defense.attacks.table import whole_levels

    for eps in (*options.budgets, *options.curve):
        whole_levels(eps)
    check_models(options, maps=_looks(options), others=[] if options.source is None else [options.source])


def _looks(options: Options) -> bool:
    """Whether attention is looked at."""
    from attention_defense.attacks.attention import KINDS

    return options.layer is not None or not set(KINDS).isdisjoint(options.attack)


@script(app="attention_defense", name="attack", refusals=refusals, needs=needs)
def attack(options: Options, run: Run) -> None:
    """Accuracy under every attack, what all of them leave, and accuracy against the budget."""
    import numpy as np

    from attention_defense.evaluation import figures
    from common.arrays import as_float
    from common.evaluation.classifiers import class_count

    tested = load_tested(options, run)
    # It was named; the other one may be trained first.
    source = None if options.source is None else source_of(options, options.source, tested, run)
    model = chosen(options, tested, run, maps=_looks(options))
    told = class_count(model.model)
    if source is not None and class_count(source) != told:
        raise UserError(f"--source: tells {class_count(source)} classes apart, the model {told}; give one of the same")
    tested = tested.for_outputs(told)
    judged = Judged(options, run, model, np.asarray(as_float(tested.x)), tested.y)
    for eps in dict.fromkeys(options.budgets):
        for kind in dict.fromkeys(options.attack):
            judged.by(kind, eps)
        if source is not None:
            judged.transferred(source, eps)
        judged.by_all(eps)
    figures.budget_curves({model.name: judged.curve()}, run.folder / "curve.png", title=f"PGD-20 on {model.name}")
    run.artifact("curve", run.folder / "curve.png")


class Judged:
    """One model under one attack after the other, on the same pictures `x` float32 (N, H, W, C), `y` int32 (N,)."""

    def __init__(self, options: Options, run: Run, chosen: "Chosen", x: "np.ndarray", y: "np.ndarray") -> None:
        from common.evaluation.predictions import predict
        from common.evaluation.robustness import gradient_rows

        self.options, self.run, self.chosen, self.x, self.y = options, run, chosen, x, y
        self.right = predict(chosen.model, x, batch_size=options.batch_size, progress=True) == y
        self.standing: dict[tuple[str, float], np.ndarray] = {}
        self._rate("clean_accuracy", self.right, split="attacked")
        run.metrics(clean_accuracy=float(self.right.mean()), clean_accuracy_n=len(y))
        # Where the loss has no gradient at all, attacks that follow it are blind; where it is infinite, they see badly.
        slopes = gradient_rows(chosen.model, x, y, batch_size=options.batch_size, progress=True)
        self._rate("zero_gradient", slopes.zero, split="attacked")
        self._rate("infinite_gradient", slopes.infinite, split="attacked")

    def by(self, kind: str, eps: float) -> None:
        """Accuracy, and success among what was right, under the attack `kind`."""
        count = self.few if kind in ("pgd100", "adaptive") else len(self.y)
        self.standing[kind, eps] = held = self._robust(self._attack(kind, eps), count, kind, eps)
        self._write(kind, eps, held, self.right[:count])

    def by_all(self, eps: float) -> None:
        """What is left by all attacks together, on the pictures that all were tried on."""
        tried = [held for (kind, other), held in self.standing.items() if other == eps and kind != "noise"]
        if len(tried) > 1:
            count = min(map(len, tried))
            held = self.right[:count].copy()
            for one in tried:
                held &= one[:count]
            self._write("all", eps, held, self.right[:count])

    def transferred(self, source: "keras.Model", eps: float) -> None:
        """Accuracy on what PGD-20 makes for another model."""
        from attention_defense.attacks import table

        # All steps: pictures that had just crossed the border of their own model would cross no other's.
        attack = table.named("pgd20", source, eps=eps, seed=self.options.seed)
        self.standing["transfer", eps] = held = self._robust(attack, len(self.y), "transfer", eps)
        self._write("transfer", eps, held, self.right)

    def curve(self) -> dict[float, float]:
        """Accuracy under PGD-20 by budget."""
        found = {}
        for eps in (0.0, *dict.fromkeys(self.options.curve)):
            held = self.right[: self.few]
            if eps:
                held = self._robust(self._attack("pgd20", eps), self.few, "pgd20", eps)
            self._rate("accuracy", held, attack="pgd20", norm="linf", eps=eps, split="curve")
            found[eps] = float(held.mean())
        return found

    @property
    def few(self) -> int:
        """Pictures for what takes long."""
        return min(self.options.n_strongest, len(self.y))

    def _attack(self, kind: str, eps: float, *, stop: bool = True) -> "Attack":
        from attention_defense.attacks import table

        model, _, layer, training = self.chosen
        seed, key = self.options.seed, self.options.iou_key
        # Only success counts here.
        return table.named(kind, model, eps=eps, stop=stop, layer=layer, training=training, iou_key=key, seed=seed)

    def _robust(self, attack: "Attack", count: int, kind: str, eps: float) -> "np.ndarray":
        import numpy as np

        from attention_defense.attacks.table import STOPPING
        from common.evaluation.predictions import predict
        from common.evaluation.quality import rounded
        from common.evaluation.robustness import attacked

        self.run.say(f"{kind}, eps {255 * eps:.5g}/255, {count} pictures")
        x, y = self.x[:count], self.y[:count]
        shown = {"batch_size": self.options.batch_size, "progress": True}
        moved = attacked(attack, x, y, eight_bit=False, **shown)
        held = self.right[:count] & (predict(self.chosen.model, rounded(moved), **shown) == y)
        if kind in STOPPING:
            # Rounding may take a picture back over the border at which it stopped: such a one takes all steps.
            back = np.flatnonzero(held & (predict(self.chosen.model, moved, **shown) != y))
            if len(back):
                further = attacked(self._attack(kind, eps, stop=False), x[back], y[back], **shown)
                held[back] = predict(self.chosen.model, further, **shown) == y[back]
        return held

    def _write(self, kind: str, eps: float, held: "np.ndarray", right: "np.ndarray") -> None:
        columns = {"attack": kind, "norm": "linf", "eps": eps, "split": "test"}
        self._rate("accuracy", held, **columns)
        if right.any():
            self._rate("success", ~held[right], **columns)
        if eps == self.options.budgets[0] and (kind in HEADLINE or kind == "all"):
            self.run.metrics(**{f"accuracy_{kind}": float(held.mean()), f"accuracy_{kind}_n": len(held)})

    def _rate(self, metric: str, hit: "np.ndarray", **columns) -> None:
        self.run.rate(metric, float(hit.mean()), len(hit), model=self.chosen.name, **columns)


if __name__ == "__main__":
    attack.main()
