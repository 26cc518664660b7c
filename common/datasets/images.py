"""Images in folders and tar files, and arrays in `.npz` files read and written in rows."""

import contextlib
import functools
import io
import lzma
import os
import struct
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, TypedDict

import numpy as np

from common.errors import UserError, one_line
from common.files import replacing
from common.progress import track

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
FOREIGN_SUFFIXES = frozenset({".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm"})
SPLITS = ("train", "test")
# Larger than any photograph, small enough to unpack in memory.
MAX_PIXELS = 150_000_000
MAX_FILE_BYTES = 2**30
ORIENTATION = 0x0112
XMP = "XML:com.adobe.xmp"


class ImagePath(NamedTuple):
    """An image of an image folder; `width` and `height` in pixels as the image is seen (EXIF rotation applied)."""

    path: Path
    label: int
    class_name: str
    width: int
    height: int


class TarImage(NamedTuple):
    """An image of a tar file: its member's `name`, and its part, `"train"`, `"test"` or None for no parts."""

    name: str
    label: int
    class_name: str
    part: str | None


class Labelled(Protocol):
    """What has a class index."""

    @property
    def label(self) -> int: ...


class Metadata(TypedDict, total=False):
    """Metadata of an image; absent keys were absent in the file.

    `exif`: EXIF block without its orientation, which the pixels have taken on. `icc_profile`: an RGB profile. `dpi`:
    dots per inch along x and y. `text`: PNG text chunks, JPEG comment and XMP.
    """

    exif: bytes
    icc_profile: bytes
    dpi: tuple[float, float]
    text: dict[str, str]


class LoadedImage(NamedTuple):
    """An upright image: `rgb` uint8 (H, W, 3), `alpha` uint8 (H, W) or None for an opaque one."""

    rgb: np.ndarray
    alpha: np.ndarray | None
    metadata: Metadata


def list_images(root: Path | str, *, progress: bool = False) -> tuple[list[ImagePath], tuple[str, ...]]:
    """The images of `<root>/<class>/<file>` sorted by class and file name, and the sorted class names.

    Reads headers only. Hidden files and files that are no images by name are passed over. `progress` is shown if it
    takes long.

    Errors: `UserError` for a missing root, one without class folders, a class without images or with folders inside,
    an image of a format that is not read, and a file that is not the image its name says.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected <root>/<class>/<file>")
    names = tuple(sorted(entry.name for entry in visible(root) if entry.is_dir()))
    if not names:
        raise UserError(f"{root}: holds no class folders; put the images into <root>/<class>/<file>")
    images = []
    for label, name in enumerate(track(names, f"listing {root.name}", units="classes", shown=progress)):
        entries = sorted(visible(root / name), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir():
                raise UserError(f"{entry.path}: a folder inside a class folder; expected <root>/<class>/<file>")
        files = [Path(entry.path) for entry in entries if _is_image(Path(entry.name), entry.path)]
        if not files:
            raise UserError(f"{root / name}: holds no images; add some or remove the folder")
        images += [ImagePath(path, label, name, *_upright_size(path)) for path in files]
    return images, names


def list_tar(path: Path | str) -> tuple[list[TarImage], tuple[str, ...]]:
    """The images of a tar (plain, gzip, bzip2 or xz) of `<class>/<file>` or `{train,test}/<class>/<file>`.

    One folder around them all is allowed. Sorted by part, class and name; nothing is unpacked to disk.

    Errors: `UserError` for a missing, damaged or empty tar, absolute names and names with `..`, links and devices,
    names that occur twice, and folders of differing depth.
    """
    found = {}
    with _open_tar(path) as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if member.name.startswith("/") or ".." in parts or "\\" in member.name:
                raise UserError(f"{path}[{member.name}]: leaves its folder; pack the folder again")
            if not (member.isfile() or member.isdir()):
                raise UserError(f"{path}[{member.name}]: a link or device; pack the folder again with plain files")
            hidden = any(part.startswith(".") for part in parts)
            if member.isdir() or hidden or not _is_image(PurePosixPath(member.name), f"{path}[{member.name}]"):
                continue
            if member.name in found:
                raise UserError(f"{path}[{member.name}]: occurs twice; pack the folder again")
            if len(parts) < 2:
                raise UserError(f"{path}[{member.name}]: is in no class folder; expected <class>/<file>")
            part = parts[-3] if len(parts) > 2 and parts[-3] in SPLITS else None
            found[member.name] = (part, parts[-2], parts[: -2 if part is None else -3])
    if not found:
        raise UserError(f"{path}: holds no images; expected <class>/<file> or {{train,test}}/<class>/<file>")
    if len({around for _, _, around in found.values()}) > 1 or len({part is None for part, _, _ in found.values()}) > 1:
        raise UserError(f"{path}: images at differing depths; expected <class>/<file> or {{train,test}}/<class>/<file>")
    names = tuple(sorted({class_name for _, class_name, _ in found.values()}))
    labels = {name: label for label, name in enumerate(names)}
    images = [TarImage(name, labels[kind], kind, part) for name, (part, kind, _) in found.items()]
    return sorted(images, key=lambda image: (image.part or "", image.label, image.name)), names


def iterate_tar(path: Path | str, names: Sequence[str]) -> Iterator[tuple[str, LoadedImage]]:
    """The members `names` of a tar as (name, `LoadedImage`), in the tar's own order, one in memory at a time.

    Errors: `UserError` as in `read_image`, naming tar and member.
    """
    wanted = set(names)
    with _open_tar(path) as archive:
        for member in archive:
            if member.name in wanted and member.isfile():
                where = f"{path}[{member.name}]"
                if member.size > MAX_FILE_BYTES:
                    raise UserError(f"{where}: {member.size} bytes is no image; remove it")
                yield member.name, _read_image(io.BytesIO(archive.extractfile(member).read()), where)


def split(images: Sequence[Labelled], share: float, seed: int) -> np.ndarray:
    """Which images are test images: bool (N,), about `share` of each class, drawn from `seed`.

    A class of two or more keeps at least one image on either side; a class of one is training only.

    Errors: `UserError` for a share outside (0, 1) or a negative seed.
    """
    if not 0 < share < 1:
        raise UserError(f"validation_share={share}: expected a share between 0 and 1, such as 0.1")
    if seed < 0:
        raise UserError(f"seed={seed}: expected 0 or more")
    labels = np.array([image.label for image in images], np.int64)
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            is_test[np.random.default_rng([seed, label]).permutation(members)[:count]] = True
    return is_test


def read_image(path: Path | str) -> LoadedImage:
    """Read a PNG, JPEG, BMP or WebP upright as 8-bit RGB and alpha, with its metadata.

    Palette and colour-key transparency becomes alpha, 16-bit grey is rounded to 8 bits (16-bit colour is cut), CMYK is
    converted. A colour profile
    that is not RGB is dropped with the colour space it described.

    Errors: `UserError` naming the file for one that is missing, foreign, truncated, animated or of more than
    `MAX_PIXELS` pixels.
    """
    try:
        with open(path, "rb") as file:
            return _read_image(file, str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def write_png(
    path: Path | str, rgb: np.ndarray, alpha: np.ndarray | None = None, metadata: Metadata | None = None
) -> None:
    """Write `rgb` uint8 (H, W, 3) and `alpha` uint8 (H, W) as a PNG with `metadata`, whole or not at all.

    Errors: `ValueError` for other shapes or types, `UserError` for a path that cannot be written.
    """
    from PIL import Image, PngImagePlugin

    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"rgb: expected uint8 (H, W, 3), received {rgb.dtype} {rgb.shape}")
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != rgb.shape[:2]):
        raise ValueError(f"alpha: expected uint8 {rgb.shape[:2]}, received {alpha.dtype} {alpha.shape}")
    options = dict(metadata or {})
    chunks = PngImagePlugin.PngInfo()
    for key, value in options.pop("text", {}).items():
        chunks.add_itxt(key, value)
    pixels = rgb if alpha is None else np.dstack([rgb, alpha])
    with replacing(path) as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", pnginfo=chunks, **options)


def _is_image(name: PurePath, where: str) -> bool:
    suffix = name.suffix.lower()
    if suffix in FOREIGN_SUFFIXES:
        raise UserError(f"{where}: {suffix[1:]} images are not read; convert it to PNG")
    return suffix in SUFFIXES


def visible(folder: Path) -> list[os.DirEntry]:
    """What a folder holds but for hidden entries, in no order. Errors: `UserError` when it cannot be read."""
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error


@functools.cache
def _damage() -> tuple[type[BaseException], ...]:
    """What Pillow raises on bytes that are not the image they claim to be."""
    from PIL import Image

    parsing = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError)
    return (*parsing, struct.error, zlib.error, Image.DecompressionBombError)


def _unreadable(where: str, error: BaseException) -> UserError:
    reason = one_line(error)
    if "cannot identify" in reason:
        reason = "not PNG, JPEG, BMP or WebP inside"
    return UserError(f"{where}: not a readable image ({reason}); remove or replace it")


@contextlib.contextmanager
def _open_image(file: IO[bytes], where: str) -> Iterator["Image.Image"]:
    """The image with its header read, whatever goes wrong inside turned into one line that names it."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(file, formats=("PNG", "JPEG", "BMP", "WEBP"))
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{where}: {image.width} x {image.height} pixels; the most is {MAX_PIXELS}; scale it down"
                )
            # A JPEG with additional views of the photograph (MPO) is a photograph; an animation is not.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{where}: an animation of {image.n_frames} frames; save one frame as PNG")
            yield image
    except UserError:
        raise
    except _damage() as error:
        raise _unreadable(where, error) from error


def _upright_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    with file, _open_image(file, str(path)) as image:
        if image.format == "PNG" and _metadata_after_pixels(file):
            image.load()
        # Pillow's own PNG method would decode every image that has no EXIF, to look for one behind the pixels.
        turned = Image.Image.getexif(image).get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def _metadata_after_pixels(file: IO[bytes]) -> bool:
    """Whether a PNG has EXIF or XMP behind its pixels, where a header's reader does not get; `file` keeps its place."""
    place, pixels_seen = file.tell(), False
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            pixels_seen |= kind == b"IDAT"
            if pixels_seen and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(place)


def _read_image(file: IO[bytes], where: str) -> LoadedImage:
    from PIL import ImageOps

    with _open_image(file, where) as image:
        image.load()
        text = {key: str(value) for key, value in getattr(image, "text", {}).items()}
        upright = ImageOps.exif_transpose(image)
        info = upright.info
        rgb, alpha = _channels(upright)

        metadata = Metadata()
        exif = upright.getexif()
        exif.pop(ORIENTATION, None)
        if len(exif):
            metadata["exif"] = exif.tobytes()
        profile = info.get("icc_profile")
        if profile and profile[16:20] == b"RGB ":
            metadata["icc_profile"] = profile
        if "dpi" in info:
            metadata["dpi"] = tuple(float(value) for value in info["dpi"])
        for key, value in ((XMP, info.get(XMP, info.get("xmp"))), ("Comment", info.get("comment"))):
            if value:
                text[key] = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        if text:
            metadata["text"] = text
        return LoadedImage(rgb, alpha, metadata)


def _channels(image: "Image.Image") -> tuple[np.ndarray, np.ndarray | None]:
    """8-bit RGB (H, W, 3) and alpha (H, W) or None."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        alpha = None if key is None else np.where(grey == key, 0, 255).astype(np.uint8)
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, 2), alpha
    if image.mode == "RGB" and key is not None and max(key) > 255:
        # Pillow has cut 16-bit colours to 8 bits, but not the colour that means transparent.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa", "RGBA"):
        pixels = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
    return np.array(image.convert("RGB")), None


@contextlib.contextmanager
def _open_tar(path: Path | str) -> Iterator[tarfile.TarFile]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a tar of images")
    try:
        with tarfile.open(path, "r:*") as archive:
            yield archive
    except UserError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: not a readable tar ({one_line(error)}); it may be truncated") from error
