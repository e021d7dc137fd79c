"""What a watcher of the cluster may ask of a node, and what the node does of it, once and one at a time.

An order comes in the node's inbox, signed with the key that is in the repository, for one session, with an id of its
own: one that arrives again, played back or sent twice, is answered as before and not done again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Protocol
from weakref import ReferenceType

from copilotlab.embedding import Embedder, load_embedder
from copilotlab.lifetime import Background
from copilotlab.monitoring.happenings import Ordered
from copilotlab.protocol import events
from copilotlab.protocol.batch import BatchResult
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.replica import Replica
from copilotlab.toggle_words import read_wish, written_toggles

MOST_REMEMBERED = 1_000
MOST_SAID = 500  # characters of an answer
LOOK = "tell_toggles"  # what changes nothing: it is neither remembered nor told


class Obedient(Protocol):
    """What orders are done by: a node."""

    @property
    def embedder(self) -> Embedder: ...

    def rebuild(self) -> BatchResult: ...

    def sync(self) -> BatchResult: ...

    def switch_model(self, embedder: Embedder) -> None: ...

    def stop(self) -> None: ...

    def toggles(self) -> list[dict[str, object]]: ...

    @property
    def configure(self) -> Callable[..., int]: ...


class Orders:
    """The orders that one node has taken. Holds no node, so that one can become garbage.

    Safe for threads; `take` is quick, what takes long is done on a thread of its own.
    """

    def __init__(self, node: ReferenceType[Obedient]) -> None:
        self._node = node
        self.stop: Callable[[], object] | None = None
        """What "stop" does; None stops the node. A service ends with its process."""
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, events.OrderAnswer] = OrderedDict()
        self._under_way = ""

    def take(self, replica: Replica, source: str, order: events.Order) -> None:
        """Begin what is asked for, do it where that is quick, or refuse it, and answer."""
        if order.action == LOOK:
            _say(replica, source, self._judged(replica, order))
            return
        with self._lock:
            answer = self._answers.get(order.order)
            if (known := answer is not None) is False:
                answer = self._judged(replica, order)
                if answer.outcome == "begun":
                    self._under_way = order.action
                self._remember(answer)
        assert answer is not None
        if not known:
            replica.context.tell(Ordered(source, order.action[:20], answer.outcome, answer.said))
        _say(replica, source, answer)
        if not known and answer.outcome == "begun":
            name = f"copilotlab-{replica.context.node_id}-ordered-{order.action}"
            Background(partial(self._do, replica, source, order), name).start()

    def _judged(self, replica: Replica, order: events.Order) -> events.OrderAnswer:
        refused = partial(events.OrderAnswer, order.order, "refused")
        if order.session != replica.coordinator.link.session:
            return refused("this node was started anew since")
        node = self._node()
        if node is None or order.action not in ACTIONS:
            return refused(f"it does not know {order.action!r}; it knows {', '.join(ACTIONS)}")
        if order.action in _QUICK:  # also while something else is under way
            try:
                return events.OrderAnswer(order.order, "done", _QUICK[order.action](node, order)[:MOST_SAID])
            except (TypeError, ValueError) as error:
                return refused(str(error)[:MOST_SAID])
        if self._under_way and order.action != "stop":
            return refused(f"{self._under_way} is under way")
        return events.OrderAnswer(order.order, "begun")

    def _do(self, replica: Replica, source: str, order: events.Order) -> None:
        node = self._node()
        if node is None:
            return
        try:
            said = (
                str((self.stop or node.stop)() or "") if order.action == "stop" else _ACTIONS[order.action](node, order)
            )
            answer = events.OrderAnswer(order.order, "done", said[:MOST_SAID])
        except Exception as error:  # noqa: BLE001 - whatever it is, who has asked is told
            answer = events.OrderAnswer(order.order, "failed", f"{type(error).__name__}: {error}"[:MOST_SAID])
        with self._lock:
            self._under_way = ""
            self._remember(answer)
        replica.context.tell(Ordered(source, order.action, answer.outcome, answer.said))
        _say(replica, source, answer)

    def _remember(self, answer: events.OrderAnswer) -> None:
        self._answers[answer.order] = answer
        if len(self._answers) > MOST_REMEMBERED:
            self._answers.popitem(last=False)

    def __repr__(self) -> str:
        return f"Orders({self._under_way or 'nothing'} under way, {len(self._answers)} remembered)"


def _say(replica: Replica, source: str, answer: events.OrderAnswer) -> None:
    with suppress(CarrierAway):  # who has asked sees it by the node's reports, and asks again under the same id
        replica.coordinator.tell(source, answer)


def _switch(node: Obedient, order: events.Order) -> str:
    node.switch_model(load_embedder(order.argument))
    return f"answers with {node.embedder.fingerprint}"


def _look(node: Obedient, order: events.Order) -> str:
    return written_toggles(node.toggles(), int(order.argument or "0"), MOST_SAID)


def _configure(node: Obedient, order: events.Order) -> str:
    wanted = read_wish(order.argument)
    version = node.configure(everywhere=wanted.everywhere, by=wanted.by, **wanted.set)
    said = ", ".join(f"{name}={value!r}" for name, value in wanted.set.items())
    return (
        f"{said} {'everywhere' if wanted.everywhere else 'here'}, version {version}, by {wanted.by or 'nobody named'}"
    )


_ACTIONS: Mapping[str, Callable[[Obedient, events.Order], str]] = {
    "rebuild": lambda node, _: node.rebuild().outcome,
    "sync": lambda node, _: node.sync().outcome,
    "switch_model": _switch,
    "stop": lambda node, _: "",
}
_QUICK: Mapping[str, Callable[[Obedient, events.Order], str]] = {LOOK: _look, "configure": _configure}
ACTIONS = (*_ACTIONS, *_QUICK)
"""What may be asked for."""
