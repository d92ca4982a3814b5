-- Caches and auditors follow the changes of keys; so far nothing says that a key has changed.
--
-- transaction_id is what makes following sound. Ids are drawn when a row is written, not when it is
-- committed, so that a reader of `id > n` skips the row of whoever drew early and commits late. The
-- id of the writing transaction can be held against the oldest one that is still open. It is a
-- bigint because clients can send and compare one without knowing the server's own type for it.
--
-- No foreign key: events outlive their key. The texts have no limit, so that no write of a key fails
-- for its event. A table that a revert left behind, because it held rows, is taken up again.
DO $$
BEGIN
    IF to_regclass('api_key_events') IS NOT NULL THEN
        RETURN;
    END IF;

    CREATE TABLE api_key_events (
        transaction_id bigint      NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
        id             bigint      GENERATED ALWAYS AS IDENTITY,
        tenant_id      text        NOT NULL,
        key_id         text        NOT NULL,
        revision       bigint      NOT NULL,
        kind           text        NOT NULL,
        at             timestamptz NOT NULL,
        actor          text,
        reason         text,
        status         text        NOT NULL,
        is_frozen      boolean     NOT NULL,
        expires_at     timestamptz,
        CONSTRAINT api_key_events_pkey PRIMARY KEY (transaction_id, id)
    );
    COMMENT ON TABLE api_key_events IS 'Created by api_keys_driver.';
    COMMENT ON COLUMN api_key_events.status IS 'As the change left it; so are is_frozen and expires_at.';

    CREATE INDEX ix_api_key_events_history ON api_key_events (tenant_id, key_id, revision, id);
END
$$;
