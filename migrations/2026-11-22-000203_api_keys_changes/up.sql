-- Every change of a key raises its revision and appends an event, whoever makes it.
--
-- Triggers, because the existing service writes the same table beside this crate and knows neither.
-- Uses are not changes: a statement that sets only last_used_at and total_requests fires nothing.
--
-- The events' function runs with its owner's rights and a pinned path: a writer needs no right on
-- api_key_events, and cannot lead the events elsewhere.
SET LOCAL lock_timeout = '5s';

CREATE FUNCTION api_keys_raise_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := OLD.revision + 1;
    RETURN NEW;
END
$$;

CREATE FUNCTION api_keys_append_event() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    key record := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    kind text := TG_ARGV[0];
BEGIN
    INSERT INTO api_key_events
        (tenant_id, key_id, revision, kind, at, actor, reason, status, is_frozen, expires_at)
    VALUES (
        key.tenant_id,
        key.id,
        CASE kind WHEN 'deleted' THEN key.revision + 1 ELSE key.revision END,
        kind,
        coalesce(
            CASE kind
                WHEN 'inserted' THEN key.created_at
                WHEN 'frozen' THEN key.frozen_at
                WHEN 'revoked' THEN key.revoked_at
            END,
            now()
        ),
        CASE kind WHEN 'frozen' THEN key.frozen_by END,
        CASE kind WHEN 'frozen' THEN key.freeze_reason WHEN 'revoked' THEN key.revoked_reason END,
        key.status,
        key.is_frozen,
        key.expires_at
    );
    RETURN NULL;
END
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION api_keys_append_event() SET search_path = %I, pg_temp', current_schema());
END
$$;

CREATE TRIGGER api_keys_revision BEFORE UPDATE OF
    tenant_id, user_id, name, key_prefix, key_hash, permissions_json, allowed_workers_json, rate_limit_rpm,
    max_concurrent_runs, status, expires_at, revoked_at, revoked_reason, created_at, frozen_at, frozen_by,
    freeze_reason, is_synthetic, synthetic_scenario_id, is_frozen
ON api_keys FOR EACH ROW
WHEN (
    (OLD.tenant_id, OLD.user_id, OLD.name, OLD.key_prefix, OLD.key_hash, OLD.permissions_json,
     OLD.allowed_workers_json, OLD.rate_limit_rpm, OLD.max_concurrent_runs, OLD.status, OLD.expires_at,
     OLD.revoked_at, OLD.revoked_reason, OLD.created_at, OLD.frozen_at, OLD.frozen_by, OLD.freeze_reason,
     OLD.is_synthetic, OLD.synthetic_scenario_id, OLD.is_frozen)
    IS DISTINCT FROM
    (NEW.tenant_id, NEW.user_id, NEW.name, NEW.key_prefix, NEW.key_hash, NEW.permissions_json,
     NEW.allowed_workers_json, NEW.rate_limit_rpm, NEW.max_concurrent_runs, NEW.status, NEW.expires_at,
     NEW.revoked_at, NEW.revoked_reason, NEW.created_at, NEW.frozen_at, NEW.frozen_by, NEW.freeze_reason,
     NEW.is_synthetic, NEW.synthetic_scenario_id, NEW.is_frozen)
)
EXECUTE FUNCTION api_keys_raise_revision();

-- Triggers of one moment fire in the order of their names.
CREATE TRIGGER api_keys_event_1_inserted AFTER INSERT ON api_keys FOR EACH ROW
EXECUTE FUNCTION api_keys_append_event('inserted');

CREATE TRIGGER api_keys_event_2_frozen AFTER UPDATE OF is_frozen, frozen_at, frozen_by, freeze_reason
ON api_keys FOR EACH ROW
WHEN (
    NEW.is_frozen
    AND (OLD.is_frozen, OLD.frozen_at, OLD.frozen_by, OLD.freeze_reason)
        IS DISTINCT FROM (NEW.is_frozen, NEW.frozen_at, NEW.frozen_by, NEW.freeze_reason)
)
EXECUTE FUNCTION api_keys_append_event('frozen');

CREATE TRIGGER api_keys_event_3_unfrozen AFTER UPDATE OF is_frozen ON api_keys FOR EACH ROW
WHEN (OLD.is_frozen AND NOT NEW.is_frozen)
EXECUTE FUNCTION api_keys_append_event('unfrozen');

CREATE TRIGGER api_keys_event_4_revoked AFTER UPDATE OF status, revoked_at, revoked_reason
ON api_keys FOR EACH ROW
WHEN (
    NEW.status = 'revoked'
    AND (OLD.status, OLD.revoked_at, OLD.revoked_reason)
        IS DISTINCT FROM (NEW.status, NEW.revoked_at, NEW.revoked_reason)
)
EXECUTE FUNCTION api_keys_append_event('revoked');

CREATE TRIGGER api_keys_event_5_expiry_set AFTER UPDATE OF expires_at ON api_keys FOR EACH ROW
WHEN (OLD.expires_at IS DISTINCT FROM NEW.expires_at)
EXECUTE FUNCTION api_keys_append_event('expiry_set');

-- What the others leave: another column, another status, and times without the state that they belong to.
CREATE TRIGGER api_keys_event_6_changed AFTER UPDATE OF
    tenant_id, user_id, name, key_prefix, key_hash, permissions_json, allowed_workers_json, rate_limit_rpm,
    max_concurrent_runs, status, revoked_at, revoked_reason, created_at, frozen_at, frozen_by, freeze_reason,
    is_synthetic, synthetic_scenario_id
ON api_keys FOR EACH ROW
WHEN (
    (OLD.tenant_id, OLD.user_id, OLD.name, OLD.key_prefix, OLD.key_hash, OLD.permissions_json,
     OLD.allowed_workers_json, OLD.rate_limit_rpm, OLD.max_concurrent_runs, OLD.created_at, OLD.is_synthetic,
     OLD.synthetic_scenario_id)
    IS DISTINCT FROM
    (NEW.tenant_id, NEW.user_id, NEW.name, NEW.key_prefix, NEW.key_hash, NEW.permissions_json,
     NEW.allowed_workers_json, NEW.rate_limit_rpm, NEW.max_concurrent_runs, NEW.created_at, NEW.is_synthetic,
     NEW.synthetic_scenario_id)
    OR NEW.status <> 'revoked'
       AND (OLD.status, OLD.revoked_at, OLD.revoked_reason)
           IS DISTINCT FROM (NEW.status, NEW.revoked_at, NEW.revoked_reason)
    OR NOT OLD.is_frozen AND NOT NEW.is_frozen
       AND (OLD.frozen_at, OLD.frozen_by, OLD.freeze_reason)
           IS DISTINCT FROM (NEW.frozen_at, NEW.frozen_by, NEW.freeze_reason)
)
EXECUTE FUNCTION api_keys_append_event('changed');

CREATE TRIGGER api_keys_event_7_deleted AFTER DELETE ON api_keys FOR EACH ROW
EXECUTE FUNCTION api_keys_append_event('deleted');

-- From here on the events alone tell which keys are frozen: those that are already get one each. So do
-- keys with events from before a revert, because what they say may have changed meanwhile. No write
-- slips between: creating the triggers has locked the table against writers.
INSERT INTO api_key_events
    (tenant_id, key_id, revision, kind, at, actor, reason, status, is_frozen, expires_at)
SELECT
    tenant_id, id, revision,
    CASE WHEN is_frozen THEN 'frozen' ELSE 'changed' END,
    coalesce(CASE WHEN is_frozen THEN frozen_at END, now()),
    CASE WHEN is_frozen THEN frozen_by END,
    CASE WHEN is_frozen THEN freeze_reason END,
    status, is_frozen, expires_at
FROM api_keys
WHERE is_frozen OR id IN (SELECT key_id FROM api_key_events);
