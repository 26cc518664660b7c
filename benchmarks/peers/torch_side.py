"""The PyTorch side of `peers.py`, started by `peers.TorchSide`: one JSON line asks for an attack, one answers.

`python torch_side.py MODEL.keras BATCH_SIZE SEED`, with KERAS_BACKEND=torch. The Keras model is rebuilt from PyTorch's
own layers, since Keras' layers cost up to twice the time there; the logits of both are compared beforehand.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import torch
from torch.nn import functional

from common.training.checkpoints import load_model

# Of logits, relative to the largest: what the order of float32 sums may do.
TOLERANCE = 1e-4


class Port(torch.nn.Module):
    """A functional Keras model of the layers that `common.models` uses, in PyTorch's: images (N, C, H, W) -> logits.

    Errors: `ValueError` for any other layer.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleDict()
        self.plan: list[tuple[str, list[str]]] = []
        for layer in model.layers:
            sources = [
                tensor._keras_history.operation.name for node in layer._inbound_nodes for tensor in node.input_tensors
            ]
            self.parts[layer.name] = _part(layer)
            self.plan.append((layer.name, sources))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values: dict[str, torch.Tensor] = {}
        for name, sources in self.plan:
            inputs = [values[source] for source in sources] if sources else [images]
            values[name] = self.parts[name](*inputs)
        return values[self.plan[-1][0]]


class Channelled(torch.nn.Module):
    """Any other Keras model, on Keras' own layers, behind images (N, C, H, W)."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.permute(0, 2, 3, 1), training=False)


class Padded(torch.nn.Conv2d):
    """Keras' `same` padding: with strides it gives the odd pixel to bottom and right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:
            return functional.conv2d(x, self.weight, self.bias, self.stride, (pads[2], pads[0]))
        return super().forward(functional.pad(x, pads))


class Standard(torch.nn.Module):
    """(x - mean) / std per channel."""

    def __init__(self, mean: np.ndarray, variance: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(np.ravel(mean)).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(np.sqrt(np.ravel(variance))).reshape(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class Sum(torch.nn.Module):
    """The sum of its inputs."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return sum(inputs[1:], inputs[0])


class Mean(torch.nn.Module):
    """(N, C, H, W) -> (N, C), averaged over positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def _part(layer: keras.Layer) -> torch.nn.Module:
    weights = [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
    kind = type(layer).__name__
    if kind == "InputLayer":
        return torch.nn.Identity()
    if kind == "Normalization" and not layer.invert:
        return Standard(*(keras.ops.convert_to_numpy(value) for value in (layer.mean, layer.variance)))
    if kind == "Conv2D" and layer.padding == "same" and layer.activation is keras.activations.linear:
        outputs, inputs = weights[0].shape[3], weights[0].shape[2]
        part = Padded(inputs, outputs, layer.kernel_size, stride=layer.strides, bias=layer.use_bias)
        return _filled(
            part, weight=weights[0].transpose(3, 2, 0, 1), **({"bias": weights[1]} if layer.use_bias else {})
        )
    if kind == "BatchNormalization" and layer.scale and layer.center:
        part = torch.nn.BatchNorm2d(len(weights[0]), eps=layer.epsilon)
        return _filled(part, **dict(zip(("weight", "bias", "running_mean", "running_var"), weights, strict=True)))
    if kind == "Dense" and layer.use_bias and layer.activation is keras.activations.linear:
        return _filled(torch.nn.Linear(*weights[0].shape), weight=weights[0].T, bias=weights[1])
    plain = {
        "ReLU": lambda: torch.nn.ReLU(),
        "MaxPooling2D": lambda: torch.nn.MaxPool2d(layer.pool_size, layer.strides),
        "GlobalAveragePooling2D": Mean,
        "Add": Sum,
    }
    if kind not in plain:
        raise ValueError(f"layer {layer.name} ({kind}) has no counterpart here")
    return plain[kind]()


def _filled(part: torch.nn.Module, **values: np.ndarray) -> torch.nn.Module:
    for name, value in values.items():
        getattr(part, name).data.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return part


class Network:
    """The network to attack, on this machine's fastest device, and images in the memory layout that suits it best."""

    def __init__(self, model: keras.Model) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # On Keras' own layers the device is Keras' choice, which is the same.
        try:
            self.module, self.kind = Port(model).eval().to(self.device), "plain PyTorch layers"
        except ValueError as error:
            self.module, self.kind = Channelled(model).eval(), f"Keras on PyTorch: {error}"
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        probe = np.random.default_rng(0).random((32, *model.input_shape[1:]), np.float32)
        self._check(model, probe)
        self.layout = torch.contiguous_format
        if isinstance(self.module, Port):
            costs = {}
            for layout in (torch.channels_last, torch.contiguous_format):
                self._lay_out(layout)
                costs[layout] = _cost(self, probe)
            self._lay_out(min(costs, key=costs.get))
            self.kind += ", channels last" if self.layout is torch.channels_last else ", channels first"

    def images(self, x: np.ndarray) -> torch.Tensor:
        """(N, H, W, C) as PyTorch takes it."""
        return torch.from_numpy(x).permute(0, 3, 1, 2).to(self.device).contiguous(memory_format=self.layout)

    def _lay_out(self, layout: torch.memory_format) -> None:
        self.layout, self.module = layout, self.module.to(memory_format=layout)

    def _check(self, model: keras.Model, probe: np.ndarray) -> None:
        self.layout = torch.contiguous_format
        with torch.no_grad():
            expected = model(torch.from_numpy(probe).to(self.device), training=False)
            gap = (self.module(self.images(probe)) - expected).abs().max()
        if not gap <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise RuntimeError(f"the PyTorch network answers differently from the Keras model, by up to {float(gap)}")


def _cost(network: Network, x: np.ndarray) -> float:
    images, labels, seconds = network.images(x), torch.zeros(len(x), dtype=torch.int64, device=network.device), []
    for _ in range(4):
        started = time.perf_counter()
        gradient(network, images, labels).cpu()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def gradient(network: Network, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of the cross-entropy, with respect to the images."""
    images = images.detach().requires_grad_(True)
    loss = functional.cross_entropy(network.module(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]


class Bare:
    """PyTorch without a library."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def gradients(self, images, labels, *, steps):
        for _ in range(steps):
            last = gradient(self.network, images, labels)
        return last


class TorchAttacks:
    """torchattacks: one class per attack, L-inf unless its name says otherwise."""

    def __init__(self, network: Network) -> None:
        import torchattacks

        self.network, self.library = network, torchattacks

    def fgsm(self, images, labels, *, eps, norm="linf"):
        _only("linf", norm)
        return self.library.FGSM(self.network.module, eps=eps)(images, labels)

    def pgd(self, images, labels, *, eps, alpha, steps, norm="linf", random_start=True):
        options = {"eps": eps, "alpha": alpha, "steps": steps, "random_start": random_start}
        if norm == "linf":
            return self.library.PGD(self.network.module, **options)(images, labels)
        # Its L2 attack asks for a view of gradients, which channels last has not.
        module = copy.deepcopy(self.network.module).to(memory_format=torch.contiguous_format)
        return self.library.PGDL2(module, **options)(images.contiguous(), labels)

    def mi_fgsm(self, images, labels, *, eps, alpha, steps, momentum=1.0, norm="linf"):
        _only("linf", norm)
        return self.library.MIFGSM(self.network.module, eps=eps, alpha=alpha, steps=steps, decay=momentum)(
            images, labels
        )

    def cw_l2(self, images, labels, *, steps, search_steps, constant, learning_rate):
        raise NotImplementedError(
            "no search for the constant: one c for all images, where the others search one for each"
        )

    def cw_l2_one_constant(self, images, labels, *, steps, c, learning_rate):
        return self.library.CW(self.network.module, c=c, steps=steps, lr=learning_rate)(images, labels)

    def autoattack(self, images, labels, *, eps, norm, seed):
        names = {"linf": "Linf", "l2": "L2"}
        model = Counted(self.network.module)
        attack = self.library.AutoAttack(model, norm=names[norm], eps=eps, seed=seed, n_classes=model.classes(images))
        return model.noted(self, attack(images, labels))


class Counted(torch.nn.Module):
    """A network that counts the rows that go forwards and backwards through it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.forwards, self.backwards = module, 0, 0
        counts = self

        class Passing(torch.autograd.Function):
            @staticmethod
            def forward(context, logits):
                return logits.view_as(logits)

            @staticmethod
            def backward(context, slope):
                counts.backwards += len(slope)
                return slope

        self.passing = Passing.apply

    def forward(self, images):
        self.forwards += len(images)
        return self.passing(self.module(images))

    def classes(self, images) -> int:
        with torch.no_grad():
            return self.module(images[:1]).shape[1]

    def noted(self, peer: object, result: torch.Tensor) -> torch.Tensor:
        """`result`; `peer` is told the counts."""
        peer.notes = {"forwards": self.forwards, "backwards": self.backwards}
        return result


class Official:
    """The code of AutoAttack's authors, as the package index has it: attack by attack on what is left, as it does."""

    def __init__(self, network: Network) -> None:
        import pyautoattack

        self.network, self.library = network, pyautoattack

    def autoattack(self, images, labels, *, eps, norm, seed):
        model = Counted(self.network.module)
        names = {"linf": "Linf", "l2": "L2"}
        attack = self.library.AutoAttack(model, norm=names[norm], eps=eps, seed=seed, device=self.network.device)
        attack.verbose = False
        moved, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        return model.noted(self, moved)

    def fab_t(self, images, labels, *, norm, steps):
        """Towards the likeliest other class alone: of several it leaves an image at the first success within eps."""
        from pyautoattack.fab_pt import FABAttack_PT

        options = {"n_iter": steps, "eps": 1e4, "targeted": True, "n_target_classes": 1}
        attack = FABAttack_PT(
            self.network.module, norm={"linf": "Linf"}.get(norm, norm.upper()), device=self.network.device, **options
        )
        return attack.perturb(images, labels)


class Foolbox:
    """Foolbox on PyTorch."""

    def __init__(self, network: Network) -> None:
        import foolbox

        self.library = foolbox
        self.model = foolbox.PyTorchModel(network.module, bounds=(0, 1), device=network.device)

    def fgsm(self, images, labels, *, eps, norm="linf"):
        kind = {"linf": "FGSM", "l2": "FGM", "l1": "L1FastGradientAttack"}[norm]
        return self._run(kind, images, labels, {"epsilon": eps})

    def pgd(self, images, labels, *, eps, alpha, steps, norm="linf", random_start=True):
        kind = {"linf": "LinfPGD", "l2": "L2PGD", "l1": "L1PGD"}[norm]
        options = {"abs_stepsize": alpha, "steps": steps, "random_start": random_start}
        return self._run(kind, images, labels, {"epsilon": eps}, **options)

    def cw_l2(self, images, labels, *, steps, search_steps, constant, learning_rate):
        options = {"binary_search_steps": search_steps, "steps": steps}
        options |= {"stepsize": learning_rate, "initial_const": constant}
        return self._run("L2CarliniWagnerAttack", images, labels, {}, **options)

    def ddn(self, images, labels, *, steps=100, gamma=0.05, initial_eps=1.0):
        return self._run("DDNAttack", images, labels, {}, steps=steps, gamma=gamma, init_epsilon=initial_eps)

    def _run(self, kind, images, labels, budget, **options):
        attack = getattr(self.library.attacks, kind)(**options)
        return attack.run(self.model, images, self.library.criteria.Misclassification(labels), **budget)


def _only(wanted: str, norm: str) -> None:
    if norm != wanted:
        raise NotImplementedError(f"only in {wanted}")


KINDS: dict[str, Callable[[Network], object]] = {
    "bare_torch": Bare,
    "official": Official,
    "torchattacks": TorchAttacks,
    "foolbox_torch": Foolbox,
}


def main(path: str, batch_size: int, seed: int) -> None:
    # Answers go through the original stdout alone, so that no library's print can get between them.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**values: object) -> None:
        print(json.dumps(values), file=channel, flush=True)

    torch.manual_seed(seed)
    model = load_model(Path(path))
    network = Network(model)
    answer(network=network.kind)
    peers: dict[str, object] = {}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            name, attack = question["peer"], question["attack"]
            if name not in peers:
                peers[name] = KINDS[name](network)
            method = getattr(peers[name], attack, None)
            if method is None:
                raise NotImplementedError(f"has no {attack}")
            with np.load(question["given"], allow_pickle=False) as arrays:
                x, y = arrays["x"], arrays["y"].astype(np.int64)
            started = time.perf_counter()
            changed = np.empty_like(x)
            for first in range(0, len(x), batch_size):
                rows = slice(first, first + batch_size)
                images, labels = network.images(x[rows]), torch.from_numpy(y[rows]).to(network.device)
                changed[rows] = (
                    method(images, labels, **question["settings"]).detach().permute(0, 2, 3, 1).cpu().numpy()
                )
            seconds = time.perf_counter() - started
            np.save(question["answered"], changed)
            answer(seconds=seconds, notes=getattr(peers[name], "notes", {}))
        except NotImplementedError as error:
            answer(error=" ".join(str(error).split()))
        except Exception as error:  # what a library raises becomes its row on the other side
            answer(error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
