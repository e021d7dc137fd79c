"""What each Lua script promises, on the simulated server and on a real one alike: so the simulation tells the truth."""

from __future__ import annotations

import pytest

from copilotlab import LocalRedis
from copilotlab.clock import ManualClock
from copilotlab.lab.simulated_redis import SimulatedRedis
from copilotlab.protocol.carrier import RedisCarrier

LEASE, OWED, EPOCH, GENERATION, CLAIM, CHUNK = "lease", "owed", "epoch", "generation", "claim", "chunk"
ALIVE = "alive:"
A, B = "a" * 16, "b" * 16  # sessions
SESSIONS = {"a": A, "b": B}
MODEL, OTHER_MODEL = "3125d9fad9123878", "aaaaaaaaaaaaaaaa"
MINUTE = 60_000
A_LEASE = f"1 {MODEL} {A} a"


@pytest.fixture(scope="module")
def server():
    with LocalRedis() as server:
        yield server


@pytest.fixture(params=["simulated", "real"])
def redis(request):
    """A carrier to an empty server, and another that listens to the channel "news".

    life: how many milliseconds a key will still be there; None for one that has no end.
    """
    if request.param == "simulated":
        simulated = SimulatedRedis(ManualClock())
        carrier = simulated.carrier()
        carrier.life = lambda key: None if (ends := simulated._keys[key][1]) is None else 1_000 * ends
    else:
        server = request.getfixturevalue("server")
        client = server.client()
        client.flushall()
        carrier = RedisCarrier(server.url, timeout=5.0)
        carrier.life = lambda key: None if (left := client.pttl(key)) == -1 else left
    carrier.listener = carrier.another()
    carrier.listener.subscribe(["news"])
    yield carrier
    carrier.listener.close()
    carrier.close()


def heard(redis):
    """What was published, in order."""
    redis.publish("news", b"that is all")  # it comes behind what was said before, however late
    found = []
    while (message := redis.listener.receive(5.0)).payload != b"that is all":
        found.append(message.payload)
    return found


def value(redis, key):
    return redis.get(key)[0]


def take(redis, node="a", known=0, model=MODEL, if_owed=0, session=None):
    session = session or SESSIONS[node]
    keys = [LEASE, EPOCH, OWED, ALIVE + session]
    return redis.run("take_lease", keys, [node, model, MINUTE, known, if_owed, session, MINUTE, ALIVE])


def keep(redis, lease=A_LEASE, ttl=MINUTE, chunk=b"", channel="", payload=b""):
    keys = [LEASE, CHUNK, ALIVE + lease.split(" ")[2]]
    return redis.run("keep_lease", keys, [lease, ttl, chunk, MINUTE, channel, payload, MINUTE])


def release(redis, lease=A_LEASE, whole=True):
    return redis.run("release_lease", [LEASE, OWED], [lease, "1" if whole else "0"])


def beat(redis, candidate="g1", known=0, channel="", payload=b"", session=A, fenced=1, report=("", b"")):
    keys = [GENERATION, LEASE, OWED, EPOCH, ALIVE + session]
    return redis.run("beat", keys, [candidate, known, channel, payload, MINUTE, ALIVE, fenced, *report])


def disclaim(redis, node):
    return redis.run("disclaim", [CLAIM], [SESSIONS[node]])


def admit(redis, node="a", lease="", revisions=(1,), claims=(CLAIM,), model=MODEL, fenced=1):
    keys = [LEASE, OWED, ALIVE + SESSIONS[node], *claims]
    return redis.run("admit", keys, [SESSIONS[node], model, lease, MINUTE, MINUTE, ALIVE, fenced, *revisions])


def announce(redis, node="a", revision=1, payload=b"x"):
    return redis.run("announce", [CLAIM], ["news", payload, MINUTE, f"{SESSIONS[node]}={revision}"])


def leave(redis, node):
    """Its session shows no sign of life any more."""
    redis.delete(ALIVE + SESSIONS[node])


# --- take_lease -------------------------------------------------------------------------------------------------


def test_the_lease_is_taken_once_under_growing_epochs(redis):
    assert take(redis, "a") == [1, 0, b""]
    assert value(redis, LEASE) == A_LEASE.encode()
    assert take(redis, "b") == [0, 0, b""]
    release(redis)
    assert take(redis, "b") == [2, 0, b""]
    assert value(redis, EPOCH) == b"2"


def test_an_epoch_is_above_what_the_caller_knows(redis):
    assert take(redis, known=41) == [42, 0, b""]
    redis.set(EPOCH, b"no number")
    release(redis, f"42 {MODEL} {A} a")
    assert take(redis, known=7) == [8, 0, b""]


def test_a_large_epoch_is_a_whole_number(redis):
    assert take(redis, known=10**15) == [10**15 + 1, 0, b""]
    assert value(redis, LEASE) == f"{10**15 + 1} {MODEL} {A} a".encode()


def test_a_lease_notes_that_a_rebuild_is_owed_unless_one_was(redis):
    take(redis)
    assert value(redis, OWED) == A_LEASE.encode()
    redis.delete(LEASE)
    assert take(redis) == [2, 1, b""]
    assert value(redis, OWED) == A_LEASE.encode(), "it is owed for the holder that died"


def test_a_lease_for_what_is_owed_is_taken_only_where_it_is(redis):
    assert take(redis, if_owed=1) == [0, 0, b""]
    assert [value(redis, key) for key in (LEASE, EPOCH, OWED)] == [None] * 3
    redis.set(OWED, b"true")
    assert take(redis, if_owed=1) == [1, 1, b""]
    assert take(redis, if_owed=1) == [0, 0, b""]


def test_the_lease_of_a_holder_that_is_gone_is_taken_over_and_the_rebuild_is_owed(redis):
    take(redis, "a")
    assert take(redis, "b") == [0, 0, b""]
    leave(redis, "a")

    assert take(redis, "b") == [2, 1, b"a"]
    assert value(redis, LEASE) == f"2 {MODEL} {B} b".encode()
    assert keep(redis) == -1, "it is fenced, should it come back"


def test_a_node_takes_over_the_lease_of_its_own_earlier_life_at_once(redis):
    take(redis, "a")
    assert take(redis, "a", session="c" * 16, model=OTHER_MODEL) == [0, 0, b""], "its other model's is another matter"
    assert take(redis, "a", session="c" * 16) == [2, 1, b"a"]


@pytest.mark.parametrize("nonsense", [b"x", b"inf", b"1 zz zz a", b"\xff", b"7 "])
def test_what_is_no_lease_is_nobodys(redis, nonsense):
    redis.set(LEASE, nonsense)
    assert beat(redis)[1] == b""
    redis.delete(OWED)
    assert admit(redis) == [b"", 0, 1]
    assert take(redis) == [1, 0, b""]


@pytest.mark.parametrize("nonsense", [b"inf", b"nan", b"-1", b"1e400", b"0x10", b"9" * 40, b"", b"\xff"])
def test_what_is_no_count_of_epochs_fences_nothing(redis, nonsense):
    redis.set(EPOCH, nonsense)
    assert beat(redis, known=6)[3] == b"6"
    redis.set(EPOCH, nonsense)
    assert take(redis, known=6)[0] == 7
    assert value(redis, EPOCH) == b"7"


# --- keep_lease -------------------------------------------------------------------------------------------------


def test_the_holder_renews_stores_and_says_in_one_step(redis):
    take(redis)
    assert keep(redis, chunk=b"\x00\xff chunk", channel="news", payload=b"\x00\xff news") == 1
    assert value(redis, CHUNK) == b"\x00\xff chunk"
    assert heard(redis) == [b"\x00\xff news"]
    assert keep(redis) == 0


def test_whoever_is_not_the_holder_stores_and_says_nothing(redis):
    assert keep(redis, chunk=b"chunk", channel="news", payload=b"news") == -1
    take(redis, "b")
    assert keep(redis, chunk=b"chunk", channel="news", payload=b"news") == -1
    assert value(redis, CHUNK) is None
    assert heard(redis) == []


# --- release_lease ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_the_holder_gives_the_lease_back_and_what_was_owed_for_it(redis, whole):
    take(redis)
    assert release(redis, whole=whole) == 1
    assert redis.get(LEASE, OWED) == [None, None]


def test_only_a_whole_rebuild_strikes_what_was_owed_before(redis):
    redis.set(OWED, b"true")
    assert take(redis) == [1, 1, b""]
    release(redis, whole=False)
    assert value(redis, OWED) == b"true"
    take(redis)
    release(redis, f"2 {MODEL} {A} a", whole=True)
    assert value(redis, OWED) is None


def test_nobody_gives_back_the_lease_of_another(redis):
    take(redis, "b")
    assert release(redis) == 0
    assert value(redis, LEASE) == f"1 {MODEL} {B} b".encode()
    assert value(redis, OWED) is not None
    redis.delete(LEASE)
    assert release(redis) == 0
    assert value(redis, OWED) is not None


# --- beat -------------------------------------------------------------------------------------------------------


def test_whoever_finds_no_generation_begins_one_and_a_rebuild_is_owed(redis):
    assert beat(redis, "g1") == [b"g1", b"", 1, b"0"]
    redis.delete(OWED)
    assert beat(redis, "g2") == [b"g1", b"", 0, b"0"]


def test_a_policy_without_generations_owes_nothing(redis):
    assert beat(redis, "") == [b"", b"", 0, b"0"]
    assert redis.get(GENERATION, OWED) == [None, None]


def test_a_beat_tells_the_lease_and_keeps_the_highest_epoch(redis):
    take(redis, known=4)
    assert beat(redis, known=2) == [b"g1", f"5 {MODEL} {A} a".encode(), 1, b"5"]
    assert beat(redis, known=9)[3] == b"9"
    assert value(redis, EPOCH) == b"9"


def test_a_beat_is_heard(redis):
    beat(redis, channel="news", payload=b"\x00 I live", report=("news", b"\x01 well"))
    assert heard(redis) == [b"\x00 I live", b"\x01 well"]


# --- admit and announce -----------------------------------------------------------------------------------------


def test_a_change_is_granted_to_the_first_that_asks_and_to_it_again(redis):
    assert admit(redis, "a") == [b"", 0, 1]
    assert admit(redis, "b") == [b"", 0, 0]
    assert admit(redis, "a") == [b"", 0, 1]
    assert value(redis, CLAIM) == A.encode()


def test_only_who_has_a_claim_gives_it_back(redis):
    admit(redis, "a")
    assert disclaim(redis, "b") == 0
    assert value(redis, CLAIM) == A.encode()
    assert disclaim(redis, "a") == 1
    assert value(redis, CLAIM) is None
    announce(redis, revision=5, payload=b"sent")
    assert disclaim(redis, "a") == 0
    assert value(redis, CLAIM) == f"{A}=5".encode()


def test_each_of_several_changes_is_granted_for_itself(redis):
    admit(redis, "b", claims=["two"])
    assert admit(redis, "a", revisions=(1, 1, 1), claims=["one", "two", "three"]) == [b"", 0, 1, 0, 1]


def test_nothing_is_granted_during_a_batch_or_while_a_rebuild_is_owed(redis):
    redis.set(OWED, b"true")
    assert admit(redis) == [b"", 1, 0]
    take(redis, "b")
    assert admit(redis) == [f"1 {MODEL} {B} b".encode(), 1, 0]
    assert value(redis, CLAIM) is None


def test_a_batch_of_another_model_concerns_nobody(redis):
    take(redis, "b", model=OTHER_MODEL)
    assert admit(redis) == [f"1 {OTHER_MODEL} {B} b".encode(), 1, 1]


def test_a_batch_is_granted_what_nobody_else_makes_as_long_as_its_lease_stands(redis):
    admit(redis, "b", claims=["two"])
    take(redis)
    assert admit(redis, lease=A_LEASE, revisions=(1, 1), claims=["one", "two"])[2:] == [1, 0]
    redis.delete(LEASE, OWED)
    assert admit(redis, lease=A_LEASE, revisions=(1, 1), claims=["one", "three"])[2:] == [0, 0]


def test_what_was_sent_is_granted_again_only_at_a_later_revision(redis):
    admit(redis, "a")
    assert announce(redis, revision=5, payload=b"\x00 sent") == 1
    assert heard(redis) == [b"\x00 sent"]
    assert value(redis, CLAIM) == f"{A}=5".encode()
    assert admit(redis, "b", revisions=(5,))[2] == 0
    assert admit(redis, "a", revisions=(5,))[2] == 0
    assert admit(redis, "b", revisions=(6,))[2] == 1


def test_a_claim_of_a_session_that_is_gone_is_nobodys(redis):
    admit(redis, "a")
    leave(redis, "a")
    assert admit(redis, "b")[2] == 1
    assert value(redis, CLAIM) == B.encode()


def test_what_was_sent_by_who_is_gone_is_made_again_by_a_batch_alone(redis):
    """Whoever is told of a change late has heard it too; a batch has asked everybody, and nobody had it."""
    announce(redis, "b", revision=5)
    beat(redis, session=B)
    redis.delete(OWED)
    take(redis, "a")
    assert admit(redis, "a", lease=A_LEASE, revisions=(5,))[2] == 0
    leave(redis, "b")
    release(redis)
    assert admit(redis, "a", revisions=(5,))[2] == 0
    take(redis, "a")
    assert admit(redis, "a", lease=f"2 {MODEL} {A} a", revisions=(5,))[2] == 1


# --- and the commands beside them -------------------------------------------------------------------------------


def test_the_commands_of_a_carrier(redis):
    assert redis.set("k", b"\x00\xff", ttl=60.0, if_absent=True) is True
    assert redis.set("k", b"other", if_absent=True) is False
    assert redis.get("k", "absent") == [b"\x00\xff", None]
    assert redis.read("k", 1) == b"\x00"
    assert redis.read("absent", 10) == b""
    assert redis.delete("k", "absent") == 1
    assert redis.publish("news", b"n") == 1
    assert redis.publish("nobody listens", b"n") == 0
    assert heard(redis) == [b"n"]


def test_what_may_not_stay_has_an_end(redis):
    take(redis)
    admit(redis, lease=A_LEASE)
    keep(redis, chunk=b"chunk")
    beat(redis)

    ends = {key for key in (LEASE, CLAIM, CHUNK, OWED, EPOCH, GENERATION, ALIVE + A) if redis.life(key) is not None}
    assert ends == {LEASE, CLAIM, CHUNK, ALIVE + A}, "what is owed, the epoch and the generation have none"
    assert all(MINUTE / 2 < redis.life(key) <= MINUTE for key in ends)
    announce(redis)
    assert MINUTE / 2 < redis.life(CLAIM) <= MINUTE


def test_a_lease_is_renewed_only_if_that_is_asked(redis):
    take(redis)
    keep(redis, ttl=10 * MINUTE)
    assert redis.life(LEASE) > 9 * MINUTE
    keep(redis, ttl=0)
    assert redis.life(LEASE) > 9 * MINUTE
