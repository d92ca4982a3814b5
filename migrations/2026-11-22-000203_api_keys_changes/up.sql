-- Every change of a key raises its revision and appends its events, whoever makes it.
--
-- Triggers, because the existing service writes the same table beside this crate and knows neither.
-- Uses are not changes: what differs only in last_used_at and total_requests passes. The triggers name
-- no column but revision: the server forbids to alter the type of one that a trigger names, and the
-- service goes on changing its table. Columns that it adds are watched too.
--
-- The events are written with the rights of the function's owner on a pinned path: a writer needs no
-- right on api_key_events, and cannot lead the events elsewhere.
SET LOCAL lock_timeout = '5s';

CREATE FUNCTION api_keys_raise_revision() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unused record := OLD;
BEGIN
    unused.last_used_at := NEW.last_used_at;
    unused.total_requests := NEW.total_requests;
    NEW.revision := OLD.revision;
    -- Compares what is stored, so that no type of a later column can lack the operator.
    IF unused *<> NEW THEN
        NEW.revision := OLD.revision + 1;
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION api_keys_append_events() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    key record;
    kinds text[] := '{}';
    untold record;
BEGIN
    IF TG_OP = 'INSERT' THEN
        key := NEW;
        kinds := '{inserted}';
    ELSIF TG_OP = 'DELETE' THEN
        key := OLD;
        key.revision := OLD.revision + 1;
        kinds := '{deleted}';
    ELSE
        key := NEW;
        -- The old row, in which all that is told already becomes new.
        untold := OLD;
        untold.revision := NEW.revision;
        untold.last_used_at := NEW.last_used_at;
        untold.total_requests := NEW.total_requests;
        IF OLD.is_frozen OR NEW.is_frozen THEN
            IF (OLD.is_frozen, OLD.frozen_at, OLD.frozen_by, OLD.freeze_reason)
                IS DISTINCT FROM (NEW.is_frozen, NEW.frozen_at, NEW.frozen_by, NEW.freeze_reason)
            THEN
                kinds := kinds || CASE WHEN NEW.is_frozen THEN 'frozen' ELSE 'unfrozen' END;
            END IF;
            untold.is_frozen := NEW.is_frozen;
            untold.frozen_at := NEW.frozen_at;
            untold.frozen_by := NEW.frozen_by;
            untold.freeze_reason := NEW.freeze_reason;
        END IF;
        IF NEW.status = 'revoked' THEN
            IF (OLD.status, OLD.revoked_at, OLD.revoked_reason)
                IS DISTINCT FROM (NEW.status, NEW.revoked_at, NEW.revoked_reason)
            THEN
                kinds := kinds || 'revoked'::text;
            END IF;
            untold.status := NEW.status;
            untold.revoked_at := NEW.revoked_at;
            untold.revoked_reason := NEW.revoked_reason;
        END IF;
        IF OLD.expires_at IS DISTINCT FROM NEW.expires_at THEN
            kinds := kinds || 'expiry_set'::text;
            untold.expires_at := NEW.expires_at;
        END IF;
        IF untold *<> NEW THEN
            kinds := kinds || 'changed'::text;
        END IF;
    END IF;

    INSERT INTO api_key_events
        (tenant_id, key_id, revision, kind, at, actor, reason, status, is_frozen, expires_at)
    SELECT
        key.tenant_id, key.id, key.revision, kind,
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
        key.status, key.is_frozen, key.expires_at
    FROM unnest(kinds) WITH ORDINALITY AS told (kind, nth)
    ORDER BY nth;
    RETURN NULL;
END
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION api_keys_append_events() SET search_path = %I, pg_temp', current_schema());
END
$$;

CREATE TRIGGER api_keys_raise_revision BEFORE UPDATE ON api_keys FOR EACH ROW
EXECUTE FUNCTION api_keys_raise_revision();

CREATE TRIGGER api_keys_append_events AFTER INSERT OR DELETE ON api_keys FOR EACH ROW
EXECUTE FUNCTION api_keys_append_events();

CREATE TRIGGER api_keys_append_events_of_update AFTER UPDATE ON api_keys FOR EACH ROW
WHEN (OLD.revision <> NEW.revision)
EXECUTE FUNCTION api_keys_append_events();

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
WHERE id IN (SELECT id FROM api_keys WHERE is_frozen UNION SELECT key_id FROM api_key_events);
