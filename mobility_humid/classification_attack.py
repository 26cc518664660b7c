"""Attack the driver classifier: perturb a driver's seek trips until it predicts another one."""

from dataclasses import dataclass

from common.runs.record import Run
from common.runs.script import script
from mobility_humid.classification import Options as ClassificationOptions
from mobility_humid.classification import classification
from mobility_humid.siamese_attack import SavingOptions, attack_task, check_victim, victim_needs


@dataclass(kw_only=True)
class Options(SavingOptions):
    """Attacks on the classifier."""

    num_plates: int | None = ClassificationOptions.num_plates
    """Number of drivers to tell apart, the first ones; null takes all."""


def refusals(options: Options) -> None:
    """What is refused before trips are read."""
    check_victim(options)


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    victim_needs(options, classification)


@script(app="mobility_humid", name="classification_attack", refusals=refusals, needs=needs)
def classification_attack(options: Options, run: Run) -> None:
    """Attack test samples; success counts on snapped trips, among samples whose driver was named rightly."""
    from mobility_humid.training.tasks import CLASSIFICATION

    attack_task(options, run, CLASSIFICATION, classification)


if __name__ == "__main__":
    classification_attack.main()
