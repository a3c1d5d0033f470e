"""Deferred messages: announcements of agents that another transaction has locked.

They stay unacknowledged and are decided later, while the registrar decides the messages of other agents.
"""

import asyncio
from collections.abc import Collection, Iterable
from itertools import chain
from time import monotonic

import structlog

from contracts.topology import agent_of_key
from workers.amqp.buffer import first_messages
from workers.amqp.delivery import Delivery

log = structlog.get_logger(__name__)

# None: the routing key names no agent.
AgentName = str | None
Messages = dict[int, Delivery]


class DeferredMessages:
    """The deferred messages of one connection, by agent, each agent's in the order in which they arrived."""

    def __init__(self) -> None:
        self.added = asyncio.Event()
        """Set when a message is added. The task that decides deferred messages clears it."""
        self._of_agent: dict[AgentName, Messages] = {}
        self._since: dict[AgentName, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of_agent.values()))

    def divert(self, messages: Iterable[Delivery]) -> list[Delivery]:
        """Defer the messages of agents that have deferred messages already; returns the others."""
        if not self._of_agent:
            return list(messages)
        others = []
        for message in messages:
            if (agent := _agent(message)) in self._of_agent:
                self._of_agent[agent][id(message)] = message
            else:
                others.append(message)
        return others

    def defer(self, messages: Collection[Delivery]) -> None:
        """Defer these messages; their agents are tried after all other deferred agents."""
        for agent in dict.fromkeys(map(_agent, messages)):
            if agent not in self._of_agent:
                self._since[agent] = monotonic()
                log.warning(
                    "Another transaction has locked an agent; its announcements wait.",
                    action="registrar.deferred",
                    agent=agent,
                )
            self._of_agent[agent] = self._of_agent.pop(agent, {})
        for message in messages:
            self._of_agent[_agent(message)][id(message)] = message
        if messages:
            self.added.set()

    def next_batch(self, count: int, max_bytes: int) -> list[Delivery]:
        """The messages to try next; they stay deferred until `settled` is called."""
        return first_messages(chain.from_iterable(each.values() for each in self._of_agent.values()), count, max_bytes)

    def settled(self, messages: Iterable[Delivery]) -> None:
        """Remove messages that were decided and acknowledged; ignores messages that are not deferred."""
        for message in messages:
            agent = _agent(message)
            waiting = self._of_agent.get(agent)
            if waiting is None or waiting.pop(id(message), None) is None or waiting:
                continue
            del self._of_agent[agent]
            log.info(
                "Decided the announcements of an agent that was locked.",
                action="registrar.deferred_decided",
                agent=agent,
                waited_seconds=round(monotonic() - self._since.pop(agent), 1),
            )


def _agent(message: Delivery) -> AgentName:
    return agent_of_key(message.routing_key)
