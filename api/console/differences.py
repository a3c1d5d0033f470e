"""What is different between a version and production, field by field."""

from dataclasses import dataclass
from typing import Any

from api.console.words import facts, is_path
from services.domain.state import DeploymentState

_FIELDS = {
    "docker_image": "Image",
    "rpc_path": "RPC path",
    "health_path": "Health path",
    "error_style": "Error style",
    "helm_release_name": "Helm release",
    "sgp_deploy_id": "Deploy id",
}
# The id of each pod, and what the columns already say.
_LEFT_OUT = frozenset({"deployment_id", "instance_id", "docker_image", "rpc_path", "health_path", "error_style"})

_ADDRESSES = frozenset({"url", "additionalInterfaces", "supportedInterfaces", "signatures"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One field; None where a side does not have it."""

    name: str
    production: Any
    version: Any


def differences(version: DeploymentState, production: DeploymentState) -> list[Difference]:
    """The fields and the facts of the metadata that are not the same; skills of a card one by one."""
    found = [
        Difference(name, getattr(production, field), getattr(version, field))
        for field, name in _FIELDS.items()
        if getattr(production, field) != getattr(version, field)
    ]
    before, after = _facts(production), _facts(version)
    paths = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    return [*found, *(Difference(path, before.get(path), after.get(path)) for path in paths)]


def card_differences(production: dict[str, Any] | None, version: dict[str, Any] | None) -> list[Difference]:
    """The facts of two agent cards that are not the same; skills one by one. Addresses and signatures always differ."""
    before, after = (
        _named({path: value for path, value in facts(card).items() if path.partition(".")[0] not in _ADDRESSES})
        for card in (production, version)
    )
    paths = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    return [Difference(path, before.get(path), after.get(path)) for path in paths]


def _facts(deployment: DeploymentState) -> dict[str, Any]:
    found = facts(deployment.registration_metadata)
    return _named({path: value for path, value in found.items() if path not in _LEFT_OUT})


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """The facts; lists of things with an id or a name, such as skills, by that name."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        named = (
            [each.get("id") or each.get("name") for each in value if isinstance(each, dict)]
            if isinstance(value, list)
            else []
        )
        names = [name for name in named if isinstance(name, str)]
        if names and len(names) == len(value) and is_path(path, names):
            found |= {f"{path}: {name}": each for name, each in zip(names, value, strict=True)}
        else:
            found[path] = value
    return found
