"""Which recommenders there are, and how they are trained."""

from typing import Literal, NamedTuple

Kind = Literal["vbpr", "amr", "bprmf", "popularity"]
KINDS: tuple[Kind, ...] = ("vbpr", "amr", "bprmf", "popularity")
VISUAL: tuple[Kind, ...] = ("vbpr", "amr")
"""Those that look at images, and can be attacked through them."""


class Settings(NamedTuple):
    """How a recommender is trained.

    `factors`, `visual_factors`: lengths of the latent and the visual vectors. `l2` and `l2_visual` weigh half the
    squared norms of a triplet's vectors, and of projection and visual bias. `eps` and `lambd` are AMR's: the length
    of the change of a feature, in units of the scaled features, and the weight of the adversarial term.
    """

    factors: int = 20
    visual_factors: int = 20
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 0.05
    l2: float = 0.01
    l2_visual: float = 0.1
    eps: float = 1.0
    lambd: float = 0.1
