"""Who makes room for whom, where there is room for so many things only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

OWNER = "chatbridge.owner"
"""Where a request's scope says whose it is."""


class Owner(NamedTuple):
    """A visitor: browsers are told apart by a cookie. Who sends none is one visitor with all of the same network that
    send none: names that somebody makes up must not be worth anything.

    Attributes:
        network: the client's address (`chatbridge.web.connections.network_of`). cookie: drawn at random, "" for none.
    """

    network: str
    cookie: str


NOBODY = Owner("", "")
"""Of whom nothing is known."""


@dataclass(frozen=True)
class Held:
    """Something that takes room.

    Attributes:
        owner: whose it is. size: of the room. rank: of the same visitor's things, the smallest goes first.
        drop: gives the room back; None for what cannot be taken away now.
    """

    owner: Owner
    size: int
    rank: tuple[float, ...]
    drop: Callable[[], None] | None


def first_to_go(held: Sequence[Held], asker: Owner, size: int) -> Held | None:
    """What goes first so that somebody gets room of a size: of the network that holds most, of the visitor in it who
    holds most, what is idle. What is asked for counts as held: a visitor's own things go before those of anybody who
    holds less. None where nothing may be taken away."""
    networks, owners = Counter({asker.network: size}), Counter({asker: size})
    for one in held:
        networks[one.owner.network] += one.size
        owners[one.owner] += one.size

    def may_go(one: Held) -> bool:
        if one.owner.network != asker.network:
            return networks[one.owner.network] >= networks[asker.network]
        return owners[one.owner] >= owners[asker]

    def order(one: Held) -> tuple:
        return -networks[one.owner.network], -owners[one.owner], one.owner != asker, one.rank

    return min((one for one in held if one.drop is not None and may_go(one)), key=order, default=None)
