"""The operations of random runs. Ids are few, so that operations collide; the first alternatives are the simplest."""

from typing import TypeVar

from hypothesis import strategies as st

from tests.integration.properties.messages import Announce, Redelivered, Register, ReprAsCall
from tests.integration.properties.operations import (
    Change,
    Create,
    Delete,
    DeleteAgent,
    Fail,
    Operation,
    Promote,
    RollBack,
    owner,
)
from tests.integration.properties.stage import PUBLISHED
from tests.support.reference_model.rollback_walk import LEGACY

S = TypeVar("S", bound=ReprAsCall)

# Repeated entries are drawn more often: most operations concern `a`. `old a` is the earlier agent of that name.
AGENTS = st.sampled_from(["a", "a", "a", "b"])
ANY_AGENT = st.sampled_from(["a", "a", "a", "a", "a", "b", "old a"])
VERSIONS = st.sampled_from(["a-v1", "a-v2", "a-v3", "a-v1", "a-v2", "a-v3", "a-v4", "b-v1", "b-v2", "old a-v1"])
THROUGH = st.sampled_from([None, None, None, None, None, None, None, "a", "b", "old a"])
IF_GENERATION = st.sampled_from([None, None, None, None, "current", "current", "outdated"])
LOCKED = st.sampled_from([False, False, True])
IMAGES = st.sampled_from(["image:1", "image:2"])
MOMENTS = st.sampled_from(["now", "now", "1 step ago", "3 steps ago", *PUBLISHED])
MOST_AT_ONCE = 6


@st.composite
def instances(draw: st.DrawFn, kind: type[S], /, **parts: st.SearchStrategy[object]) -> S:
    """A strategy for operations of this class."""
    return kind(**{name: draw(part) for name, part in parts.items()})


@st.composite
def _by_its_version(draw: st.DrawFn) -> Announce:
    version = draw(VERSIONS)
    return draw(_announcing(agent=st.just(owner(version)), version=st.just(version)))


def _announcing(**parts: st.SearchStrategy[object]) -> st.SearchStrategy[Announce]:
    everything = {
        "published": MOMENTS,
        "way": st.sampled_from(["queue", "queue", "queue", "HTTP"]),
        "url": st.sampled_from(["http://one", "http://two"]),
        "image": st.sampled_from([None, None, "image:1", "image:2"]),
        "description": st.sampled_from([None, "Old.", "New."]),
        "rpc_path": st.sampled_from([None, "/rpc"]),
        "fact": st.sampled_from([None, "this", "that"]),
    }
    return instances(Announce, **{**everything, **parts})


PODS = _by_its_version()
LEGACY_PODS = _announcing(agent=AGENTS)
BUILDS = _announcing(
    agent=AGENTS, way=st.just("build"), published=st.just("now"), url=st.just("http://one"), rpc_path=st.none()
)
WRONG = _announcing(agent=AGENTS, version=VERSIONS, agent_id=st.sampled_from([None, "a", "b", "old a"]))
REDELIVERED = instances(Redelivered, back=st.integers(0, 5))


def _in_one_batch(*messages: st.SearchStrategy[Announce | Redelivered], most: int = 1) -> st.SearchStrategy[Register]:
    return instances(Register, batch=st.lists(st.one_of(*messages), min_size=1, max_size=most))


A_VERSION_ANNOUNCES_ITSELF = _in_one_batch(PODS)
A_LEGACY_POD_ANNOUNCES_ITSELF = _in_one_batch(LEGACY_PODS)
A_BUILD_IS_ANNOUNCED = _in_one_batch(BUILDS)
A_WRONG_MESSAGE_ARRIVES = _in_one_batch(WRONG)
A_MESSAGE_IS_REDELIVERED = _in_one_batch(REDELIVERED)
A_BATCH_ARRIVES = _in_one_batch(PODS, PODS, LEGACY_PODS, WRONG, REDELIVERED, most=4)

PROMOTE = instances(
    Promote,
    version=VERSIONS,
    through=THROUGH,
    if_generation=IF_GENERATION,
    locked=LOCKED,
)
ROLL_BACK = instances(RollBack, agent=ANY_AGENT, if_generation=IF_GENERATION, locked=LOCKED)
ROLL_BACK_TO = instances(
    RollBack, agent=ANY_AGENT, to=st.just(LEGACY) | VERSIONS, if_generation=IF_GENERATION, locked=LOCKED
)
CREATE = instances(Create, version=VERSIONS, image=IMAGES, through=THROUGH)
DELETE = instances(Delete, version=VERSIONS, through=THROUGH)
DELETE_AGENT = instances(DeleteAgent, agent=ANY_AGENT)
# Agents are rarely deleted, since a deletion ends the history of the agent.
DELETE_SOMETHING = st.one_of(DELETE, DELETE, DELETE_AGENT)
CHANGE = instances(
    Change,
    agent=ANY_AGENT,
    auto_promote=st.sampled_from([None, "first", "always", "never"]),
    paused=st.sampled_from([None, False, True]),
)
FAIL = instances(Fail, version=VERSIONS)

TWO_VERSIONS = Register([Announce("a", "a-v1"), Announce("a", "a-v2")])
LEGACY_POD = Register([Announce("a")])
BUILD = Register([Announce("a", way="build")])
BEGINNINGS = st.sampled_from(
    [
        [],
        [TWO_VERSIONS],
        [TWO_VERSIONS, Promote("a-v2")],
        [TWO_VERSIONS, Promote("a-v2"), Register([Announce("b", "b-v1")])],
        [LEGACY_POD, TWO_VERSIONS],
        [LEGACY_POD, TWO_VERSIONS, Promote("a-v1")],
        [BUILD, Change("a", auto_promote="always"), TWO_VERSIONS],
        [BUILD, Change("a", auto_promote="always"), TWO_VERSIONS, Promote("a-v1")],
        [BUILD, Change("a", auto_promote="never"), TWO_VERSIONS],
    ]
)

ANYTHING = st.one_of(
    A_VERSION_ANNOUNCES_ITSELF,
    A_VERSION_ANNOUNCES_ITSELF,
    A_LEGACY_POD_ANNOUNCES_ITSELF,
    A_MESSAGE_IS_REDELIVERED,
    A_WRONG_MESSAGE_ARRIVES,
    A_BATCH_ARRIVES,
    A_BATCH_ARRIVES,
    PROMOTE,
    PROMOTE,
    ROLL_BACK,
    ROLL_BACK_TO,
    CREATE,
    DELETE,
    DELETE_AGENT,
    CHANGE,
)


@st.composite
def _two_claim_one_id(draw: st.DrawFn) -> list[Operation]:
    version = draw(VERSIONS)
    other = "b" if owner(version) == "a" else "a"
    return [
        Register([Announce(owner(version), version)]),
        draw(st.sampled_from([Register([Announce(other, version)]), Create(version, through=other)])),
        *draw(st.lists(ANYTHING, max_size=2)),
    ]


SEVERAL = st.lists(ANYTHING, min_size=2, max_size=MOST_AT_ONCE)
SEVERAL_AT_ONCE = st.one_of(SEVERAL, SEVERAL, SEVERAL, SEVERAL, _two_claim_one_id())
TURNS = st.lists(st.integers(0, MOST_AT_ONCE - 1), max_size=30)
IN_TURNS_OR_NOT = st.one_of(TURNS, TURNS, TURNS, st.none())
