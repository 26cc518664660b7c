"""Networks that this suite did not train: where their embedding is, which range and people they know, a new head, and
everybody judged."""

import keras
import numpy as np
import pytest
from keras import layers

from common.errors import UserError
from common.runs import record
from common.training import checkpoints
from face_mter import ad_face, attack, verify
from face_mter.ad_face import check_held_out, knows_the_trained, lineage, load_checked
from face_mter.data.faces import Faces, FaceSplits, hold_all_out, split_people
from face_mter.models import networks
from face_mter.models.networks import CosineLogits, embedder, embedder_at, head_of, with_head
from face_mter.verify import folded_pairs

SHAPE = (8, 8, 3)
X = np.random.default_rng(0).random((3, *SHAPE), np.float32)


def conv():
    return [layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D()]


def inside():
    backbone = keras.Sequential([keras.Input(SHAPE), *conv(), layers.Dense(6, name="embedding"), layers.ReLU()])
    images = keras.Input(SHAPE)
    return keras.Model(images, layers.Dense(5, activation="softmax")(backbone(images, training=False)))


def sequential(*ends):
    return keras.Sequential([keras.Input(SHAPE), *conv(), *ends])


# What each network is, and the kind of its own head, if training can go on with it.
NETWORKS = {
    "a softmax layer": (lambda: sequential(layers.Dense(6), layers.Dense(5), layers.Softmax()), 6, None),
    "softmax in its dense layer": (lambda: sequential(layers.Dense(6), layers.Dense(5, "softmax")), 6, None),
    "a layer called embedding": (lambda: sequential(layers.Dense(6, name="embedding"), layers.Dense(5)), 6, "Dense"),
    "a layer called logits": (lambda: sequential(layers.Dense(6), layers.Dense(5, name="logits")), 6, "Dense"),
    "cosines": (lambda: sequential(layers.Dense(6), CosineLogits(5, 30.0, 0)), 6, "CosineLogits"),
    "an embedding network": (lambda: sequential(layers.Dense(6), layers.BatchNormalization()), 6, None),
    "a dense embedding": (lambda: sequential(layers.Dense(6)), 6, None),
    "a nested one": (inside, 6, None),
    "this suite's": (
        lambda: networks.build("small", SHAPE, 5, emb_size=6, loss_type="arcface", scale=30.0),
        6,
        "CosineLogits",
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_embedding_is_found_in_memory_and_in_a_file_and_gets_a_new_head(tmp_path, kind):
    build, length, head = NETWORKS[kind]
    model = build()
    checkpoints.save_model(model, tmp_path / "m.keras")
    loaded = checkpoints.load_model(tmp_path / "m.keras")
    embeddings = np.asarray(embedder(model)(X))
    assert embeddings.shape == (3, length) and np.allclose(embedder(loaded)(X), embeddings, atol=1e-6)
    assert (type(own).__name__ if (own := head_of(loaded)) is not None else None) == head
    for layer in loaded.layers:
        layer.trainable = False
    for loss_type, layer in (("arcface", CosineLogits), ("softmax", layers.Dense)):
        renewed = with_head(loaded, 7, loss_type=loss_type, scale=16.0, seed=3)
        assert renewed.output_shape == (None, 7) and isinstance(head_of(renewed), layer)
        assert np.allclose(embedder(renewed)(X), embeddings, atol=1e-6)
        assert len(renewed.trainable_variables) > 2 and networks.frozen_layers(renewed) == 0
        checkpoints.save_model(renewed, tmp_path / "renewed.keras")
        again = checkpoints.load_model(tmp_path / "renewed.keras")
        assert np.allclose(again(X), renewed(X), atol=1e-5) and embedder(again).output_shape == (None, length)


def test_a_layer_can_be_named():
    model = sequential(layers.Dense(6, name="wanted"), layers.Dense(5))
    assert embedder(embedder_at(model, "wanted")).output_shape == (None, 6)
    with pytest.raises(UserError, match=r"--embedding: none: no such layer .*; there are .*wanted"):
        embedder_at(model, "none")
    convolutional = keras.Sequential(
        [keras.Input(SHAPE), layers.Conv2D(5, 3), layers.GlobalAveragePooling2D(), layers.Softmax()]
    )
    with pytest.raises(UserError, match=r"a classifier without a dense layer .*; name its --embedding"):
        embedder(convolutional)


# People of one colour each, told apart by it


def people(count=12, each=4):
    rng = np.random.default_rng(1)
    colours = rng.permutation([(r, g, b) for r in (60, 120, 180) for g in (60, 120, 180) for b in (60, 180)])[:count]
    images = np.repeat(colours, each, axis=0)[:, None, None] + rng.integers(-8, 9, (count * each, 1, 1, 3))
    images = np.broadcast_to(images, (count * each, *SHAPE)).astype(np.uint8)
    person = np.repeat(np.arange(count), each).astype(np.int32)
    names = tuple(f"A_{number:02d}" for number in range(count))
    return Faces("toys", images, person, names, tuple(f"{names[p]}/{k}.png" for k, p in enumerate(person)), "0" * 64)


def colour_network(scale):
    """Embeddings are the mean colour, told in images of 0..`scale`; beyond, all are one."""
    offset = layers.Rescaling(20 / scale, -20 * 120 / 255)
    return keras.Sequential(
        [keras.Input(SHAPE), layers.GlobalAveragePooling2D(), offset, layers.Activation("tanh"), layers.Rescaling(1.0)]
    )


def options(**more):
    return verify.Options(**{"dataset": "toys", "n_folded": 2, "far": 0.1, **more})


FACES = people()
CAST = FaceSplits(FACES, split_people(FACES, seed=0, n_train=4, min_images=1))


def test_the_range_of_images_shows_in_who_is_told_apart(tmp_path):
    path, said = tmp_path / "net.keras", []
    checkpoints.save_model(colour_network(1.0), path)
    load_checked(path, CAST, options(), log=said.append)
    assert len(said) == 1 and "embeddings of 3 numbers, the output of its layer" in said[0]
    checkpoints.save_model(colour_network(255.0), path)
    with pytest.raises(UserError, match=r"net\.keras: tells people apart with an AUC of .*: give --input-scale 255"):
        load_checked(path, CAST, options(), log=said.append)
    model = load_checked(path, CAST, options(input_scale=255.0), log=said.append)
    x = FACES.images[:2] / np.float32(255)
    assert np.allclose(model(x), colour_network(255.0)(FACES.images[:2].astype(np.float32)), atol=1e-5)
    with pytest.raises(UserError, match=r"on images in .*, so that is what it takes: give --input-scale 255"):
        load_checked(path, CAST, options(input_scale=2.0, input_offset=-1.0), log=said.append)


def test_everybody_is_judged_when_nobody_trains(tmp_path):
    splits = FaceSplits(FACES, hold_all_out(FACES, seed=0))
    assert len(splits.people.train) == 0 and (splits.held_out == np.arange(12)).all()
    assert abs(len(splits.people.calibration) - len(splits.people.attack)) <= 1
    lines = ["1\t6", *(f"A_{p:02d}\t1\t2" for p in range(6)), *(f"A_{p:02d}\t1\tA_{p + 1:02d}\t1" for p in range(6))]
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    named = tuple(f"{FACES.names[p]}/{FACES.names[p]}_{k % 4 + 1:04d}.png" for k, p in enumerate(FACES.person))
    faces = Faces("toys", FACES.images, FACES.person, FACES.names, named, "")
    listed = options(pairs=str(tmp_path / "pairs.txt"))
    found = folded_pairs(listed, FaceSplits(faces, splits.people))
    assert len(found.pairs) == 12 and found.left_out == 0
    # Of those who train no pair is judged.
    assert len(folded_pairs(listed, FaceSplits(faces, CAST.people)).pairs) < 12
    with pytest.raises(UserError, match="bring more images"):
        hold_all_out(people(each=1), seed=0)


def run_folder(folder, **config):
    """A folder that a training of this app, with `config`, left behind."""
    base = {"dataset": "toys", "seed": 0, "min_images": 1, "n_train": 4, "evaluation_share": 0.3, "image_size": None}
    folder.mkdir(parents=True)
    text = record.dump({**base, **config})
    (folder / "config.yaml").write_text(f"# face_mter/train: the options of this run, as --config takes them\n{text}")
    (folder / "results.json").write_text("{}")
    return folder


def test_a_run_that_knows_the_held_out_is_refused_and_one_of_others_is_not(tmp_path):
    same, other, fewer, more = (
        run_folder(tmp_path / name, **config)
        for name, config in {
            "same": {},
            "other": {"dataset": "casia", "seed": 5},
            "fewer": {"n_train": 2},
            "more": {"n_train": 6},
        }.items()
    )
    tuned = run_folder(tmp_path / "tuned", dataset="casia", pretrained=str(more / "model.keras"))
    for folder in (same, other, fewer):
        check_held_out(folder, CAST, options())
    for folder in (more, tuned):
        with pytest.raises(UserError, match="more: has learnt 2 of the 8 people who are held out here"):
            check_held_out(folder, CAST, options())
    assert [folder.name for folder, _ in lineage(tuned / "model.keras")] == ["tuned", "more"]
    everyone = FaceSplits(FACES, hold_all_out(FACES, seed=0))
    with pytest.raises(UserError, match=r"same: has learnt 4 of the 12 people .* no --evaluate-only"):
        check_held_out(same, everyone, options())
    check_held_out(other, everyone, options())
    # Drawn anew with another seed, portraits are other people's.
    drawn = run_folder(tmp_path / "drawn", dataset="portraits", seed=7)
    check_held_out(drawn, everyone, options(dataset="portraits"))


def test_a_head_is_kept_by_who_it_knows(tmp_path):
    trained = CAST.people.train
    base = embedder(networks.build("small", SHAPE, 4, emb_size=6, loss_type="softmax", scale=1.0))
    model = with_head(base, 4, loss_type="softmax")
    run = run_folder(tmp_path / "run")
    assert knows_the_trained(run, model, CAST, options())
    assert not knows_the_trained(run_folder(tmp_path / "seed", seed=1), model, CAST, options())
    assert not knows_the_trained(run, with_head(base, 5), CAST, options())
    assert not knows_the_trained(run, base, CAST, options())
    # Of a file of others its answers tell: here the nearest colour, and then the same in another order.
    means = np.stack([FACES.images[FACES.person == p].mean(axis=(0, 1, 2)) for p in trained]) / 255
    for order, known in ((np.arange(4), True), (np.roll(np.arange(4), 1), False)):
        images = keras.Input(SHAPE)
        dense = layers.Dense(4, name="logits")
        nearest = keras.Model(images, dense(layers.GlobalAveragePooling2D(name="embedding")(images)))
        dense.set_weights([2 * means[order].T, -(means[order] ** 2).sum(axis=1)])
        assert knows_the_trained(tmp_path / "elsewhere.keras", nearest, CAST, options()) == known


@pytest.mark.slow
def test_a_network_of_others_is_hardened_attacked_and_judged_on_all_pairs(tmp_path, monkeypatch):
    """The paper's own path: a network that learnt other people, in 0..255, gets a new head and goes on by MTER."""
    from face_mter.data.faces import load_faces

    monkeypatch.chdir(tmp_path)
    others = load_faces("portraits", image_size=24, seed=5)
    keras.utils.set_random_seed(0)
    ends = [layers.Flatten(), layers.Dense(32), layers.BatchNormalization(), layers.Dense(160, "softmax")]
    blocks = [
        layer
        for width in (16, 32)
        for layer in (layers.Conv2D(width, 3, activation="relu", padding="same"), layers.MaxPooling2D())
    ]
    network = keras.Sequential([keras.Input((24, 24, 3)), layers.Rescaling(1 / 255), *blocks, *ends])
    network.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    network.fit(others.images.astype(np.float32), others.person, epochs=4, batch_size=64, verbose=0)
    checkpoints.save_model(network, tmp_path / "foreign.keras")
    judged = {"image_size": 24, "far": 0.01, "n_folded": 10}
    with pytest.raises(UserError, match="give --input-scale 255"):
        verify.verify_model(verify.Options(**judged, model="foreign.keras", evaluate_only=True))
    foreign = {"model": "foreign.keras", "input_scale": 255.0, "evaluate_only": True, "name": "before"}
    before = verify.verify_model(verify.Options(**judged, **foreign))
    assert before["metrics"]["verification_accuracy_n"] == 200 and before["metrics"]["verification_accuracy"] > 0.8
    tuned = ad_face.Options(
        image_size=24, n_train=8, epochs=1, batch_size=8, steps=2, pretrained="foreign.keras", input_scale=255.0
    )
    ad_face.ad_face(tuned)
    log = (tmp_path / "runs/face_mter/ad_face/demo/log.txt").read_text()
    assert (
        "foreign.keras: has no head for the training identities; a new one (arcface) for 8 identities is added" in log
    )
    # Its own people are no strangers; those of another seed are.
    hardened = {"model": "runs/face_mter/ad_face/demo", "evaluate_only": True}
    with pytest.raises(UserError, match="has learnt 8 of the 160 people who are held out here"):
        verify.verify_model(verify.Options(**judged, **hardened, name="own"))
    after = verify.verify_model(verify.Options(**judged, **hardened, seed=3, name="after"))
    assert after["metrics"]["verification_accuracy_n"] == 200
    found = attack.attack(
        attack.Options(
            **{**judged, "n_folded": 4},
            n_train=8,
            n_test=8,
            curve=(2 / 255,),
            steps=2,
            restarts=1,
            base_model="foreign.keras",
            input_scale=255.0,
        )
    )
    # The base knows other people, and its classes say nothing about these.
    assert "hit_rate_itgsm_10" in found["metrics"] and "hit_rate_itgsm_10_base" not in found["metrics"]
