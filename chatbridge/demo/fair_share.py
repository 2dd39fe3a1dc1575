"""Who uses how much of a limited resource, and whose share is freed when another user needs some of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

OWNER = "chatbridge.owner"
"""Key of a request's scope that holds its `Owner`."""


class Owner(NamedTuple):
    """A user: a browser, identified by a cookie. All clients of a network that send no cookie are one user, so that
    nothing is gained by inventing session names.

    Attributes:
        network: the client's address (`chatbridge.web.connections.network_of`). cookie: drawn at random, "" for none.
    """

    network: str
    cookie: str


NO_OWNER = Owner("", "")
"""Of what belongs to no known user."""


@dataclass(frozen=True)
class Allocation:
    """Something that uses the resource.

    Attributes:
        owner: whose it is. size: its use. rank: of one owner's allocations, the smallest is freed first.
        free: frees it; None while it is in use.
    """

    owner: Owner
    size: int
    rank: tuple[float, ...]
    free: Callable[[], None] | None


def choose_eviction(allocations: Sequence[Allocation], asker: Owner, size: int) -> Allocation | None:
    """What to free so that `asker` gets `size`: an idle allocation of the network with the largest share, of the owner
    in it with the largest share. The request counts as the asker's: its own allocations are freed before those of
    owners with smaller shares. None where nothing may be freed."""
    networks, owners = Counter({asker.network: size}), Counter({asker: size})
    for one in allocations:
        networks[one.owner.network] += one.size
        owners[one.owner] += one.size

    def may_be_freed(one: Allocation) -> bool:
        if one.owner.network != asker.network:
            return networks[one.owner.network] >= networks[asker.network]
        return owners[one.owner] >= owners[asker]

    def order(one: Allocation) -> tuple:
        return -networks[one.owner.network], -owners[one.owner], one.owner != asker, one.rank

    return min((one for one in allocations if one.free is not None and may_be_freed(one)), key=order, default=None)
