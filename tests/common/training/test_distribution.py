"""Training on several devices and in several processes: the same training, shared out."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from common import attacks
from common.errors import UserError
from common.training import augmentation, batches, devices, fit, loop
from common.training.recipe import Recipe
from tests.helpers.cluster import clusters
from tests.helpers.training_toys import data, network, sgd, weights

ROOT = Path(__file__).resolve().parents[3]

# Two logical devices have to be set up before TensorFlow computes anything, hence a process of its own.
REPLICAS = """
import json, sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.helpers import training_toys as toys
from tests.common.training.test_distribution import shared_fit
from common.training import methods
from common import attacks
from common.training import batches
from common.training import loop

two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x, y = toys.data()
found = {}

# C5
one_device, h1 = shared_fit(tf.distribute.get_strategy(), epochs=4)
two_devices, h2 = shared_fit(two, epochs=4)
found["steps"] = 12
found["apart"] = max(float(abs(a - b).max()) for a, b in zip(toys.weights(one_device), toys.weights(two_devices)))
found["loss apart"] = max(abs(a["loss"] - b["loss"]) for a, b in zip(h1, h2))

# C6: each replica logs what the adversary gave to it, on identical images.
def start(model, batch, seed):
    return attacks.pgd(model, batch[0], batch[1], eps=0.1, alpha=0.0, steps=0, seed=seed), batch[1]

def noise(model, batch):
    terms, _ = loop.cross_entropy(model, batch)
    place = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
    total = tf.reduce_mean(tf.abs(batch[0] - 0.5))
    return terms, {"first": 2 * total * (1 - place), "second": 2 * total * place}

with two.scope():
    model, optimizer = toys.network(), toys.sgd(0.0)
grey = batches.batches(np.full_like(x, 0.5, np.float32), y, batch_size=16, seed=0)
history = loop.train(model, grey, noise, optimizer, epochs=2, adversary=start, strategy=two, verbose=False)
found["noise"] = [[logs["first"], logs["second"]] for logs in history]

# In the first of three steps the gradients, not the loss, overflow on the second replica alone.
def glaring(epoch):
    for step, (images, labels) in enumerate(batches.batches(x, y, batch_size=16, seed=1)(epoch)):
        yield images * np.where((step == 0) & (np.arange(16) >= 8), 50, 1)[:, None, None, None], labels

spec = (tf.TensorSpec((16, 8, 8, 3)), tf.TensorSpec((16,), tf.int32))
keras.config.set_dtype_policy("mixed_float16")
with two.scope():
    model = toys.network()
    optimizer = keras.optimizers.LossScaleOptimizer(toys.sgd(), initial_scale=2.0**14)
loop.train(
    model, lambda epoch: tf.data.Dataset.from_generator(lambda: glaring(epoch), output_signature=spec),
    loop.cross_entropy, optimizer, epochs=1, strategy=two, verbose=False)
found["overflow"] = {
    "finite": all(bool(np.isfinite(w).all()) for w in toys.weights(model)),
    "scale": float(np.asarray(optimizer.dynamic_scale)),
    "updates": int(np.asarray(optimizer.iterations)),
}
keras.config.set_dtype_policy("float32")

# Every kind of adversarial training, with dropout and batch norm.
found["methods"] = {}
for name, method in {
    "pgd": methods.pgd_training(eps=0.05, alpha=0.03, steps=2),
    "fast": methods.fast_training(eps=0.05),
    "trades": methods.trades_training(eps=0.05, alpha=0.03, steps=2),
}.items():
    with two.scope():
        model, optimizer = toys.network(dropout=0.2, norm=True), toys.sgd()
    history = loop.train(
        model, batches.batches(x, y, batch_size=16, seed=1), method.loss, optimizer,
        epochs=4, adversary=method.adversary, strategy=two, verbose=False)
    found["methods"][name] = [logs["loss"] for logs in history]
print(json.dumps(found))
"""


def shared_fit(strategy, *, epochs, folder=None, resume=False, chief=True):
    """An adversary without draws, augmentation, weight decay, no batch norm: what must not depend on the devices."""

    def adversary(model, batch, seed):
        x, y = batch
        return attacks.pgd(model, x, y, eps=0.05, alpha=0.02, steps=2, random_start=False), y

    with strategy.scope():
        model, optimizer = network(), sgd()
    history = loop.train(
        model,
        batches.batches(*data(), batch_size=16, seed=1, augment=augmentation.crop_and_flip(2)),
        loop.cross_entropy,
        optimizer,
        epochs=epochs,
        adversary=adversary,
        weight_decay=1e-3,
        checkpoint_folder=folder,
        resume=resume,
        chief=chief,
        strategy=strategy,
        verbose=False,
    )
    return model, history


@pytest.fixture(scope="module")
def replicas():
    """What a process with two devices found."""
    command = [sys.executable, "-c", REPLICAS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_c5_two_replicas_train_like_one_device(replicas):
    """The same global batch, an attack in the step, 12 steps."""
    assert replicas["apart"] <= 1e-5 and replicas["loss apart"] <= 1e-5


@pytest.mark.slow
def test_c6_replicas_draw_different_noise(replicas):
    for first, second in replicas["noise"]:
        # Uniform in [-0.1, 0.1]: both start at random, and not at the same points.
        assert first == pytest.approx(0.05, rel=0.1) and second == pytest.approx(0.05, rel=0.1) and first != second


@pytest.mark.slow
def test_an_overflow_on_one_replica_skips_the_step_on_all(replicas):
    assert replicas["overflow"] == {"finite": True, "scale": 2.0**13, "updates": 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pgd", "fast", "trades"])
def test_adversarial_training_runs_on_replicas(replicas, method):
    losses = replicas["methods"][method]
    assert len(losses) == 4 and np.isfinite(losses).all() and losses[-1] < losses[0]


# Several processes

WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from common.training import checkpoints
from common.training import devices
from common.runs import record
strategy = devices.prepare("multiworker")
chief = record.is_chief("multiworker")
from tests.common.training.test_distribution import shared_fit
from tests.helpers.training_toys import weights

out, mine = Path(sys.argv[1]), Path(sys.argv[2])
if not chief:
    def refuse(*_):
        raise AssertionError("a worker beside the chief wrote a checkpoint")
    checkpoints.save = refuse
model, history = shared_fit(strategy, epochs=3, folder=out / "checkpoints", chief=chief)
# A new model and optimiser go on from what the chief has saved.
resumed, further = shared_fit(strategy, epochs=4, folder=out / "checkpoints", chief=chief, resume=True)
assert further[:3] == history
try:
    shared_fit(strategy, epochs=5, folder=out / "checkpoints" if chief else mine, chief=chief, resume=True)
    refused = ""
except ValueError as error:
    refused = str(error)
np.savez(mine / "weights.npz", *weights(model), *weights(resumed))
print(json.dumps({"chief": chief, "history": history, "further": further[3], "refused": refused}))
"""


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What two processes with one device each found, and the weights that each was left with."""
    out = tmp_path_factory.mktemp("cluster")
    processes = []
    for index, cluster in enumerate(clusters(2)):
        (out / str(index)).mkdir()
        command = [sys.executable, "-c", WORKER, out, out / str(index)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TF_CONFIG": cluster}, **pipes))
    found = []
    try:
        for index, process in enumerate(processes):
            told, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
            with np.load(out / str(index) / "weights.npz") as arrays:
                found.append(json.loads(told.splitlines()[-1]) | {"weights": [arrays[name] for name in arrays.files]})
    finally:
        for process in processes:
            process.kill()
    return found


@pytest.mark.slow
def test_c7_two_workers_are_told_the_same_losses(workers):
    assert [worker["chief"] for worker in workers] == [True, False]
    first, second = (worker["history"] for worker in workers)
    assert len(first) == 3 and first == second and workers[0]["further"] == workers[1]["further"]
    assert all((a == b).all() for a, b in zip(workers[0]["weights"], workers[1]["weights"], strict=True))


@pytest.mark.slow
def test_c7_two_workers_train_like_one_process(workers):
    """The same global batch; three epochs, then a fourth from the chief's checkpoint."""
    three, history = shared_fit(loop.tf.distribute.get_strategy(), epochs=3)
    four, further = shared_fit(loop.tf.distribute.get_strategy(), epochs=4)
    for worker in workers:
        for ours, theirs in zip(weights(three) + weights(four), worker["weights"], strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-4)
        assert [h["loss"] for h in worker["history"]] == pytest.approx([h["loss"] for h in history], abs=1e-4)
        assert worker["further"]["loss"] == pytest.approx(further[3]["loss"], abs=1e-4)


@pytest.mark.slow
def test_workers_that_would_go_on_from_different_epochs_are_refused(workers):
    for worker in workers:
        assert "checkpoints of different epochs" in worker["refused"]


def test_multiworker_without_a_cluster_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="TF_CONFIG"):
        devices.prepare("multiworker")
    cluster = {"cluster": {"worker": ["127.0.0.1:9", "127.0.0.1:10"]}, "task": {"type": "worker", "index": 2}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    with pytest.raises(UserError, match="cannot join the cluster"):
        devices.prepare("multiworker")


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(tmp_path, monkeypatch):
    three = types.SimpleNamespace(num_replicas_in_sync=3)
    monkeypatch.setattr(devices, "prepare", lambda *_: three)
    with pytest.raises(UserError, match="--batch-size: expected a multiple of the 3 devices; received 16"):
        fit.fit(Recipe(batch_size=16), None, *data(), 3, None, title="", seed=0)
