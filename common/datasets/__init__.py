"""Image data sets by name, or from files; `load` has them in memory."""

from common.datasets.loading import (
    NAMES,
    TAR_SUFFIXES,
    Arrays,
    FileLabels,
    check_sizes,
    class_count,
    list_folder,
    load,
    scaled,
    stack,
)

__all__ = [
    "NAMES",
    "TAR_SUFFIXES",
    "Arrays",
    "FileLabels",
    "check_sizes",
    "class_count",
    "list_folder",
    "load",
    "scaled",
    "stack",
]
