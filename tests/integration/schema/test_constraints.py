from typing import NamedTuple

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

A, B, GONE = (f"00000000-0000-4000-8000-00000000000{digit}" for digit in "abc")

# Two agents and a deleted one; agent a has a production deployment, a preview, a ledger row and an event.
GOOD = f"""
INSERT INTO agents (id, name) VALUES ('{A}', 'a'), ('{B}', 'b');
INSERT INTO agents (id, name, status, deleted_at) VALUES ('{GONE}', 'gone', 'Deleted', now());
INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at, acp_url, is_production) VALUES
    ('a1', '{A}', 'Ready', now(), now(), 'http://h', true),
    ('a2', '{A}', 'Ready', now(), now(), 'http://h', false),
    ('a3', '{A}', 'Pending', now(), now(), NULL, false),
    ('b1', '{B}', 'Ready', now(), now(), 'http://h', false);
UPDATE agents SET production_deployment_id = 'a1', generation = 1, event_seq = 1, status = 'Ready' WHERE id = '{A}';
INSERT INTO promotions (agent_id, generation, cause, actor, to_deployment_id, to_acp_url, at)
    VALUES ('{A}', 1, 'first', 'podium', 'a1', 'http://h', '2026-01-01T00:00:00Z');
INSERT INTO outbox (event_id, type, agent_id, agent_name, subject, sequence, generation, payload)
    VALUES ('{A}', 'podium.deployment.promoted.v1', '{A}', 'a', 'a1', 1, 1, '{{}}');
INSERT INTO event_epochs (epoch) VALUES (0);
INSERT INTO outbox_low_water (agent_id, sequence, xid, id) VALUES ('{A}', 1, '1', 1);
INSERT INTO registrations (message_id, agent_name, outcome) VALUES ('{A}', 'a', 'Registered');
INSERT INTO conversations (agent_id, key_sha256, deployment_id) VALUES ('{A}', sha256('one'), 'a1');
INSERT INTO instances (deployment_id, instance_id, agent_id, acp_url, rpc_path, health_path, status,
    status_changed_at, registered_at, registered_message_id, created_at, ready_at)
    VALUES ('a1', 'pod-1', '{A}', 'http://h', '/api', '/healthz', 'Ready', now(), now(), '{A}', now(), now());
INSERT INTO departed_instances (agent_name, deployment_id, instance_id, registered_at, message_id)
    VALUES ('a', 'a1', 'pod-0', now(), '{A}');
INSERT INTO parked (id, key, reason, error, routing_key, headers, body)
    VALUES ('{A}', 'k', 'malformed', 'why', 'agent.a', '{{}}', '');
INSERT INTO janitors (id, name) VALUES ('{A}', 'host:1');
INSERT INTO keys (id, name, scopes, secret_sha256, previous_sha256, previous_until, hint, created_by)
    VALUES ('{A}', 'ci', '{{read}}', sha256('one'), sha256('zero'), now(), 'abcd', 'amy');
INSERT INTO audit (actor, action, subject) VALUES ('amy', 'key.created', 'ci');
INSERT INTO call_counts VALUES ('{A}', now(), 'a1', '{A}', 3, 1, 1, 2, 0.5, 0.4);
INSERT INTO webhooks (id, url, agent_id, agent_name, secret, previous_secret, previous_until, cursor_xid, cursor_id,
    created_by) VALUES ('{A}', 'https://h', '{A}', 'a', sha256('one'), sha256('zero'), now(), '3', 0, 'amy');
INSERT INTO webhook_positions (webhook_id, agent_id, sequence, last_sequence) VALUES ('{A}', '{A}', 0, 1);
INSERT INTO webhook_deliveries (webhook_id, event_id, event_type, agent_id, agent_name, sequence, attempt, outcome,
    status, detail, seconds) VALUES ('{A}', '{A}', 't', '{A}', 'a', 1, 1, 'accepted', 200, 'ok', 0.1)
"""

NEW_DEPLOYMENT = "INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at) VALUES"
NEW_PROMOTION = "INSERT INTO promotions (agent_id, generation, cause, actor, at, restored, to_deployment_id) VALUES"
NEW_EVENT = "INSERT INTO outbox (event_id, type, agent_id, agent_name, subject, sequence, generation, payload) VALUES"
NEW_KEY = "INSERT INTO keys (id, name, scopes, secret_sha256, hint, created_by) VALUES"


class Bad(NamedTuple):
    """A statement, and the constraint that refuses it."""

    constraint: str
    statement: str


BAD_STATES = [
    Bad("agents_pkey", f"INSERT INTO agents (id, name) VALUES ('{A}', 'x')"),
    Bad("agents_name_of_living_key", "INSERT INTO agents (name) VALUES ('a')"),
    Bad("agents_name_of_living_key", "UPDATE agents SET name = 'a' WHERE name = 'b'"),
    Bad(
        "agents_name_of_living_key",
        "UPDATE agents SET name = 'a', deleted_at = NULL, status = 'Ready' WHERE name = 'gone'",
    ),
    *[
        Bad("agents_name_valid", f"INSERT INTO agents (name) VALUES ('{name}')")
        for name in ("", "A", "-a", "a-", "a_b", "a.b", "a\n", "a" * 64)
    ],
    Bad("agents_status_known", "UPDATE agents SET status = 'Fine' WHERE name = 'a'"),
    Bad("agents_acp_type_known", "UPDATE agents SET acp_type = 'magic'"),
    Bad("agents_agent_input_type_known", "UPDATE agents SET agent_input_type = 'video'"),
    Bad("agents_affinity_known", "UPDATE agents SET affinity = 'pod'"),
    Bad("agents_conversation_keys_known", "UPDATE agents SET conversation_keys = 'mcp'"),
    *[
        Bad("agents_conversations_positive", f"UPDATE agents SET {column} = 0")
        for column in ("conversation_idle_seconds", "conversation_max_age_seconds", "drain_deadline_seconds")
    ],
    Bad("agents_legacy_error_style_known", "UPDATE agents SET legacy_error_style = 'loud'"),
    Bad("agents_auto_promote_known", "UPDATE agents SET auto_promote = 'sometimes'"),
    Bad("agents_on_failure_known", "UPDATE agents SET on_failure = 'panic'"),
    *[
        Bad("agents_probes_positive", f"UPDATE agents SET {column} = 0")
        for column in ("probe_interval_seconds", "probe_threshold", "probe_timeout_seconds")
    ],
    Bad("agents_counters_consistent", "UPDATE agents SET generation = 2, event_seq = 1"),
    Bad("agents_counters_consistent", "UPDATE agents SET generation = -1"),
    Bad("agents_deleted_status", "UPDATE agents SET deleted_at = now() WHERE name = 'b'"),
    Bad("agents_deleted_status", "UPDATE agents SET status = 'Deleted' WHERE name = 'b'"),
    Bad("agents_deleted_serves_nothing", "UPDATE agents SET deleted_at = now(), status = 'Deleted' WHERE name = 'a'"),
    Bad("agents_registered_pair", "UPDATE agents SET registered_at = now()"),
    Bad("agents_registered_pair", f"UPDATE agents SET registered_message_id = '{A}'"),
    Bad("agents_production_is_own_deployment", "UPDATE agents SET production_deployment_id = 'b1' WHERE name = 'a'"),
    Bad("agents_production_is_own_deployment", "UPDATE agents SET production_deployment_id = 'none' WHERE name = 'b'"),
    Bad("agents_production_is_own_deployment", "DELETE FROM deployments WHERE id = 'a1'"),
    Bad("deployments_pkey", f"{NEW_DEPLOYMENT} ('a1', '{B}', 'Pending', now(), now())"),
    *[
        Bad("deployments_id_valid", f"{NEW_DEPLOYMENT} ('{each}', '{A}', 'Pending', now(), now())")
        for each in ("", ".a", "-a", "_a", "a b", "a/b", "a\n", "a" * 129)
    ],
    Bad("deployments_status_known", "UPDATE deployments SET status = 'Fine'"),
    Bad("deployments_error_style_known", "UPDATE deployments SET error_style = 'loud'"),
    Bad("deployments_ready_has_address", "UPDATE deployments SET acp_url = NULL WHERE id = 'a2'"),
    Bad("deployments_ready_has_address", "UPDATE deployments SET status = 'Ready' WHERE id = 'a3'"),
    Bad("deployments_production_not_deleted", "UPDATE deployments SET expires_at = now() WHERE id = 'a1'"),
    Bad("deployments_production_was_ready", "UPDATE deployments SET status = 'Pending' WHERE id = 'a1'"),
    Bad("deployments_purged_was_deleted", "UPDATE deployments SET purged_at = now() WHERE id = 'a2'"),
    Bad("deployments_registered_pair", "UPDATE deployments SET registered_at = now()"),
    Bad("deployments_registered_pair", f"UPDATE deployments SET registered_message_id = '{A}'"),
    Bad("deployments_agent_id_fkey", f"{NEW_DEPLOYMENT} ('x', '{A[:-1]}f', 'Pending', now(), now())"),
    Bad("deployments_agent_id_fkey", "DELETE FROM agents WHERE name = 'b'"),
    Bad("deployments_one_production_key", "UPDATE deployments SET is_production = true WHERE id = 'a2'"),
    Bad("promotions_pkey", f"{NEW_PROMOTION} ('{A}', 1, 'manual', 'amy', now(), NULL, NULL)"),
    Bad("promotions_generation_positive", f"{NEW_PROMOTION} ('{A}', 0, 'manual', 'amy', now(), NULL, NULL)"),
    Bad("promotions_cause_known", f"{NEW_PROMOTION} ('{A}', 2, 'mood', 'amy', now(), NULL, NULL)"),
    Bad("promotions_agent_id_fkey", f"{NEW_PROMOTION} ('{A[:-1]}f', 1, 'manual', 'amy', now(), NULL, NULL)"),
    Bad(
        "promotions_agent_id_at_idx", f"{NEW_PROMOTION} ('{A}', 2, 'manual', 'amy', '2026-01-01T00:00:00Z', NULL, NULL)"
    ),
    Bad(
        "promotions_restored_is_older",
        f"{NEW_PROMOTION} ('{A}', 2, 'manual', 'amy', now(), 1, NULL)",
    ),
    Bad(
        "promotions_restored_is_older",
        f"{NEW_PROMOTION} ('{A}', 2, 'rollback', 'amy', now(), 2, NULL)",
    ),
    Bad(
        "promotions_deployment_has_address",
        f"{NEW_PROMOTION} ('{A}', 2, 'manual', 'amy', now(), NULL, 'a2')",
    ),
    Bad("promotions_append_only", "UPDATE promotions SET reason = 'better'"),
    Bad("promotions_append_only", "DELETE FROM promotions"),
    Bad("promotions_append_only", "TRUNCATE promotions"),
    Bad("promotions_append_only", "TRUNCATE agents CASCADE"),
    Bad("outbox_pkey", "INSERT INTO outbox OVERRIDING SYSTEM VALUE SELECT * FROM outbox"),
    Bad("outbox_agent_id_sequence_key", f"{NEW_EVENT} ('{B}', 't', '{A}', 'a', 's', 1, 1, '{{}}')"),
    Bad("outbox_sequence_positive", f"{NEW_EVENT} ('{B}', 't', '{A}', 'a', 's', 0, 1, '{{}}')"),
    Bad("event_epochs_pkey", "INSERT INTO event_epochs (epoch) VALUES (0)"),
    Bad("event_epochs_epoch_valid", "INSERT INTO event_epochs (epoch) VALUES (-1)"),
    Bad("outbox_low_water_pkey", "INSERT INTO outbox_low_water SELECT * FROM outbox_low_water"),
    Bad(
        "registrations_pkey",
        f"INSERT INTO registrations (message_id, agent_name, outcome) VALUES ('{A}', 'a', 'Stale')",
    ),
    Bad("registrations_outcome_known", "UPDATE registrations SET outcome = 'Duplicate'"),
    Bad("parked_pkey", f"INSERT INTO parked SELECT '{A}', 'other', NULL, NULL, NULL, 'r', 'e', 'k', '{{}}', ''"),
    Bad("parked_key_key", f"INSERT INTO parked SELECT '{B}', 'k', NULL, NULL, NULL, 'r', 'e', 'k', '{{}}', ''"),
    Bad("conversations_pkey", "INSERT INTO conversations SELECT * FROM conversations"),
    Bad("conversations_digest_whole", "UPDATE conversations SET key_sha256 = 'an id'"),
    Bad("conversations_of_own_deployment", "UPDATE conversations SET deployment_id = 'b1'"),
    Bad("instances_pkey", "INSERT INTO instances SELECT * FROM instances"),
    *[
        Bad("instances_id_valid", f"UPDATE instances SET instance_id = '{instance_id}'")
        for instance_id in ("-pod", "a pod", "a" * 129)
    ],
    Bad("instances_status_known", "UPDATE instances SET status = 'Fine'"),
    Bad("instances_ready_since", "UPDATE instances SET ready_at = NULL"),
    Bad("instances_of_own_deployment", "UPDATE instances SET deployment_id = 'b1'"),
    Bad("departed_instances_pkey", "INSERT INTO departed_instances SELECT * FROM departed_instances"),
    Bad("probes_pkey", "INSERT INTO probes (deployment_id) VALUES ('a1')"),
    Bad("probes_confirmed_was_failed", "UPDATE probes SET confirmed = true WHERE deployment_id = 'a1'"),
    Bad("janitors_pkey", "INSERT INTO janitors SELECT * FROM janitors"),
    Bad("janitors_counts_consistent", "UPDATE janitors SET probed = 1, failing = 2"),
    Bad("agents_forward_authorization_known", "UPDATE agents SET forward_authorization = 'sometimes'"),
    *[
        Bad(f"{table}_calls_positive", f"UPDATE {table} SET {column} = 0")
        for table in ("agents", "keys")
        for column in ("calls_per_second", "calls_in_flight")
    ],
    Bad("keys_pkey", f"{NEW_KEY} ('{A}', 'other', '{{read}}', sha256('two'), 'abcd', 'amy')"),
    Bad("keys_name_of_living_key", f"{NEW_KEY} ('{B}', 'ci', '{{read}}', sha256('two'), 'abcd', 'amy')"),
    Bad("keys_secret_sha256_key", f"{NEW_KEY} ('{B}', 'other', '{{read}}', sha256('one'), 'abcd', 'amy')"),
    Bad(
        "keys_previous_sha256_key",
        "INSERT INTO keys (name, scopes, secret_sha256, previous_sha256, previous_until, hint, created_by) "
        "VALUES ('other', '{read}', sha256('two'), sha256('zero'), now(), 'abcd', 'amy')",
    ),
    *[Bad("keys_name_valid", f"UPDATE keys SET name = '{name}'") for name in ("", "A", "a b", "a" * 64)],
    *[Bad("keys_scopes_known", f"UPDATE keys SET scopes = '{scopes}'") for scopes in ("{}", "{read,root}")],
    Bad("keys_agents_not_empty", "UPDATE keys SET agents = '{}'"),
    Bad("keys_digests_complete", "UPDATE keys SET secret_sha256 = 'a secret'"),
    Bad("keys_digests_complete", "UPDATE keys SET previous_sha256 = 'a secret'"),
    Bad("keys_previous_ends", "UPDATE keys SET previous_until = NULL"),
    Bad("keys_version_pkey", "INSERT INTO keys_version (version) VALUES (1)"),
    Bad("keys_version_one_row", "INSERT INTO keys_version (id, version) VALUES (false, 1)"),
    Bad("audit_pkey", "INSERT INTO audit OVERRIDING SYSTEM VALUE SELECT * FROM audit"),
    Bad("audit_action_valid", "INSERT INTO audit (actor, action, subject) VALUES ('amy', 'Made it', 'ci')"),
    Bad("call_counts_pkey", "INSERT INTO call_counts SELECT * FROM call_counts"),
    *[
        Bad("call_counts_consistent", f"UPDATE call_counts SET {wrong}")
        for wrong in (
            "calls = 0",
            "calls = 1",
            "agent_failures = -1",
            "gateway_failures = -1",
            "answered = 4",
            "answered = -1",
            "answer_seconds = -1",
            "longest_seconds = -1",
        )
    ],
    Bad("audit_append_only", "UPDATE audit SET actor = 'bob'"),
    Bad("audit_append_only", "DELETE FROM audit"),
    Bad("audit_append_only", "TRUNCATE audit"),
    Bad("parked_attempts_positive", "UPDATE parked SET attempts = 0"),
    Bad("webhooks_pkey", "INSERT INTO webhooks SELECT * FROM webhooks"),
    Bad("webhooks_url_http", "UPDATE webhooks SET url = 'ftp://h'"),
    Bad("webhooks_agent_named", "UPDATE webhooks SET agent_name = NULL"),
    Bad("webhooks_event_types_not_empty", "UPDATE webhooks SET event_types = '{}'"),
    *[
        Bad("webhooks_secrets_complete", f"UPDATE webhooks SET {name} = 'short'")
        for name in ("secret", "previous_secret")
    ],
    Bad("webhooks_previous_ends", "UPDATE webhooks SET previous_until = NULL"),
    Bad("webhooks_status_known", "UPDATE webhooks SET status = 'fine'"),
    Bad("webhooks_disabled_has_reason", "UPDATE webhooks SET status = 'disabled'"),
    Bad("webhooks_disabled_has_reason", "UPDATE webhooks SET status_reason = 'gone'"),
    Bad("webhooks_missed_counted", "UPDATE webhooks SET missed = -1"),
    Bad("webhook_positions_pkey", "INSERT INTO webhook_positions SELECT * FROM webhook_positions"),
    Bad("webhook_positions_webhook_id_fkey", f"UPDATE webhook_positions SET webhook_id = '{B}'"),
    *[
        Bad("webhook_positions_something_waits", f"UPDATE webhook_positions SET sequence = {sequence}")
        for sequence in (-1, 1)
    ],
    Bad("webhook_positions_attempts_counted", "UPDATE webhook_positions SET attempts = -1"),
    Bad(
        "webhook_deliveries_pkey",
        "INSERT INTO webhook_deliveries OVERRIDING SYSTEM VALUE SELECT * FROM webhook_deliveries",
    ),
    Bad("webhook_deliveries_webhook_id_fkey", f"UPDATE webhook_deliveries SET webhook_id = '{B}'"),
    Bad("webhook_deliveries_outcome_known", "UPDATE webhook_deliveries SET outcome = 'fine', status = NULL"),
    Bad("webhook_deliveries_answered_has_status", "UPDATE webhook_deliveries SET status = NULL"),
    Bad("webhook_deliveries_answered_has_status", "UPDATE webhook_deliveries SET outcome = 'failed'"),
    Bad("webhook_deliveries_detail_short", "UPDATE webhook_deliveries SET detail = repeat('a', 201)"),
]

# The target of the composite foreign key; the primary key refuses its violations first.
NEVER_FIRST = {"deployments_id_agent_id_key"}


async def run(connection: AsyncConnection, statements: str) -> None:
    """Run several statements."""
    for statement in statements.split(";\n"):
        await connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "bad", BAD_STATES, ids=lambda bad: f"{bad.constraint}: {bad.statement[:40]}".replace("\n", " ")
)
async def test_a_bad_state_cannot_be_stored(migrated: AsyncEngine, bad: Bad) -> None:
    """G25: each constraint refuses its bad state under its own name, whatever program writes it."""
    async with migrated.connect() as connection:
        await run(connection, GOOD)
        with pytest.raises(DBAPIError) as refused:
            await run(connection, bad.statement)
        assert refused.value.orig is not None
        assert getattr(refused.value.orig.__cause__, "constraint_name", None) == bad.constraint
        await connection.rollback()


async def test_every_constraint_has_a_bad_state(migrated: AsyncEngine) -> None:
    """A constraint without a bad state in the table above makes this test fail."""
    async with migrated.connect() as connection:
        constraints = await connection.scalars(
            text("""
            SELECT conname::text FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'p', 'u', 'x')
                AND conrelid <> 'alembic_version'::regclass
            UNION SELECT indexrelid::regclass::text FROM pg_index
            WHERE indisunique AND indrelid <> 'alembic_version'::regclass
                AND indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)""")
        )
        named = set(constraints)
    assert named - {bad.constraint for bad in BAD_STATES} == NEVER_FIRST


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE agents SET name = 'gone', status = 'Ready' WHERE name = 'b'",
        "UPDATE deployments SET is_production = true WHERE id = 'b1'",
        "UPDATE deployments SET expires_at = now() WHERE id = 'a2'",
        "UPDATE deployments SET status = 'Failed', acp_url = NULL WHERE id = 'a1'",
        "UPDATE deployments SET expires_at = now(), purged_at = now(), acp_url = NULL WHERE id = 'a2'",
        f"{NEW_DEPLOYMENT} ('{'a' * 128}', '{B}', 'Pending', now(), now())",
        "DELETE FROM deployments WHERE id = 'a2'",
        f"{NEW_PROMOTION} ('{A}', 2, 'agent_deleted', 'amy', now(), NULL, NULL)",
    ],
)
async def test_a_good_state_can_be_stored(migrated: AsyncEngine, statement: str) -> None:
    """The name of a deleted agent can be used again, each agent may have a production, and previews can be deleted."""
    async with migrated.connect() as connection:
        await run(connection, GOOD)
        await run(connection, statement)
        await connection.rollback()
