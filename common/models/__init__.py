"""Image classifiers shared by the papers, and how to build one by name."""

from common.models.backbones import cifar_resnet, imagenet_resnet, preactivation_block, small_cnn
from common.models.builder import Assembly, Setup
from common.models.efficientnet import efficientnet_lite0, efficientnet_lite0_tuned
from common.models.graph import flat, has_graph, places, rewired
from common.models.imagenet import IMAGENET, imagenet_classifier, imagenet_names
from common.models.registry import NETWORKS, Builder, build, check_name
from common.models.split import split_at

__all__ = [
    "IMAGENET",
    "NETWORKS",
    "Assembly",
    "Builder",
    "Setup",
    "build",
    "check_name",
    "cifar_resnet",
    "efficientnet_lite0",
    "efficientnet_lite0_tuned",
    "flat",
    "has_graph",
    "imagenet_classifier",
    "imagenet_names",
    "imagenet_resnet",
    "places",
    "preactivation_block",
    "rewired",
    "small_cnn",
    "split_at",
]
