"""Check the card of a verdict against the model that it is of, by one forward pass over its adversarial examples.

    python -m common.evaluation.verify runs/common/evaluation/demo/card.json --model model.keras

Ends with 0 if the card holds, with 1 and a line for each thing that is otherwise if it does not, and with 2 if it
cannot be checked.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from common.errors import USER_ERRNOS, UserError
from common.runs.script import quiet_start_up


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Check the card that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m common.evaluation.verify", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("card", type=Path, help="card.json, with its examples.npz beside it")
    parser.add_argument(
        "--model", type=Path, required=True, help="the .keras file that it is said to be of, or its run"
    )
    parser.add_argument("--detector", type=Path, help="the .keras file of its detector, if it was made with one")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        status = _check(options.card, options.model, options.detector)
    except UserError as error:
        print(f"verify: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except OSError as error:
        if error.errno not in USER_ERRNOS:
            raise
        print(f"verify: {error.filename}: {error.strerror}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("verify: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def _check(path: Path, model: Path, detector: Path | None) -> int:
    with quiet_start_up():
        import tensorflow as tf

        # Looking for one, TensorFlow says what it lacks.
        tf.config.list_physical_devices("GPU")
        from common.evaluation import card
        from common.evaluation.classifiers import load_classifier, load_network
    from common.evaluation.facts import percent, sentence_of

    told = card.read(path)
    if bool(told["false_positives"]) != (detector is not None):
        raise UserError(
            f"{path}: was made {'with' if detector is None else 'without'} a detector; give it the same way"
        )
    scale, offset = told.get("input") or (None, 0.0)
    network = load_classifier(model, input_scale=scale, input_offset=offset)
    found = card.verify(path, network, detector=None if detector is None else load_network(detector)[0])
    for problem in found.problems:
        print(f"does not hold: {problem}")
    if found.problems:
        return 1
    close = f"; {found.close} of them are so close to the border that another machine may differ" if found.close else ""
    print(
        f"holds: at most {percent(found.robust)} of {found.robust.n} examples are right{close}; {found.seconds:.1f} s"
    )
    print(sentence_of(told))
    return 0


if __name__ == "__main__":
    main()
