"""Images of people: data sets by name or path, people to train on and to be judged by, and pairs to attack."""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from common.datasets import TAR_SUFFIXES, check_sizes, stack
from common.datasets.downloads import Source, fetch
from common.datasets.images import (
    ImagePath,
    LoadedImage,
    TarImage,
    iterate_tar,
    list_images,
    list_tar,
    read_image,
    visible,
)
from common.errors import UserError, one_line
from common.files import check_text, write_text
from common.progress import track

NAMES = ("portraits", "lfw")
PORTRAIT_SIZE = 48

# Labelled Faces in the Wild (Huang et al. 2007), funneled, and its 6,000 pairs; addresses and sums are those that
# scikit-learn downloads by.
LFW = Source(
    "lfw/lfw-funneled.tgz",
    "https://ndownloader.figshare.com/files/5976015",
    "b47c8422c8cded889dc5a13418c4bc2abbda121092b3533a83306f90d900100a",
)
LFW_PAIRS = Source(
    "lfw/pairs.txt",
    "https://ndownloader.figshare.com/files/5976006",
    "ea42330c62c92989f9d7c03237ed5d591365e89b3e649747777b70e692dc1592",
)

# Rounds of drawing after which the pairs that are still missing are taken from a list of all there are.
_DRAWS = 20
# Pairs drawn in a round, at the least.
_DRAWN = 1000
_HEADER = ["attacker", "victim"]


@dataclass(frozen=True, eq=False)
class Faces:
    """Images of people, held in memory.

    `images`: uint8 (N, H, W, 3). `person`: int32 (N,), ascending, an index into `names`; everyone has an image.
    `files`: "<person>/<file name>" of each image. `sha256`: hash over all of these.
    """

    name: str
    images: np.ndarray
    person: np.ndarray
    names: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str

    @property
    def counts(self) -> np.ndarray:
        """Images of each person, int64 (people,)."""
        return np.bincount(self.person, minlength=len(self.names))

    def of(self, people: Sequence[int] | np.ndarray) -> "Faces":
        """Only the images of `people`, person indices in ascending order, who are numbered from 0 in that order.

        Errors: `ValueError` for people who are not ascending or not among these.
        """
        people = np.asarray(people, np.int64)
        if not len(people) or (np.diff(people) <= 0).any() or people[0] < 0 or people[-1] >= len(self.names):
            raise ValueError(f"people: expected ascending indices from 0 to {len(self.names) - 1}, received {people}")
        rows = np.flatnonzero(np.isin(self.person, people))
        person = np.searchsorted(people, self.person[rows]).astype(np.int32)
        names = tuple(self.names[index] for index in people)
        return _faces(self.name, self.images[rows], person, names, tuple(self.files[row] for row in rows))


class Clips(NamedTuple):
    """Frames of films of people: `clip` int32 (N,), ascending from 0, the film that each image of `faces` is from."""

    faces: Faces
    clip: np.ndarray


class People(NamedTuple):
    """Who serves for what: ascending person indices, int32, disjoint.

    `train`: identities that a network learns. `calibration`: held-out identities that fix thresholds. `attack`: others,
    who attack and are attacked.
    """

    train: np.ndarray
    calibration: np.ndarray
    attack: np.ndarray


class FaceSplits(NamedTuple):
    """The face data set and its identity splits."""

    faces: Faces
    people: People

    def rows(self, people: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images of `people`, int64."""
        return np.flatnonzero(np.isin(self.faces.person, people))

    @property
    def held_out(self) -> np.ndarray:
        """Everyone who did not train."""
        return np.sort(np.concatenate([self.people.calibration, self.people.attack]))


def load_faces(
    dataset: str,
    *,
    data_dir: str | Path = "data",
    seed: int = 0,
    image_size: int | None = None,
    people: int = 160,
    per_person: int = 20,
    progress: bool = False,
) -> Faces:
    """The faces of a name in `NAMES` or of a path.

    `portraits` are drawn, `per_person` of each of `people`, from `seed`. `lfw` is the funneled archive, downloaded once
    into `data_dir`. A path is a folder `<root>/<person>/<file>` or a tar of such a folder, which is read without being
    unpacked; people and files are sorted by name. Grey images become RGB.

    `image_size`: pixels a side. Portraits are drawn in it (default 48); of all others the largest square in the middle
    is cut out and scaled. Without it, images are as they are, and must be of one size. `progress`: shown while many
    images are read.

    Errors: `UserError` for an unknown name, a missing or damaged file, images of differing sizes without
    `image_size`.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size={image_size}: expected 1 or more")
    if dataset == "portraits":
        from face_mter.data.portraits import portraits

        if image_size is not None and image_size < 16:
            raise UserError(f"image_size={image_size}: portraits need 16 or more")
        drawn = portraits(people, per_person, seed=seed, size=image_size or PORTRAIT_SIZE)
        names = tuple(f"person_{number:04d}" for number in range(people))
        files = tuple(f"{name}/{image:04d}.png" for name in names for image in range(per_person))
        return _faces(dataset, drawn.images, drawn.person, names, files)
    path = fetch(LFW, data_dir) if dataset == "lfw" else Path(dataset)
    if path.is_dir():
        images, names = list_images(path, progress=progress)
        return _from_files(path, dataset, images, names, image_size, progress)
    if path.is_file() and path.name.lower().endswith(TAR_SUFFIXES):
        return _from_tar(path, dataset, image_size, progress)
    if path.exists():
        raise UserError(f"{dataset}: unknown kind of file; expected a folder <root>/<person>/<file> or a tar of one")
    raise UserError(f"{dataset}: neither a data set ({', '.join(NAMES)}) nor a folder or tar that exists")


def load_clips(root: str | Path, *, image_size: int | None = None, progress: bool = False) -> Clips:
    """The frames of a folder `<root>/<person>/<clip>/<frame>`, as YouTube Faces has them.

    `image_size` and `progress` as in `load_faces`.

    Errors: as `load_faces`.
    """
    root = Path(root)
    names = people_in(root)
    frames, clip, clips = [], [], 0
    for person, name in enumerate(track(names, f"listing {root.name}", units="people", shown=progress)):
        images, of_person = list_images(root / name)
        frames += [image._replace(label=person) for image in images]
        clip += [clips + image.label for image in images]
        clips += len(of_person)
    return Clips(_from_files(root, str(root), frames, names, image_size, progress), np.array(clip, np.int32))


def people_in(root: Path) -> tuple[str, ...]:
    """The people of a folder of clips. Errors: `UserError` for one that holds none."""
    names = tuple(sorted(entry.name for entry in visible(root) if entry.is_dir()))
    if not names:
        raise UserError(f"{root}: holds no folders of people; expected <root>/<person>/<clip>/<frame>")
    return names


def split_people(
    faces: Faces, *, seed: int, min_images: int = 5, n_train: int | None = None, evaluation_share: float = 0.3
) -> People:
    """Training and held-out identities, drawn by `seed`.

    People with fewer than `min_images` images are held out, and as many of the others as it takes until a share of
    `evaluation_share` of all people is. Of the rest at most `n_train` train (all for None); the others are held out
    too. Those held out are dealt into the calibration and the attack half, people of two images and more by
    themselves, so that both halves have their share of pairs of one person.

    Errors: `UserError` when a part has fewer than two people, or a half no one with two images.
    """
    check_split(min_images=min_images, n_train=n_train, evaluation_share=evaluation_share)
    rng = np.random.default_rng(seed)
    everyone = len(faces.names)
    order = rng.permutation(np.flatnonzero(faces.counts >= min_images))
    held_out = max(0, round(evaluation_share * everyone) - (everyone - len(order)))
    train = np.sort(order[: max(0, len(order) - held_out)][:n_train])
    if len(train) < 2:
        raise UserError(
            f"{faces.name}: {len(order)} of {everyone} people have {min_images} images or more, which leaves"
            f" {len(train)} to train on; lower min_images or evaluation_share, or bring more people"
        )
    return _dealt(faces, train, rng, "raise evaluation_share, lower n_train or bring more images")


def hold_all_out(faces: Faces, *, seed: int) -> People:
    """Nobody trains: everyone is dealt into the calibration and the attack half, as in `split_people`.

    Errors: `UserError` for fewer than four people, or fewer than two with two images.
    """
    return _dealt(faces, np.empty(0, np.int64), np.random.default_rng(seed), "bring more images")


def check_split(*, min_images: int, n_train: int | None, evaluation_share: float) -> None:
    """Errors: `UserError` for numbers by which no people can be split."""
    if not 0 < evaluation_share < 1:
        raise UserError(f"evaluation_share={evaluation_share}: expected a share between 0 and 1, such as 0.3")
    if min_images < 1:
        raise UserError(f"min_images={min_images}: expected 1 or more")
    if n_train is not None and n_train < 2:
        raise UserError(f"n_train={n_train}: expected 2 people or more")


def _dealt(faces: Faces, train: np.ndarray, rng: np.random.Generator, remedy: str) -> People:
    """Whoever is not of `train`, in two halves."""
    everyone = len(faces.names)
    unseen = rng.permutation(np.setdiff1d(np.arange(everyone), train))
    single = faces.counts[unseen] < 2
    unseen = np.concatenate([unseen[~single], unseen[single]])
    if len(unseen) < 4:
        raise UserError(
            f"{faces.name}: {len(unseen)} of {everyone} people are held out; expected 4 or more, two to fix"
            " thresholds and two to attack: raise evaluation_share or bring more people"
        )
    if np.sum(~single) < 2:
        raise UserError(
            f"{faces.name}: {np.sum(~single)} of {len(unseen)} held-out people have two images or more; expected"
            f" two such people: {remedy}"
        )
    parts = train, np.sort(unseen[::2]), np.sort(unseen[1::2])
    return People(*(part.astype(np.int32) for part in parts))


def attack_pairs(
    faces: Faces, people: Sequence[int] | np.ndarray, count: int, *, seed: int | Sequence[int], ordered: bool = True
) -> np.ndarray:
    """`count` distinct pairs (attacker, victim) of images of different `people`, drawn by `seed`: int32 (count, 2).

    Each person attacks and is attacked about equally often, however many images there are of them; the first pairs
    are balanced too. With `ordered` False a pair and its reverse count as the same.

    Errors: `UserError` when there are fewer than `count` such pairs.
    """
    if count < 1:
        raise UserError(f"{count} pairs to attack: expected 1 or more")
    people = np.asarray(people, np.int64)
    counts = faces.counts[people]
    first = np.searchsorted(faces.person, people)
    most = (int(counts.sum()) ** 2 - int((counts**2).sum())) // (1 if ordered else 2)
    if count > most:
        raise UserError(
            f"{faces.name}: {count} pairs of different people, {len(people)} people with {counts.sum()} images have"
            f" {most}; ask for fewer pairs or bring more people"
        )
    rng, size = np.random.default_rng(seed), len(faces.person)
    chosen = np.empty(0, np.int64)
    for _ in range(_DRAWS):
        missing = count - len(chosen)
        if missing <= 0:
            break
        # In a round each person attacks the one a fixed number of places later in a random order.
        order = rng.permuted(np.tile(np.arange(len(people)), (-(-max(missing, _DRAWN) // len(people)), 1)), axis=1)
        shift = rng.integers(1, len(people), (len(order), 1))
        victims = np.take_along_axis(order, (np.arange(len(people)) + shift) % len(people), axis=1)
        sides = np.stack([order.reshape(-1), victims.reshape(-1)])
        images = first[sides] + (rng.random(sides.shape) * counts[sides]).astype(np.int64)
        chosen = _distinct(np.concatenate([chosen, _codes(images, size, ordered)]))
    if len(chosen) < count:
        every = np.flatnonzero(np.isin(faces.person, people))
        different = np.nonzero(faces.person[every][:, None] != faces.person[every])
        left = np.setdiff1d(_codes(every[np.stack(different)], size, ordered), chosen)
        chosen = np.concatenate([chosen, rng.permutation(left)])
    return np.stack(np.divmod(chosen[:count], size), axis=1).astype(np.int32)


def save_pairs(path: str | Path, faces: Faces, pairs: np.ndarray) -> None:
    """Write pairs (count, 2) of images as a table of file names, byte by byte as they are, attacker and victim, for
    `load_pairs`."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_HEADER)
    rows.writerows((faces.files[attacker], faces.files[victim]) for attacker, victim in pairs.tolist())
    write_text(path, text.getvalue())


def load_pairs(path: str | Path, faces: Faces) -> np.ndarray:
    """The pairs of a file of `save_pairs` as images of `faces`: int32 (count, 2).

    Errors: `UserError` naming the line for an image that is not among `faces` and for two images of one person; for
    a file that is missing, empty, or no such table.
    """
    place = {file: row for row, file in enumerate(faces.files)}
    try:
        with open(path, "rb") as file:
            check_text(file.read(4), str(path))
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file, strict=True)
            if next(lines, None) != _HEADER:
                raise UserError(f"{path}: line 1 is not {','.join(_HEADER)!r}; expected a table of file names")
            pairs = [_pair(fields, place, faces, f"{path}: line {lines.line_num}") for fields in lines if fields]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a table of file names ({one_line(error)}); write it again") from error
    if not pairs:
        raise UserError(f"{path}: holds no pairs; expected lines <attacker's file>,<victim's file>")
    return np.array(pairs, np.int32)


def _pair(fields: list[str], place: dict[str, int], faces: Faces, where: str) -> list[int]:
    if len(fields) != 2:
        raise UserError(f"{where} has {len(fields)} fields; expected <attacker's file>,<victim's file>")
    for file in fields:
        if file not in place:
            raise UserError(f"{where}: {file!r} is no image of {faces.name}; choose the pairs of this data set")
    attacker, victim = (place[file] for file in fields)
    if faces.person[attacker] == faces.person[victim]:
        raise UserError(f"{where}: both images are of {faces.names[faces.person[attacker]]!r}; expected two people")
    return [attacker, victim]


def _distinct(codes: np.ndarray) -> np.ndarray:
    """`codes` in their order without those that occurred before."""
    return codes[np.sort(np.unique(codes, return_index=True)[1])]


def _codes(images: np.ndarray, size: int, ordered: bool) -> np.ndarray:
    """One number for each pair of `images` (2, n) below `size`."""
    attacker, victim = images if ordered else np.sort(images, axis=0)
    return attacker * size + victim


def _faces(name: str, images: np.ndarray, person: np.ndarray, names: tuple[str, ...], files: tuple[str, ...]) -> Faces:
    digest = hashlib.sha256(repr((names, files, images.shape)).encode())
    digest.update(np.ascontiguousarray(images).data)
    return Faces(name, images, person, names, files, digest.hexdigest())


def _from_files(
    root: Path,
    name: str,
    images: Sequence[ImagePath],
    names: tuple[str, ...],
    image_size: int | None,
    progress: bool,
) -> Faces:
    check_sizes(root, {(image.height, image.width) for image in images}, image_size)
    pixels = ((row, read_image(image.path)) for row, image in enumerate(images))
    stacked = _stack(root, pixels, len(images), image_size, progress)
    person = np.array([image.label for image in images], np.int32)
    return _faces(name, stacked, person, names, tuple(image.path.relative_to(root).as_posix() for image in images))


def _from_tar(path: Path, name: str, image_size: int | None, progress: bool) -> Faces:
    images, names = list_tar(path)
    if len({image.part for image in images}) > 1:
        raise UserError(f"{path}: has a train and a test part; expected <root>/<person>/<file>, people are split later")
    place = {image.name: row for row, image in enumerate(images)}
    pixels = ((place[member], image) for member, image in iterate_tar(path, list(place)))
    stacked = _stack(path, pixels, len(images), image_size, progress)
    person = np.array([image.label for image in images], np.int32)
    return _faces(name, stacked, person, names, tuple(map(_tar_file, images)))


def _tar_file(image: TarImage) -> str:
    return f"{image.class_name}/{PurePosixPath(image.name).name}"


def _stack(
    where: Path, pixels: Iterator[tuple[int, LoadedImage]], count: int, image_size: int | None, progress: bool
) -> np.ndarray:
    if image_size is not None:
        pixels = ((row, image._replace(rgb=_middle(image.rgb))) for row, image in pixels)
    return stack(where, pixels, count, image_size, progress=progress)


def _middle(rgb: np.ndarray) -> np.ndarray:
    """The largest square in the middle of an image (H, W, 3)."""
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])
