"""Attack ST-Siamese: move the seek trips of one driver so that two are taken for one (impersonation) or one for two."""

from dataclasses import dataclass
from typing import ClassVar

from common.runs.record import Run
from common.runs.script import script
from mobility_humid.evaluation.outcomes import AttackOptions, attack_task, check_victim, victim_needs
from mobility_humid.training.tasks import SIAMESE


@dataclass(kw_only=True)
class Options(AttackOptions):
    """Attacks on the verifier."""

    without: ClassVar[tuple[str, ...]] = ("n_train", "strategy", "precision")
    unhashed: ClassVar[tuple[str, ...]] = ("batch_size",)


def refusals(options: Options) -> None:
    """What is refused before trips are read."""
    check_victim(options)


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    victim_needs(options, SIAMESE)


@script(app="mobility_humid", name="siamese_attack", refusals=refusals, needs=needs)
def siamese_attack(options: Options, run: Run) -> None:
    """Attack test pairs of seen and unseen drivers; success counts on snapped trips, among pairs that were right."""
    attack_task(options, run, SIAMESE)


if __name__ == "__main__":
    siamese_attack.main()
