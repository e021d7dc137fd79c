"""Every choice of the protocol, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Literal, get_args

from copilotlab.reasons import short

Precision = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The choices of the protocol; ``Policy()`` is ours, ``Policy.seed()`` the written design to the letter.

    Each switch is a hole in the written design and its remedy, and can be set alone. Durations are seconds.

    batch_timeout
        how long a lease lasts at most, from when it was taken or renewed (300: the five minutes of the written design);
        with `fenced` only a holder that beats and gets nowhere has it for so long
    sync_interval
        between two scheduled syncs (3600)
    ordered
        a record replaces only an older revision, a deletion leaves a tombstone, and the manifest at the end of a
        rebuild removes only what is older than itself; off: the last writer wins
    pick_up_deferred
        a batch also takes what is saved while it runs, and a node that left a change to a batch checks that it came;
        off: such a change is lost until the next sync
    rebuild_at_reconnect
        after an outage a node starts the rebuild by itself; off: the next edit does
    reuse_vectors
        a batch embeds only text that this node holds no vector of; off: it embeds everything
    renew_lease
        the holder renews its lease with every chunk; off: a long batch outlives its lease
    fenced
        a lease has an epoch: a holder that lost it stops, what it still says is dropped, and it deletes no lease but
        its own; so a holder without a sign of life for three heartbeats can lose it; off: only time ends a lease, and
        its holder goes on all the same and deletes the next one's
    tell_blips
        the server's generation tells a blink (this node catches up) from a lost memory (one rebuild for all); off:
        every node that was cut off marks the whole cluster for a rebuild
    reconcile
        nodes notice what they missed (sequence numbers, heartbeats, the repository's revision) and pull just that from
        a peer; bulk is put where it is read at the reader's pace; off: at most once
    claim
        a node claims a change before it embeds it, so that a change told to three nodes is embedded once; off: each of
        them embeds it
    redis_timeout
        the longest that one call waits for Redis (0.25)
    probe_interval
        between two looks at Redis, connected or away (0.5); longer while it stays away or refuses
    heartbeat_interval
        between two heartbeats of a node (1.0)
    claim_timeout
        how long a claim is respected at most (10.0)
    adopt_after
        a change that is in the repository, and that no node has sent for so long, is embedded by any node: the one that
        saved it died, or is cut off, or is no node at all (30.0)
    bulk_ttl
        how long a page that was put into Redis for others to fetch stays there (120.0)
    chunk_size
        charts in one step of a batch, and in one of its events (64)
    vectors
        "float32", or "float16": each node rounds what it embeds, and half the bytes travel; give all nodes the same,
        since rounded vectors count as those of another model ("float32")

    Raises ValueError for a value that makes no sense, naming the field.
    """

    batch_timeout: float = 300.0
    sync_interval: float = 3600.0
    ordered: bool = True
    pick_up_deferred: bool = True
    rebuild_at_reconnect: bool = True
    reuse_vectors: bool = True
    renew_lease: bool = True
    fenced: bool = True
    tell_blips: bool = True
    reconcile: bool = True
    claim: bool = True
    redis_timeout: float = 0.25
    probe_interval: float = 0.5
    heartbeat_interval: float = 1.0
    claim_timeout: float = 10.0
    adopt_after: float = 30.0
    bulk_ttl: float = 120.0
    chunk_size: int = 64
    vectors: Precision = "float32"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                if not isinstance(value, bool):
                    raise ValueError(f"Policy({field.name}={short(value)}): expected True or False")
            elif field.type == "float":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"Policy({field.name}={short(value)}): expected seconds as a number")
                if not (isfinite(value) and value > 0):
                    raise ValueError(f"Policy({field.name}={short(value)}): expected seconds above 0, and finite")
            elif field.type == "Precision":
                if value not in get_args(Precision):
                    raise ValueError(
                        f"Policy({field.name}={short(value)}): expected one of {', '.join(get_args(Precision))}"
                    )
            elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
                raise ValueError(f"Policy({field.name}={short(value)}): expected a whole number from 1 to 4096")

    @classmethod
    def seed(cls, **changes: object) -> Policy:
        """Make the written design to the letter, its faults included; ``changes`` are fields set on top of it.

        Source: the seed document, "Chart Update Workflow" and its three services.
        """
        written = dict.fromkeys(cls.remedies(), False)
        return cls(**{**written, **changes})  # type: ignore[arg-type]

    @classmethod
    def remedies(cls) -> tuple[str, ...]:
        """Name the switches: each is one hole of the written design and its remedy."""
        return tuple(field.name for field in fields(cls) if field.type == "bool")

    @property
    def rejoin_grace(self) -> float:
        """Seconds that nodes may take to come back after an outage; by then they have handed over what they embedded.

        At most half of `batch_timeout`: a lease has to outlast the wait for them.
        """
        back_by = 2 * (self.probe_interval + self.redis_timeout) + self.heartbeat_interval
        return min(back_by, self.batch_timeout / 2)

    def __repr__(self) -> str:
        default = {field.name: field.default for field in fields(self)}
        differs = ", ".join(
            f"{name}={getattr(self, name)!r}" for name in default if getattr(self, name) != default[name]
        )
        return f"Policy({differs})"


def check_policy(policy: object) -> None:
    """Raise TypeError for what is neither a `Policy` nor None."""
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"policy={short(policy)}: expected a Policy, as in Policy(batch_timeout=60) or Policy.seed()")
