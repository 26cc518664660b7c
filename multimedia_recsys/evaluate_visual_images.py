"""Image quality of an attack against the clean images: MSE, PSNR, SSIM, PSM."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.progress import blocks
from common.runs.options import ScriptOptions
from common.runs.record import Run
from common.runs.script import script
from multimedia_recsys import classify_extract
from multimedia_recsys.classify_extract_attack import classify_extract_attack
from multimedia_recsys.results_analyzer import check_attack, read_attack
from multimedia_recsys.train_cnn import CATALOG_FIELDS, CatalogOptions, load_catalog

_BLOCK = 64


@dataclass(kw_only=True)
class Options(CatalogOptions, ScriptOptions):
    """Which attack."""

    attacked: Path | None = None
    """Run of classify_extract_attack.py; by default that of the same name."""
    features: Path | None = None
    """Features of the clean images, a run of classify_extract.py; by default that of the same name."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    if options.attacked is not None:
        check_attack(options.attacked)


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    classify_extract.expected(options.features, options)
    classify_extract_attack.expect(options.attacked, options, CATALOG_FIELDS)


@script(app="multimedia_recsys", name="evaluate_visual_images", refusals=refusals, needs=needs)
def evaluate_visual_images(options: Options, run: Run) -> None:
    """Measure the stored images of an attack, all of them and the successful ones apart."""
    import numpy as np

    from common.evaluation import quality
    from multimedia_recsys.data import attack_folders
    from multimedia_recsys.data.visual_features import read_visual

    catalog = load_catalog(options)
    run.data(catalog.name, catalog.sha256)
    clean = read_visual(classify_extract.required(options.features, options, run), catalog.file_names)
    place = run.require(classify_extract_attack, options.attacked, options, CATALOG_FIELDS)
    attack = read_attack(place, catalog.file_names)
    if not (attack.folder / "images").is_dir():
        raise UserError(f"{attack.folder}: its images are gone; run the attack again")
    found = []
    for rows in blocks(len(attack.items), _BLOCK, "comparing"):
        items = attack.items[rows]
        before = catalog.images.read(items)
        after = attack_folders.read_images(attack.folder / "images", catalog, items)
        shift = (after.astype(np.float64) - before) / 255
        mse = (shift**2).mean(axis=(1, 2, 3))
        psm = ((attack.features[items] - clean.features[items]).astype(np.float64) ** 2).mean(axis=1)
        linf = np.abs(shift).max(axis=(1, 2, 3))
        found.append((mse, quality.psnr(before, after), quality.ssim(before, after), psm, linf))
    measured = dict(
        zip(("mse", "psnr", "ssim", "psm", "linf"), map(np.concatenate, zip(*found, strict=True)), strict=True)
    )
    taken = attack.label[attack.items] == attack.pair.target
    for split, among in (("all", np.ones_like(taken)), ("successful", taken)):
        for metric, values in measured.items():
            # An image that nothing changed has no finite ratio of signal to noise.
            chosen = values[among & np.isfinite(values)]
            if len(chosen):
                run.row(attack=attack.name, split=split, metric=metric, value=float(chosen.mean()))
                if split == "all":
                    run.metrics(**{f"{metric}_mean": float(chosen.mean())})
        run.row(attack=attack.name, split=split, metric="pictures", value=int(among.sum()))
    run.metrics(attack_success=float(taken.mean()), attack_success_n=len(taken))


if __name__ == "__main__":
    evaluate_visual_images.main()
