"""Which operations a story is made of. Ids are few, so that operations meet; what comes first is the simplest."""

from typing import TypeVar

from hypothesis import strategies as st

from tests.integration.properties.messages import Again, Announce, Register, Spoken
from tests.integration.properties.operations import Change, Create, Delete, DeleteAgent, Fail, Promote, RollBack, owner
from tests.integration.properties.stage import PUBLISHED
from tests.walk import LEGACY

S = TypeVar("S", bound=Spoken)

AGENTS = st.sampled_from(["a", "b"])
# `old a` is the agent that had the name before.
ANY_AGENT = st.sampled_from(["a", "a", "a", "b", "b", "old a"])
DEPLOYMENTS = st.sampled_from(["a-v1", "a-v2", "a-v3", "a-v4", "b-v1", "b-v2"])
THROUGH = st.sampled_from([None, None, None, None, None, "a", "b", "old a"])
IF_GENERATION = st.sampled_from([None, None, None, "current", "outdated"])
IMAGES = st.sampled_from(["image:1", "image:2"])
MOMENTS = st.sampled_from(["now", "now", *PUBLISHED])
MOST_AT_ONCE = 6


@st.composite
def spoken(draw: st.DrawFn, kind: type[S], /, **parts: st.SearchStrategy[object]) -> S:
    """One of this kind."""
    return kind(**{name: draw(part) for name, part in parts.items()})


@st.composite
def _by_its_version(draw: st.DrawFn) -> Announce:
    deployment = draw(DEPLOYMENTS)
    return draw(_announcing(agent=st.just(owner(deployment)), version=st.just(deployment)))


def _announcing(**parts: st.SearchStrategy[object]) -> st.SearchStrategy[Announce]:
    everything = {
        "published": MOMENTS,
        "way": st.sampled_from(["queue", "queue", "queue", "HTTP"]),
        "url": st.sampled_from(["http://one", "http://two"]),
        "image": st.sampled_from([None, None, "image:1", "image:2"]),
        "description": st.sampled_from([None, "Old.", "New."]),
        "rpc_path": st.sampled_from([None, "/rpc"]),
        "fact": st.sampled_from([None, "this", "that"]),
        "agent_id": st.sampled_from([None, None, None, "a"]),
    }
    return spoken(Announce, **{**everything, **parts})


VERSIONS = _by_its_version()
LEGACY_PODS = _announcing(agent=AGENTS)
BUILDS = _announcing(
    agent=AGENTS, way=st.just("build"), published=st.just("now"), rpc_path=st.none(), agent_id=st.none()
)
WRONG = _announcing(
    agent=AGENTS, version=DEPLOYMENTS | st.none(), agent_id=st.sampled_from(["a", "b", "old a", "nobody"]) | st.none()
)
AGAIN = spoken(Again, back=st.integers(0, 5))


def _in_one_batch(*messages: st.SearchStrategy[Announce | Again], most: int = 1) -> st.SearchStrategy[Register]:
    return spoken(Register, batch=st.lists(st.one_of(*messages), min_size=1, max_size=most))


A_VERSION_ANNOUNCES_ITSELF = _in_one_batch(VERSIONS)
A_LEGACY_POD_ANNOUNCES_ITSELF = _in_one_batch(LEGACY_PODS)
A_BUILD_IS_ANNOUNCED = _in_one_batch(BUILDS)
A_WRONG_MESSAGE_ARRIVES = _in_one_batch(WRONG)
A_MESSAGE_COMES_AGAIN = _in_one_batch(AGAIN)
A_BATCH_ARRIVES = _in_one_batch(VERSIONS, LEGACY_PODS, WRONG, AGAIN, most=4)

PROMOTE = spoken(Promote, deployment=DEPLOYMENTS, through=THROUGH, if_generation=IF_GENERATION)
ROLL_BACK = spoken(RollBack, agent=ANY_AGENT, if_generation=IF_GENERATION)
ROLL_BACK_TO = spoken(RollBack, agent=ANY_AGENT, to=st.just(LEGACY) | DEPLOYMENTS, if_generation=IF_GENERATION)
CREATE = spoken(Create, deployment=DEPLOYMENTS, image=IMAGES, through=THROUGH)
DELETE = spoken(Delete, deployment=DEPLOYMENTS, through=THROUGH)
DELETE_AGENT = spoken(DeleteAgent, agent=ANY_AGENT)
CHANGE = spoken(
    Change,
    agent=ANY_AGENT,
    auto_promote=st.sampled_from([None, "first", "always", "never"]),
    paused=st.sampled_from([None, False, True]),
)
FAIL = spoken(Fail, deployment=DEPLOYMENTS)

SEVERAL_AT_ONCE = st.lists(
    st.one_of(
        A_VERSION_ANNOUNCES_ITSELF,
        A_VERSION_ANNOUNCES_ITSELF,
        A_LEGACY_POD_ANNOUNCES_ITSELF,
        A_MESSAGE_COMES_AGAIN,
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
    ),
    min_size=2,
    max_size=MOST_AT_ONCE,
)
TURNS = st.lists(st.integers(0, MOST_AT_ONCE - 1), max_size=24)
