"""Simulated users with tastes: whom pictures alone can be recommended to, where no feedback is to be had."""

from collections.abc import Sequence

import numpy as np

from multimedia_recsys.interactions import Interactions, leave_one_out

# How far tastes reach in log-odds: of all users in common and of each user, for an item's category (the first trait)
# and for each of its further traits; and how unequal items of the same traits are.
COMMON, OWN, FURTHER, TAIL = 0.9, 1.3, 0.8, 0.9
# Interactions of a user: at least these, and on average so many more.
LEAST, MORE = 5, 9


def simulated(traits: Sequence[np.ndarray], users: int, *, seed: int) -> Interactions:
    """Feedback of `users` on items with `traits`, int (N,) each, the category first; one item a user held out, drawn.

    A user takes items one after another, each with odds exp(taste for its traits + its popularity), never one twice.
    """
    rng = np.random.default_rng([seed, 0x5409])
    items = len(traits[0])
    utility = np.repeat(TAIL * rng.standard_normal((1, items)), users, axis=0)
    for place, trait in enumerate(traits):
        values = int(trait.max()) + 1
        taste = (OWN if place == 0 else FURTHER) * rng.standard_normal((users, values))
        if place == 0:
            # Evenly spread and shuffled: no category is much like another by chance.
            taste += COMMON * rng.permutation(np.linspace(-1.7, 1.7, values))
        utility += taste[:, trait]
    # The largest of utility + Gumbel noise are draws without replacement by those odds.
    utility += rng.gumbel(size=utility.shape)
    counts = np.minimum(LEAST + rng.geometric(1 / (1 + MORE), users) - 1, items - 1)
    ranked = np.argsort(-utility, axis=1)
    user = np.repeat(np.arange(users), counts)
    item = np.concatenate([line[:count] for line, count in zip(ranked, counts, strict=True)])
    return leave_one_out(user, item, users=users, items=items, seed=seed)
