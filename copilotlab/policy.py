"""Every choice of the protocol, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The choices of the protocol; ``Policy()`` is ours, ``Policy.seed()`` the written design to the letter.

    Each switch is a hole in the written design and its remedy, and can be set alone. Durations are seconds.

    batch_timeout      how long a lease lasts at most (300: the five minutes of the written design)
    sync_interval      between two scheduled syncs (3600)
    ordered            a record replaces only an older revision, a deletion leaves a tombstone, and the manifest at the
                       end of a rebuild removes only what is older than itself; off: the last writer wins
    pick_up_deferred   a batch also takes what is saved while it runs, and a node that left a change to one sees to it
                       that one did it; off: such a change is lost until the next sync
    rebuild_at_reconnect  a node that comes back from an outage starts the rebuild; off: the next edit does
    reuse_vectors      a batch embeds only text that this node holds no vector of; off: it embeds everything
    redis_timeout      the longest that one call waits for Redis (0.25)
    probe_interval     between two looks at Redis, connected or away (0.5)
    chunk_size         charts in one step of a batch, and in one of its events (64)

    Raises ValueError for a value that makes no sense, naming the field.
    """

    batch_timeout: float = 300.0
    sync_interval: float = 3600.0
    ordered: bool = True
    pick_up_deferred: bool = True
    rebuild_at_reconnect: bool = True
    reuse_vectors: bool = True
    redis_timeout: float = 0.25
    probe_interval: float = 0.5
    chunk_size: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                if not isinstance(value, bool):
                    raise ValueError(f"Policy({field.name}={value!r}): expected True or False")
            elif field.type == "float":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"Policy({field.name}={value!r}): expected seconds as a number")
                if not (isfinite(value) and value > 0):
                    raise ValueError(f"Policy({field.name}={value!r}): expected seconds above 0, and finite")
            elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
                raise ValueError(f"Policy({field.name}={value!r}): expected a whole number from 1 to 4096")

    @classmethod
    def seed(cls, **changes: object) -> Policy:
        """The written design to the letter, its faults included; ``changes`` switch fields on top of it.

        Source: the seed document, "Chart Update Workflow" and its three services.
        """
        written = dict.fromkeys(("ordered", "pick_up_deferred", "rebuild_at_reconnect", "reuse_vectors"), False)
        return cls(**{**written, **changes})  # type: ignore[arg-type]

    def __repr__(self) -> str:
        default = {field.name: field.default for field in fields(self)}
        differs = ", ".join(
            f"{name}={getattr(self, name)!r}" for name in default if getattr(self, name) != default[name]
        )
        return f"Policy({differs})"
