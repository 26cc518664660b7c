import pytest

CLASSES = 10


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to run scripts in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def base_model(tmp_path_factory):
    """An untrained classifier of ten classes: locks need gradients, not accuracy."""
    from common import checkpoints
    from common.models import build

    path = tmp_path_factory.mktemp("base") / "model.keras"
    checkpoints.save_model(build("small_cnn", (32, 32, 3), CLASSES, seed=3), path)
    return path


@pytest.fixture(scope="session")
def base_model_of_two(tmp_path_factory):
    """The same for two classes."""
    from common import checkpoints
    from common.models import build

    path = tmp_path_factory.mktemp("base2") / "model.keras"
    checkpoints.save_model(build("small_cnn", (32, 32, 3), 2, seed=3), path)
    return path
