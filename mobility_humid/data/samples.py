"""From a data set's name to samples: which trips make one, and the fleet that they come from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.errors import UserError
from common.runs.options import Budget, CommonOptions, Count, alias
from mobility_humid.data.layout import Layout
from mobility_humid.data.pairs import Pairs, Sampler, Singles, Split, split_drivers
from mobility_humid.data.trips import PROFILE_FEATURES, SEEK, SERVE, UNTYPED, TripSet, load_trips, padded
from mobility_humid.prepare import prepare

if TYPE_CHECKING:
    import tensorflow as tf

TRAIN, VALIDATION, SEEN, UNSEEN, TEST = PARTS = "train", "validation", "seen", "unseen", "test"


@dataclass(kw_only=True)
class SampleOptions(CommonOptions):
    """Whose trips, on which days, and how many make a sample."""

    dataset: str = alias("data_path", default="city")
    """Trips: city, trips that prepare.py wrote (.npz), or whatever prepare.py reads, which is then prepared first."""
    traj_type: Literal["seek", "serve", "all"] = "all"
    """Trips without a passenger, with one, or all of them; of a fleet that does not say which, all."""
    with_speed: bool = False
    """Give the networks the speed too, as a fourth feature of each point."""
    with_profile: bool = False
    """Give the networks the 11 profile features of a driver's day too."""
    num_plates: Count | None = None
    """Number of drivers, seen and unseen together, the first ones; null takes all."""
    num_days: Count | None = None
    """Days to train on, the first ones; null takes all that validation and test leave."""
    num_trajs: Count = 10
    """Trips of a driver in a sample, of all kinds together."""
    days_per_sample: Count = 1
    """Days that a driver's trips in a sample come from; the two sides of a pair share none."""
    missing_trips: bool = False
    """Take days with fewer trips than a sample holds too: the places of missing trips stay empty."""
    padding_length: Count = 30
    """Points of a trip, the last ones; shorter trips have zeros in front."""
    unseen_share: Budget = 0.25
    """Share of the drivers that are held back from training."""
    validation_days: Count = 2
    """Days to validate on, those before the test days."""
    test_days: Count = 3
    """Days to test on, the last ones."""
    n_test: Count = 500
    """Samples to test on, of each part."""


SAMPLE_FIELDS = (
    "dataset",
    "seed",
    *(name for name in SampleOptions.__annotations__ if name not in ("dataset", "n_test")),
)
"""What must be the same in a training and in an attack on its model."""


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
    options: SampleOptions
    samplers: dict[str, Sampler] = field(default_factory=dict)

    def sampler(self, part: str) -> Sampler:
        """The sampler of `part`: train, validation (both of seen drivers), seen or unseen (both of the test days);
        where all drivers are seen, their test days are `test`."""
        if part not in self.samplers:
            options = self.options
            self.samplers[part] = Sampler(
                self.trips,
                self.split.unseen if part == UNSEEN else self.split.seen,
                {TRAIN: self.split.train, VALIDATION: self.split.validation}.get(part, self.split.test),
                kinds=self.layout.kinds,
                per_kind=self.layout.per_kind,
                days_per_side=options.days_per_sample,
                least=1 if options.missing_trips else None,
                sides=self.layout.sides,
            )
        return self.samplers[part]

    def pairs(self, part: str, count: int) -> Pairs:
        """`count` pairs of `part`, always the same."""
        return self.sampler(part).pairs(count, [self.options.seed, 1 + PARTS.index(part)])

    def singles(self, part: str, count: int) -> Singles:
        """`count` samples of one driver each of `part`, always the same."""
        return self.sampler(part).singles(count, [self.options.seed, 1 + PARTS.index(part)])

    def samples(self, drawn: Pairs | Singles) -> np.ndarray:
        """The points of what was drawn, float32 (n, rows, length, features) in grid units."""
        profiles = self._profiles(drawn) if self.layout.profile else None
        return self.layout.assemble(self.table, self.layout.rows(drawn.trips), profiles)

    def epochs(self, count: int, batch_size: int, label: Callable) -> "Callable[[int], tf.data.Dataset]":
        """Batches of `count` training samples an epoch, drawn anew for each: epoch -> (x, `label(drawn)`) in turn."""
        import tensorflow as tf

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
            seed = [self.options.seed, 0, epoch]
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
            dataset = tf.data.Dataset.from_tensor_slices((rows, y, profiles))
            return dataset.map(assemble, num_parallel_calls=2, deterministic=True).prefetch(2)

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


def load_fleet(options: SampleOptions, say: Callable[[str], None], *, sides: int) -> Fleet:
    """The fleet that `options` name, prepared first if need be; samples have `sides` drivers, 1 or 2.

    Errors: `UserError` for a data set that cannot be read, or that lacks drivers, days, kinds of trips or profiles.
    """
    trips = load_trips(trips_file(options, say))
    if options.num_plates is not None:
        trips = first_drivers(trips, options.num_plates)
    kinds = _kinds(trips, options)
    if options.num_trajs % len(kinds):
        raise UserError(f"--num-trajs: expected an even number, as many seek as serve trips; got {options.num_trajs}")
    check_samples(options)
    split = split_drivers(
        trips,
        seed=options.seed,
        # Drivers that are to be named are all known.
        unseen_share=options.unseen_share if sides == 2 else 0.0,
        test_days=options.test_days,
        validation_days=options.validation_days,
        num_days=options.num_days,
    )
    features = 4 if options.with_speed else 3
    per_kind = options.num_trajs // len(kinds)
    layout = Layout(kinds, per_kind, sides, options.padding_length, features, options.with_profile)
    table = padded(trips, options.padding_length, speed=options.with_speed)
    return Fleet(trips, split, layout, table, _without_gaps(trips.profiles, split), options)


def check_samples(options: SampleOptions) -> None:
    """Refuse what can be refused before trips are read or prepared.

    Errors: `UserError` for options of which no sample can be made.
    """
    if options.with_profile and options.padding_length < len(PROFILE_FEATURES):
        raise UserError(f"--padding-length: a profile takes {len(PROFILE_FEATURES)}; got {options.padding_length}")
    if not options.unseen_share <= 1:
        raise UserError(f"--unseen-share: is a share and at most 1; got {options.unseen_share:g}")


def needs(options: SampleOptions) -> None:
    """What prepare.py would refuse, where it is to be run."""
    if Path(options.dataset).suffix != ".npz":
        prepare.expect(None, options)


def trips_file(options: SampleOptions, say: Callable[[str], None]) -> Path:
    """The file of trips that `options` name, made by prepare.py if need be."""
    path = Path(options.dataset)
    if path.suffix == ".npz":
        return path
    return prepare.produce(None, options, say=say) / "trips.npz"


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


def _kinds(trips: TripSet, options: SampleOptions) -> tuple[int, ...]:
    there = trips.kinds
    if there == (UNTYPED,):
        if options.traj_type != "all":
            raise UserError(f"--traj-type: {options.dataset} does not say which trips had a passenger; use all")
        return there
    wanted = {"seek": (SEEK,), "serve": (SERVE,), "all": (SEEK, SERVE)}[options.traj_type]
    if missing := set(wanted) - set(there):
        names = " and ".join(("seek", "serve")[kind] for kind in sorted(missing))
        raise UserError(f"--traj-type {options.traj_type}: {options.dataset} has no {names} trips")
    return wanted


def _without_gaps(profiles: np.ndarray, split: Split) -> np.ndarray:
    """Where a driver has no such day, or a day lacks a feature, the mean of the training part."""
    known = profiles[split.seen][:, split.train].reshape(-1, profiles.shape[-1])
    there = np.isfinite(known)
    means = np.where(there, known, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return np.where(np.isfinite(profiles), profiles, means.astype(np.float32))
