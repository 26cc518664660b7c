"""The drawn people: repeatable image by image, the same whoever else is drawn, and told apart by their faces."""

import numpy as np
import pytest

from common.errors import UserError
from face_mter.data import portraits as simulator
from face_mter.data.portraits import portraits

PEOPLE, EACH = 12, 16


@pytest.fixture(scope="module")
def drawn():
    return portraits(PEOPLE, EACH, seed=3)


def by_person(images, each=EACH):
    return images.reshape(-1, each, *images.shape[1:])


def middles(count, **others):
    """Shares of `count` people and of views of them: all in the middle of their bounds but `others`, by name, where
    `its_` goes before a parameter of the view."""
    columns = sum(map(len, simulator._OF_A_VIEW))
    identities, views = np.full((count, len(simulator.IDENTITY)), 0.5), np.full((count, columns), 0.5)
    for name, shares in others.items():
        of_view = name.startswith("its_")
        table = list(simulator.VIEW if of_view else simulator.IDENTITY)
        (views if of_view else identities)[:, table.index(name.removeprefix("its_"))] = shares
    return identities.astype(np.float32), views.astype(np.float32)


def rendered(identities, views, size=48):
    return simulator._render(identities, views, np.zeros(simulator._GRAIN + 3 * size**2, np.float32), size)


def test_shapes_types_and_ranges(drawn):
    assert drawn.images.shape == (PEOPLE * EACH, 48, 48, 3) and drawn.images.dtype == np.uint8
    assert drawn.person.dtype == np.int32
    np.testing.assert_array_equal(drawn.person, np.arange(PEOPLE).repeat(EACH))
    # Neither too dark nor burnt out, and no image is one grey.
    assert drawn.images.min() < 20 and drawn.images.max() > 235
    assert 80 < drawn.images.mean() < 170
    assert drawn.images.std(axis=(1, 2, 3)).min() > 10
    assert np.isin(drawn.images, (0, 255)).mean() < 0.05


def test_same_seed_same_bits_and_another_seed_others(drawn):
    again, other = portraits(PEOPLE, EACH, seed=3), portraits(PEOPLE, EACH, seed=4)
    np.testing.assert_array_equal(again.images, drawn.images)
    np.testing.assert_array_equal(again.person, drawn.person)
    # Not by the noise alone, nor by the people or the views alone.
    assert np.abs(other.images.astype(int) - drawn.images).mean(axis=(1, 2, 3)).min() > 10
    person = np.arange(PEOPLE)
    assert (simulator._identities(3, person) != simulator._identities(4, person)).mean() > 0.99
    assert (simulator._views(3, person, 2) != simulator._views(4, person, 2)).mean() > 0.99


def test_portraits_do_not_follow_numpys_global_state(drawn):
    np.random.seed(0)
    np.testing.assert_array_equal(portraits(1, 2, seed=3).images, drawn.images[:2])


@pytest.mark.parametrize(("people", "per_person", "first"), [(3, 5, 0), (4, 16, 7), (1, 20, 11), (14, 1, 0)])
def test_a_image_depends_on_its_person_and_number_alone(drawn, people, per_person, first):
    other = portraits(people, per_person, seed=3, first=first)
    assert other.person.tolist() == [first + k for k in range(people) for _ in range(per_person)]
    common = min(PEOPLE - first, people), min(EACH, per_person)
    ours = by_person(drawn.images)[first : first + common[0], : common[1]]
    np.testing.assert_array_equal(by_person(other.images, per_person)[: common[0], : common[1]], ours)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_leave_no_trace(drawn, monkeypatch, block):
    # The fixture's 16 images a person and blocks of 32 meet; these cut people in the middle.
    assert simulator.BLOCK < PEOPLE * EACH and block != simulator.BLOCK
    monkeypatch.setattr(simulator, "BLOCK", block)
    np.testing.assert_array_equal(portraits(5, EACH, seed=3).images, drawn.images[: 5 * EACH])


def test_no_image_is_drawn_twice(drawn):
    assert len(np.unique(drawn.images.reshape(len(drawn.images), -1), axis=0)) == PEOPLE * EACH
    # Not by the noise alone.
    blurred = by_person(drawn.images).reshape(PEOPLE, EACH, 12, 4, 12, 4, 3).mean(axis=(3, 5))
    apart = np.abs(blurred[:, :, None] - blurred[:, None]).mean(axis=(3, 4, 5))
    assert (apart + 255 * np.eye(EACH)).min() > 4


def test_people_have_faces_of_their_own_and_keep_them():
    person = np.arange(60)
    shares = simulator._identities(3, person)
    assert shares.dtype == np.float32 and shares.min() >= 0 and shares.max() < 1
    # 60 draws of a uniform number: they reach both ends, and no two parameters are one.
    assert (shares.min(axis=0) < 0.2).all() and (shares.max(axis=0) > 0.8).all()
    alike = np.corrcoef(shares.T) - np.eye(shares.shape[1])
    assert np.abs(alike).max() < 0.6
    np.testing.assert_array_equal(simulator._identities(3, person[7:9]), shares[7:9])
    nearest = np.abs(shares[:, None] - shares).mean(axis=2) + np.eye(60)
    assert nearest.min() > 0.15
    # What differs between one person's images is drawn apart from who they are.
    views = simulator._views(3, person, 4).reshape(60, 4, -1)
    assert np.abs(views[:, :1] - views[:, 1:]).mean(axis=2).min() > 0.1
    both = np.concatenate([shares, views[:, 0]], axis=1)
    assert np.abs(np.corrcoef(both.T) - np.eye(both.shape[1])).max() < 0.65


def test_the_mean_image_of_a_person_says_who_it_is(drawn):
    # Pose and background average out, and what is left must be the person.
    faces = by_person(drawn.images)[:, :, 10:40, 12:36].astype(np.float32)
    odd, even = (half.mean(axis=1).reshape(PEOPLE, -1) for half in (faces[:, ::2], faces[:, 1::2]))
    apart = np.sqrt(((odd[:, None] - even) ** 2).mean(axis=2))
    own, others = np.diag(apart), apart[~np.eye(PEOPLE, dtype=bool)]
    assert (apart.argmin(axis=1) == np.arange(PEOPLE)).mean() >= 0.8
    assert own.mean() < 0.6 * others.mean()
    # A single image says much less: its pose, light and background weigh as much as the person.
    single = np.sqrt(((faces[:, 0].reshape(PEOPLE, 1, -1) - faces[:, 1].reshape(PEOPLE, -1)) ** 2).mean(axis=2))
    assert np.diag(single).mean() > 0.6 * single[~np.eye(PEOPLE, dtype=bool)].mean()


def unseen(names, bounds, present, prefix=""):
    """Of `names`, those that change fewer than two pixels when they go from one of `bounds` to the other."""
    shares = [middles(2, **present | {f"{prefix}{name}": bounds}) for name in names]
    images = rendered(*map(np.concatenate, zip(*shares, strict=True))).astype(int)
    changed = (np.abs(images[::2] - images[1::2]).max(axis=3) > 5).sum(axis=(1, 2))
    return [name for name, count in zip(names, changed, strict=True) if count < 2]


def test_every_feature_of_a_person_shows():
    # Of what somebody does not have, the form cannot show.
    present = {"curl": 0.9, "beard": 0.8, "mole": 0.9, "mole_y": 0.1, "glasses": 0.9, "its_light_x": 0.9}
    assert unseen(list(simulator.IDENTITY), (0.02, 0.98), present) == []


def test_everything_about_a_view_shows():
    present = {"curl": 0.9, "glasses": 0.75, "its_light": 0.9, "its_back_other_light": 0.9}
    names = sorted(set(simulator.VIEW) - {"noise", "grain"})
    assert unseen(names, (0.02, 0.85), present, "its_") == []


@pytest.mark.parametrize(
    ("name", "axis", "pixels"),
    # Shifts are in halves of 96 pixels. Turns move the front of the head by their sine times its half width or height,
    # less what a turned head hides of the eye that is further away.
    [("shift_x", 1, 2.88), ("shift_y", 0, 2.88), ("yaw", 1, 3.8), ("pitch", 0, 4.2)],
)
def test_features_go_where_the_head_does(name, axis, pixels):
    bounds = simulator.VIEW[name]
    assert bounds[0] == -bounds[1]
    # Eyes are where images differ that differ in eyes.
    identities, views = middles(6, eye_open=(0.1, 0.9) * 3, **{f"its_{name}": np.repeat((0.0, 0.5, 1.0), 2)})
    images = rendered(identities, views, 96).astype(float).reshape(3, 2, 96, 96, 3)
    change = np.abs(images[:, 0] - images[:, 1]).sum(axis=(3, 2 - axis))
    before, ahead, after = change @ np.arange(96) / change.sum(axis=1)
    assert after - ahead == pytest.approx(pixels, rel=0.2)
    assert ahead - before == pytest.approx(pixels, rel=0.2)


def test_a_thing_before_the_face_is_rare_and_covers_it():
    identities, views = middles(200)
    absent = views.shape[1] - len(simulator.COVER) + list(simulator.COVER).index("absent")
    views[:, absent] = np.arange(200) / 200
    changed = (rendered(identities, views, 16) != rendered(*middles(1), 16)).any(axis=(1, 2, 3))
    assert changed.sum() == 200 * simulator.COVERED and changed[0] and not changed[-1]


def test_noise_is_the_images_own():
    identities, views = middles(3, its_noise=(0.0, 1.0, 1.0), its_grain=(0.3, 0.3, 0.6))
    grain = np.random.default_rng(0).standard_normal(simulator._GRAIN + 3 * 48**2).astype(np.float32)
    little, much, other = simulator._render(identities, views, grain, 48).astype(float)
    clean = rendered(identities, views)[0].astype(float)
    low, high = (255 * bound for bound in simulator.VIEW["noise"])
    assert (little - clean).std() == pytest.approx(low, rel=0.15)
    assert (much - clean).std() == pytest.approx(high, rel=0.15)
    assert abs(np.corrcoef((much - clean).ravel(), (other - clean).ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("size", [16, 32, 64])
def test_another_size_shows_the_same_people(drawn, size):
    images = portraits(4, 4, seed=3, size=size).images
    assert images.shape == (16, size, size, 3)
    common = np.gcd(size, 48)
    ours = by_person(drawn.images)[:4, :4].reshape(16, 48, 48, 3)
    small = [
        part.reshape(16, common, part.shape[1] // common, common, -1, 3).mean(axis=(2, 4)) for part in (images, ours)
    ]
    assert np.abs(small[0] - small[1]).mean() < 8
    assert np.abs(small[0] - np.roll(small[1], 1, axis=0)).mean() > 24


def test_what_cannot_be_drawn_is_refused():
    least = {"people": 1, "per_person": 1, "seed": 0, "size": 16, "first": 0}
    assert len(portraits(**least).images) == 1
    for field, smallest in least.items():
        with pytest.raises(UserError, match=f"portraits: {field}={smallest - 1}; expected {smallest} or more"):
            portraits(**least | {field: smallest - 1})
