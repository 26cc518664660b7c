"""The smallest shop, and its scripts without their work: what they leave, from formulas and drawn numbers."""

import functools
import inspect

import numpy as np

from common.datasets.images import write_png
from common.files import write_text
from multimedia_recsys import classify_extract as extraction
from multimedia_recsys.classify_extract import classify_extract
from multimedia_recsys.classify_extract_attack import classify_extract_attack
from multimedia_recsys.data.categories import parse_class
from multimedia_recsys.data.products import CATEGORIES
from multimedia_recsys.data.visual_features import Extracted, read_visual, write_visual
from multimedia_recsys.evaluate_visual_images import evaluate_visual_images
from multimedia_recsys.evaluation import ranking
from multimedia_recsys.models import recommendations
from multimedia_recsys.models.recommenders import Bpr
from multimedia_recsys.models.settings import KINDS
from multimedia_recsys.rec_generator import rec_generator
from multimedia_recsys.train_cnn import load_catalog, train_cnn

SHOP = {"n_items": 60, "n_users": 40, "seed": 0}
FILES = [f"{item}.png" for item in range(SHOP["n_items"])]
FEATURES, CLASSES = 6, 4
# Of the items of the origin class, these shares are taken for the target after each attack.
SUCCESS = {"fgsm": 0.4, "pgd": 0.6, "insa": 0.2, "noise": 0.0, "swap": 1.0}
QUALITY = {"mse": 0.001, "psnr": 30.0, "ssim": 0.9, "psm": 0.02, "linf": 8 / 255}


@functools.cache
def catalog():
    return load_catalog(classify_extract.options(**SHOP))


def drawn_recommender(kind, seed):
    """A VBPR or BPR-MF of drawn weights."""
    made = Bpr(SHOP["n_users"], SHOP["n_items"], FEATURES, 3, 0 if kind == "bprmf" else 2, 0)
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    for weight in made.weights:
        weight.assign(rng.normal(size=weight.shape))
    return made


def _trained(options, run):
    (run.folder / "model.keras").write_text(options.method)
    run.rate("test_accuracy", 0.75, 20, model=options.method, split="test")
    run.metrics(test_accuracy=0.75, test_accuracy_n=20)


def _looked(options, run):
    rng = np.random.default_rng(1 if options.model is None else 2)
    label = (np.arange(SHOP["n_items"]) % CLASSES).astype(np.int32)
    features = rng.normal(size=(len(label), FEATURES)) + np.eye(FEATURES)[label]
    folder = run.folder / "original_images"
    extracted = Extracted(label, rng.random(len(label)).astype(np.float32), features.astype(np.float32))
    write_visual(folder, catalog(), extracted, CATEGORIES)
    run.artifact("looks", folder)
    run.metrics(items=len(label))


def _recommended(options, run):
    visual = read_visual(extraction.required(options.features, options, run), FILES)
    scaled = visual.features / np.float32(visual.scale)
    for place, kind in enumerate(options.models):
        model = None if kind == "popularity" else drawn_recommender(kind, 3)
        factors = recommendations.factors_of(model, catalog().feedback, scaled)
        lists = ranking.top_k(factors, catalog().feedback, options.top_k)
        np.savez(run.folder / f"top_{kind}.npz", items=lists)
        if model is not None:
            recommendations.save(run.folder / f"{kind}.npz", model, visual.scale)
        run.row(model=kind, split="all", metric="hr_at_10", value=0.1 * (place + 1), n=40)
    run.metrics(hr_at_10=0.1, ndcg_at_10=0.05, auc=0.6)


def _attacked(options, run):
    visual = read_visual(extraction.required(options.features, options, run), FILES)
    origin, target = (parse_class(getattr(options, f"{side}_class"), CATEGORIES, side) for side in ("origin", "target"))
    items = np.flatnonzero(visual.label == origin)
    taken = items[: round(SUCCESS[options.attack] * len(items))]
    label, prob, features = (np.array(values) for values in visual[:3])
    label[taken] = target
    # Towards the features of the target's own items, further the more succeed.
    reach = np.float32(20 * options.eps * (0.2 + SUCCESS[options.attack]))
    features[items] += reach * (visual.features[visual.label == target].mean(axis=0))
    folder = run.folder / f"{options.attack}_{origin}_{target}_eps{255 * options.eps:g}_images"
    shift = np.random.default_rng(4).integers(-8, 9, size=(len(items), *catalog().images.shape))
    images = np.clip(catalog().images.read(items) + shift, 0, 255).astype(np.uint8)
    for item, image in zip(items, images, strict=True):
        write_png(folder / "images" / f"{item}.png", image)
    write_visual(folder, catalog(), Extracted(label, prob, features), CATEGORIES, started=visual)
    write_text(folder / "items.csv", "".join(f"{item}\n" for item in items))
    run.artifact("images", folder)
    share = len(taken) / len(items)
    run.rate("attack_success", share, len(items), attack=folder.name.removesuffix("_images"), eps=options.eps)
    run.metrics(attack_success=share, attack_success_n=len(items), origin=origin, target=target)


def _compared(options, run):
    for split in ("all", "successful"):
        for metric, value in QUALITY.items():
            run.row(attack=options.attacked.name, split=split, metric=metric, value=value)
    run.metrics(**{f"{metric}_mean": value for metric, value in QUALITY.items()})


BODIES = {
    train_cnn: _trained,
    classify_extract: _looked,
    rec_generator: _recommended,
    classify_extract_attack: _attacked,
    evaluate_visual_images: _compared,
}


def stub(monkeypatch, *kept):
    """Take the work out of all scripts but those `kept`, and of retraining; the list of those that run from now on."""
    ran = []

    def counting(script, body):
        def counted(options, run):
            ran.append((script.name, run.folder.as_posix()))
            body(options, run)

        return counted

    for script, body in BODIES.items():
        if script not in kept:
            monkeypatch.setattr(script, "body", counting(script, body))
    called = inspect.signature(recommendations.trained)

    def trained(*given, **named):
        kind = called.bind(*given, **named).arguments["kind"]
        return None if kind == "popularity" else drawn_recommender(kind, 8)

    monkeypatch.setattr(recommendations, "trained", trained)
    return ran
