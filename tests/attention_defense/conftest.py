import pytest


@pytest.fixture(scope="session")
def model():
    """An untrained network for four classes, of 16 x 16 pixels as nearly all here; attacks compile for it once."""
    from attention_defense.models.networks import NETWORKS

    return NETWORKS["cifarnet"]((16, 16, 3), 4, width=8, seed=1)


@pytest.fixture
def run(tmp_path):
    """A run of no script, for functions that write rows and figures."""
    from attention_defense.analyse import KEYS
    from common.runs.record import Identity, Run

    return Run(tmp_path, Identity("attention_defense", "test", "python test.py", KEYS), {"seed": 0})
