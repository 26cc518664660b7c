"""Which trips make a sample, and the fleet that they come from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.errors import UserError
from mobility_humid.data.layout import Layout
from mobility_humid.data.pairs import Pairs, Sampler, Singles, Split, split_drivers
from mobility_humid.data.trips import PROFILE_FEATURES, SEEK, SERVE, UNTYPED, TripSet, padded

if TYPE_CHECKING:
    import tensorflow as tf

TRAIN, VALIDATION, SEEN, UNSEEN, TEST = PARTS = "train", "validation", "seen", "unseen", "test"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Drivers, days, and trips in a sample.

    `traj_type`: trips without a passenger, with one, or all; `num_plates` and `num_days`: the first ones, None for
    all; `num_trajs` trips of a driver in a sample, from `days_per_sample` days, of `padding_length` points;
    `unseen_share` of the drivers are held out, others in each `fold`. `seed` draws the samples.
    """

    traj_type: Literal["seek", "serve", "all"] = "all"
    with_speed: bool = False
    with_profile: bool = False
    num_plates: int | None = None
    num_days: int | None = None
    num_trajs: int = 10
    days_per_sample: int = 1
    missing_trips: bool = False
    padding_length: int = 30
    unseen_share: float = 0.25
    fold: int = 0
    validation_days: int = 2
    test_days: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Fleet:
    """Trips, cut into parts, and the samples to be drawn from them.

    `table` int16 (T + 1, length, features) as `trips.padded` has it; `profiles` float32 (D, N, 11) without gaps.
    """

    trips: TripSet
    split: Split
    layout: Layout
    table: np.ndarray
    profiles: np.ndarray
    sampling: Sampling
    samplers: dict[str, Sampler] = field(default_factory=dict)

    def sampler(self, part: str) -> Sampler:
        """The sampler of `part`: train, validation (both of seen drivers), seen or unseen (both of the test days);
        where all drivers are seen, their test days are `test`."""
        if part not in self.samplers:
            self.samplers[part] = Sampler(
                self.trips,
                self.split.unseen if part == UNSEEN else self.split.seen,
                {TRAIN: self.split.train, VALIDATION: self.split.validation}.get(part, self.split.test),
                kinds=self.layout.kinds,
                per_kind=self.layout.per_kind,
                days_per_side=self.sampling.days_per_sample,
                least=1 if self.sampling.missing_trips else None,
                sides=self.layout.sides,
            )
        return self.samplers[part]

    def pairs(self, part: str, count: int) -> Pairs:
        """`count` pairs of `part`, always the same."""
        return self.sampler(part).pairs(count, [self.sampling.seed, 1 + PARTS.index(part)])

    def singles(self, part: str, count: int) -> Singles:
        """`count` samples of one driver each of `part`, always the same."""
        return self.sampler(part).singles(count, [self.sampling.seed, 1 + PARTS.index(part)])

    def samples(self, drawn: Pairs | Singles) -> np.ndarray:
        """The points of what was drawn, float32 (n, rows, length, features) in grid units."""
        profiles = self._profiles(drawn) if self.layout.profile else None
        return self.layout.assemble(self.table, self.layout.rows(drawn.trips), profiles)

    def epochs(self, count: int, batch_size: int, label: Callable) -> "Callable[[int], tf.data.Dataset]":
        """Batches of `count` training samples, drawn for each epoch: epoch -> (x, `label(drawn)`) in turn."""
        import tensorflow as tf

        from common.training.batches import assembled

        sampler = self.sampler(TRAIN)
        layout, steps = self.layout, max(count // batch_size, 1)
        with tf.device("CPU"):
            table = tf.constant(self.table)

        def assemble(rows: "tf.Tensor", y: "tf.Tensor", profiles: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
            x = tf.cast(tf.gather(table, rows), tf.float32)
            if layout.profile:
                missing = [[0, 0], [0, 0], [0, layout.length - len(PROFILE_FEATURES)]]
                wide = tf.pad(profiles, missing)[..., None]
                x = tf.concat([x, tf.pad(wide, [[0, 0], [0, 0], [0, 0], [0, layout.features - 1]])], axis=1)
            return x, y

        def epoch_batches(epoch: int) -> tf.data.Dataset:
            seed = [self.sampling.seed, 0, epoch]
            draw = sampler.pairs if layout.sides == 2 else sampler.singles
            drawn = draw(steps * batch_size, seed)
            order = np.random.default_rng([*seed, 1]).permutation(len(drawn.days))
            rows = layout.rows(drawn.trips)[order].reshape(steps, batch_size, -1)
            # TensorFlow counts from the front only; the last row of the table is the empty trip.
            rows = np.where(rows < 0, len(self.table) - 1, rows)
            y = label(drawn)[order].astype(np.int32).reshape(steps, batch_size)
            profiles = np.zeros((steps, batch_size, layout.sides, 0), np.float32)
            if layout.profile:
                profiles = self._profiles(drawn)[order].reshape(steps, batch_size, layout.sides, -1)
            return assembled(rows, y, profiles, assemble=assemble)

        return epoch_batches

    def _profiles(self, drawn: Pairs | Singles) -> np.ndarray:
        """The profiles of the sides, means over their days: float32 (n, sides, 11)."""
        driver = drawn.driver.reshape(len(drawn.driver), -1, 1)
        days = drawn.days.reshape(len(drawn.days), driver.shape[1], -1)
        return self.profiles[driver, days].mean(axis=2)

    def profile_scale(self) -> list[list[float]]:
        """Mean and standard deviation of the profiles of the training part."""
        known = self.profiles[self.split.seen][:, self.split.train].reshape(-1, len(PROFILE_FEATURES))
        return [known.mean(axis=0).tolist(), np.maximum(known.std(axis=0), 1e-3).tolist()]


def fleet_of(trips: TripSet, sampling: Sampling, *, sides: int, name: str = "the data set") -> Fleet:
    """The fleet of `trips`, cut into parts; samples have `sides` drivers, 1 or 2.

    Errors: `UserError` for a data set, called `name`, that lacks drivers, days, kinds of trips or profiles.
    """
    if sampling.num_plates is not None:
        trips = first_drivers(trips, sampling.num_plates)
    kinds = _kinds(trips, sampling, name)
    if sampling.num_trajs % len(kinds):
        raise UserError(f"--num-trajs: expected an even number, as many seek as serve trips; got {sampling.num_trajs}")
    check_samples(sampling)
    split = split_drivers(
        trips,
        seed=sampling.seed,
        # Drivers that are to be named are all known.
        unseen_share=sampling.unseen_share if sides == 2 else 0.0,
        test_days=sampling.test_days,
        validation_days=sampling.validation_days,
        num_days=sampling.num_days,
        fold=sampling.fold if sides == 2 else 0,
    )
    features = 4 if sampling.with_speed else 3
    per_kind = sampling.num_trajs // len(kinds)
    layout = Layout(kinds, per_kind, sides, sampling.padding_length, features, sampling.with_profile)
    table = padded(trips, sampling.padding_length, speed=sampling.with_speed)
    return Fleet(trips, split, layout, table, _without_gaps(trips.profiles, split), sampling)


def check_samples(sampling: Sampling) -> None:
    """Refuse what can be refused before trips are read or prepared.

    Errors: `UserError` for settings of which no sample can be made.
    """
    if sampling.with_profile and sampling.padding_length < len(PROFILE_FEATURES):
        raise UserError(f"--padding-length: a profile takes {len(PROFILE_FEATURES)}; got {sampling.padding_length}")
    if not sampling.unseen_share <= 1:
        raise UserError(f"--unseen-share: must be at most 1; got {sampling.unseen_share:g}")


def first_drivers(trips: TripSet, count: int) -> TripSet:
    """The first `count` drivers only."""
    import dataclasses

    kept = np.flatnonzero(trips.driver < count)
    if count >= len(trips.drivers) or not len(kept):
        return trips
    # Trips are sorted by driver: the first drivers' trips, and points, come first.
    return dataclasses.replace(
        trips,
        points=trips.points[: trips.offsets[len(kept)]],
        offsets=trips.offsets[: len(kept) + 1],
        driver=trips.driver[kept],
        day=trips.day[kept],
        kind=trips.kind[kept],
        profiles=trips.profiles[:count],
        drivers=trips.drivers[:count],
    )


def _kinds(trips: TripSet, sampling: Sampling, name: str) -> tuple[int, ...]:
    there = trips.kinds
    if there == (UNTYPED,):
        if sampling.traj_type != "all":
            raise UserError(f"--traj-type: {name} does not say which trips had a passenger; use all")
        return there
    wanted = {"seek": (SEEK,), "serve": (SERVE,), "all": (SEEK, SERVE)}[sampling.traj_type]
    if missing := set(wanted) - set(there):
        names = " and ".join(("seek", "serve")[kind] for kind in sorted(missing))
        raise UserError(f"--traj-type {sampling.traj_type}: {name} has no {names} trips")
    return wanted


def _without_gaps(profiles: np.ndarray, split: Split) -> np.ndarray:
    """Where a driver has no such day, or a day lacks a feature, the mean of the training part."""
    known = profiles[split.seen][:, split.train].reshape(-1, profiles.shape[-1])
    there = np.isfinite(known)
    means = np.where(there, known, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return np.where(np.isfinite(profiles), profiles, means.astype(np.float32))
