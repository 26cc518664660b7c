"""READMEs stay short, what they link to is there, and their figures show what the committed tables say."""

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
APPS = ("adv_lock", "attention_defense", "face_mter", "mobility_humid", "multimedia_recsys")
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    ROOT / "CONTRIBUTING.md",
]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


@pytest.mark.parametrize(("readme", "most"), [("README.md", 120), *((f"{app}/README.md", 150) for app in APPS)])
def test_readmes_stay_short(readme, most):
    assert len((ROOT / readme).read_text("utf-8").splitlines()) <= most


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_and_images_say_what_they_show(page):
    for image, text, target, _ in LINK.findall(page.read_text("utf-8")):
        if target and "://" not in target:
            assert (page.parent / target).exists(), target
        assert text or not image, target


def figures():
    spec = importlib.util.spec_from_file_location("docs_figures", ROOT / "docs/figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.figures())


@pytest.mark.parametrize(
    "name", ["lock.png", "trips_defence.png", "faces_hits.png", "attention_curves.png", "adversarial_training.png"]
)
def test_figures_show_the_committed_tables(name, tmp_path):
    figures()[name](tmp_path / name)
    shown = []
    for path in (tmp_path / name, ROOT / "docs" / name):
        with Image.open(path) as image:
            image.load()
            shown.append((image.text["Title"], image.text["Description"]))
    assert shown[0] == shown[1], "python docs/figures.py draws them again"
