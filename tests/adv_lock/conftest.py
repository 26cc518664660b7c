import numpy as np
import pytest

CLASSES = 10


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to run scripts in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def scenes():
    """Sixty training and twenty test images, of 32 x 32 pixels as all that is locked here but photographs."""
    from common import datasets

    return datasets.load("scenes", n_train=60, n_test=20)


@pytest.fixture(scope="session")
def classifier():
    """An untrained classifier of ten classes: locks need gradients, not accuracy."""
    from common.models import build

    return build("small_cnn", (32, 32, 3), CLASSES, seed=3)


@pytest.fixture(scope="session")
def classifier_of_two():
    """The same for two classes."""
    from common.models import build

    return build("small_cnn", (32, 32, 3), 2, seed=3)


@pytest.fixture(scope="session")
def base_model(classifier, tmp_path_factory):
    """The file of the classifier of ten classes."""
    from common.training import checkpoints

    path = tmp_path_factory.mktemp("base") / "model.keras"
    checkpoints.save_model(classifier, path)
    return path


@pytest.fixture(scope="session")
def base_model_of_two(classifier_of_two, tmp_path_factory):
    """The same for two classes."""
    from common.training import checkpoints

    path = tmp_path_factory.mktemp("base2") / "model.keras"
    checkpoints.save_model(classifier_of_two, path)
    return path


@pytest.fixture(scope="session")
def lock_scenes(classifier, scenes):
    """Lock the scenes into a folder without a script: method, folder, store, seed -> report.

    One attack for all, so that it is compiled once."""
    from adv_lock.attacks import locking
    from adv_lock.attacks.class_maps import MAPS_NEEDED, class_maps
    from adv_lock.attacks.targeted import targeted_attack

    usual = targeted_attack(classifier, eps=1.0, alpha=0.4, steps=3)

    def lock(method, folder, store, *, seed=0, attack=usual, eps=1.0):
        maps = class_maps("seeded", CLASSES, MAPS_NEEDED[method], seed)
        recipe = locking.Recipe(method, 0.5, 0.5, np.asarray(maps), eps, seed, attack)
        return locking.lock_arrays(scenes, recipe, folder, store, lambda _: None)

    return lock
