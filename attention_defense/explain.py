"""Draw the attention of a classifier before and after an attack, by Grad-CAM and by LIME."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attention_defense.analyse import Table
from attention_defense.attack import VictimOptions, check_models, load_test_set, load_victim, needs
from attention_defense.attacks.names import AttackName
from common.progress import track
from common.runs.options import Count, LinfBudget
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import numpy as np


@dataclass(kw_only=True)
class Options(VictimOptions):
    """What is drawn."""

    attack: AttackName = "pgd20"
    """Attack, as in attack.py."""
    eps: LinfBudget = 8 / 255
    """Radius of the attack (L-inf), in [0, 1]."""
    lime_samples: Count = 300
    """LIME: images with some superpixels hidden."""
    segments: Count = 50
    """LIME: about as many lime_maps."""
    lime_features: Count = 10
    """LIME: superpixels that an explanation may name."""
    n_test: Count | None = 24
    """Number of test images; null takes all."""
    n_drawn: Count = 4
    """Images in the figure; successes of the attack come first."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from common.evaluation.quality import whole_levels

    whole_levels(options.eps)
    check_models(options)


@script(app="attention_defense", name="explain", refusals=refusals, needs=needs)
def explain(options: Options, run: Run) -> None:
    """Explain every image as it is and attacked; draw some, and measure how explanations agree."""
    from functools import partial

    import numpy as np

    from attention_defense.attacks import table as attacks
    from attention_defense.evaluation import analysis
    from attention_defense.evaluation.lime_maps import lime_map
    from common.arrays import as_float
    from common.evaluation import plots
    from common.evaluation.classifiers import class_count
    from common.evaluation.robustness import adversarial_examples

    test_set = load_test_set(options, run)
    model, name, layer, training = load_victim(options, test_set, run)
    test_set = test_set.for_outputs(class_count(model))
    x, y = np.asarray(as_float(test_set.x)), test_set.y
    attack = attacks.make_attack(
        options.attack, model, eps=options.eps, layer=layer, training=training, seed=options.seed
    )
    images = {
        "clean": x,
        "attacked": adversarial_examples(attack, x, y, batch_size=options.batch_size, progress=True),
    }
    maps = {
        when: analysis.compute_attention(model, of, y, layer=layer, batch_size=options.batch_size, progress=True)
        for when, of in images.items()
    }

    run.log(f"LIME on {len(x)} images and their attacked versions, {options.lime_samples} samples each")
    areas: dict[str, list[np.ndarray]] = {when: [] for when in images}
    examples = [(when, *example) for when, of in images.items() for example in zip(of, y, strict=True)]
    for when, image, label in track(examples, "LIME"):
        areas[when].append(
            lime_map(
                partial(analysis.probabilities, model),
                image,
                int(label),
                segments=options.segments,
                features=options.lime_features,
                samples=options.lime_samples,
                seed=options.seed,
            )
        )
    lime = {when: np.stack(of) for when, of in areas.items()}
    everything = np.ones(len(x), bool)
    measures = {
        "iou_clean_adv": analysis.attention_iou(maps["clean"].area, maps["attacked"].area),
        "iou_lime_clean_adv": analysis.attention_iou(lime["clean"], lime["attacked"]),
    }
    if test_set.masks is not None and test_set.masks.any():
        known = test_set.masks.any(axis=(1, 2))
        measures["iou_object"] = analysis.object_overlap(maps["clean"].attention, test_set.masks)
        measures["iou_lime_object"] = np.where(known, analysis.attention_iou(lime["clean"], test_set.masks), np.nan)
    table = Table(run, name, options.eps)
    for metric, values in measures.items():
        found = analysis.mean(values, everything, seed=options.seed)
        table.write(metric, found, attack=options.attack, split="test", headline=metric)
    answers = {when: of.logits.argmax(axis=1) for when, of in maps.items()}
    fooled = (answers["clean"] == y) & (answers["attacked"] != y)
    rows = []
    for row in np.concatenate([np.flatnonzero(fooled), np.flatnonzero(~fooled)])[: options.n_drawn]:
        caption = " -> ".join(test_set.class_names[answers[when][row]] for when in images)
        heats = _heats(*(maps[when].attention[row] for when in images))
        sides = [(images[when][row], heat, lime[when][row]) for when, heat in zip(images, heats, strict=True)]
        if not fooled[row]:
            caption += " (not fooled)" if answers["clean"][row] == y[row] else " (wrong before)"
        rows += zip((caption, "attacked"), _strips(*sides, options.eps), strict=True)
    columns = ["image", "Grad-CAM", "LIME", "difference"]
    title = f"{name}: {options.attack}, eps {255 * options.eps:.3g}/255; maps of the true class; last: what changed"
    run.figure("strips", plots.image_rows, rows, title=title, columns=columns)


def _heats(*attention: "np.ndarray") -> "list[np.ndarray]":
    """Attention (H, W) to several images, brought to [0, 1] on one scale."""
    low, high = min(of.min() for of in attention), max(of.max() for of in attention)
    return [(of - low) / max(high - low, 1e-12) for of in attention]


def _strips(clean: tuple, attacked: tuple, eps: float) -> "tuple[list[np.ndarray], list[np.ndarray]]":
    """The drawings of one example, clean and attacked; its sides are image (H, W, C), heat and LIME's area (H, W) each.
    The last drawing is how the pixels differ, and how attention does."""
    from attention_defense.evaluation.figures import overlay

    before, after = (
        [image, overlay(image, heat), overlay(image, area.astype(float))] for image, heat, area in (clean, attacked)
    )
    change = 0.5 + (attacked[0] - clean[0]) / (2 * max(eps, 1 / 255))
    return [*before, change.clip(0, 1)], [*after, overlay(0 * clean[0], abs(attacked[1] - clean[1]))]


if __name__ == "__main__":
    explain.main()
