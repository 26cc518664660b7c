"""Attack a classifier: by the gradients of its answer, and by those of its attention."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attention_defense.pictures import AttackName, TestedOptions, load_tested
from common.cli import Budget, Count, LinfBudget, script
from common.runs import Run

if TYPE_CHECKING:
    import keras
    import numpy as np

    from attention_defense.attacks import Attack

# Of the others only rows are written; these are also the headline.
HEADLINE = ("fgsm", "step_ll", "pgd20", "attention")


@dataclass(kw_only=True)
class Options(TestedOptions):
    """Which attacks, how strong."""

    attack: tuple[AttackName, ...] = (
        "fgsm",
        "step_ll",
        "r_step_ll",
        "iter_ll",
        "pgd20",
        "margin20",
        "attention",
        "displace",
        "gated",
        "adaptive",
        "noise",
    )
    """Attacks: fgsm, step_ll, r_step_ll, iter_ll, pgd20, margin20, pgd100, attention, displace, gated, adaptive; and
    noise, the control."""
    budgets: tuple[LinfBudget, ...] = (8 / 255,)
    """Radii of the attacks (L-inf), in [0, 1]; the first is the headline's. The paper's 0.15 on [-1, 1] is
    19.125/255."""
    curve: tuple[LinfBudget, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 1.0)
    """Radii at which PGD-20 is measured for the curve; without bound, at 1, nothing should stand."""
    n_strongest: Count = 200
    """Pictures for pgd100 and for the curve, the first of --n-test."""
    source: Path | None = None
    """Another model, a .keras file: the pictures that PGD-20 makes for it are shown to --model too."""
    sharpness: Budget = 10.0
    """adaptive: slope of the soft mask, as in train.py."""
    n_test: Count | None = 300
    """Number of test pictures; null takes all."""


@script(app="attention_defense", name="attack")
def attack(options: Options, run: Run) -> None:
    """Accuracy under every attack, what all of them leave, and accuracy against the budget."""
    import numpy as np

    from attention_defense import figures
    from attention_defense.models import chosen, load_classifier
    from common.training import as_float

    tested = load_tested(options, run)
    model, name = chosen(options, tested, run)
    x, y = np.asarray(as_float(tested.x)), tested.y
    judged = Judged(options, run, model, name, x, y)
    for eps in options.budgets:
        for kind in options.attack:
            judged.by(kind, eps)
        judged.by_all(eps)
    if options.source is not None:
        judged.transferred(load_classifier(options.source, tested), options.budgets[0])
    figures.budget_curves({name: judged.curve()}, run.folder / "curve.png", title=f"PGD-20 on {name}")
    run.artifact("curve", run.folder / "curve.png")


class Judged:
    """One model under one attack after the other, on the same pictures `x` float32 (N, H, W, C), `y` int32 (N,)."""

    def __init__(
        self, options: Options, run: Run, model: "keras.Model", name: str, x: "np.ndarray", y: "np.ndarray"
    ) -> None:
        from common.evaluation import predict

        self.options, self.run, self.model, self.name, self.x, self.y = options, run, model, name, x, y
        self.right = predict(model, x, batch_size=options.batch_size) == y
        self.standing: dict[tuple[str, float], np.ndarray] = {}
        clean = float(self.right.mean())
        run.rate("clean_accuracy", clean, len(y), model=name, split="test")
        run.metrics(clean_accuracy=clean, clean_accuracy_n=len(y))

    def by(self, kind: str, eps: float) -> None:
        """Accuracy, and success among what was right, under the attack `kind`."""
        count = min(self.options.n_strongest, len(self.y)) if kind == "pgd100" else len(self.y)
        held = self._robust(self._attack(kind, eps), count, kind, eps)
        self.standing[kind, eps] = held
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
        from attention_defense import attacks

        attack = attacks.named("pgd20", source, eps=eps, seed=self.options.seed)
        held = self._robust(attack, len(self.y), "transfer", eps)
        self._write("transfer", eps, held, self.right)

    def curve(self) -> dict[float, float]:
        """Accuracy under PGD-20 by budget."""
        count = min(self.options.n_strongest, len(self.y))
        found = {0.0: float(self.right[:count].mean())}
        for eps in self.options.curve:
            held = self._robust(self._attack("pgd20", eps), count, "pgd20", eps)
            found[eps] = float(held.mean())
            columns = {"model": self.name, "attack": "pgd20", "norm": "linf", "eps": eps, "split": "curve"}
            self.run.rate("accuracy", found[eps], count, **columns)
        return found

    def _attack(self, kind: str, eps: float) -> "Attack":
        from attention_defense import attacks

        options = self.options
        return attacks.named(
            kind, self.model, eps=eps, layer=options.layer, sharpness=options.sharpness, seed=options.seed
        )

    def _robust(self, attack: "Attack", count: int, kind: str, eps: float) -> "np.ndarray":
        from common.evaluation import robustness

        self.run.say(f"{kind}, eps {255 * eps:.4g}/255, {count} pictures")
        return robustness(
            self.model, self.x[:count], self.y[:count], attack, batch_size=self.options.batch_size, progress=True
        ).robust

    def _write(self, kind: str, eps: float, held: "np.ndarray", right: "np.ndarray") -> None:
        columns = {"model": self.name, "attack": kind, "norm": "linf", "eps": eps, "split": "test"}
        self.run.rate("accuracy", float(held.mean()), len(held), **columns)
        if right.any():
            self.run.rate("success", float((right & ~held).sum() / right.sum()), int(right.sum()), **columns)
        if eps == self.options.budgets[0] and (kind in HEADLINE or kind == "all"):
            self.run.metrics(**{f"accuracy_{kind}": float(held.mean()), f"accuracy_{kind}_n": len(held)})


if __name__ == "__main__":
    attack.main()
