-- Records the changes of keys, so that caches and auditors can follow them.
--
-- A follower reads the events in the order of transaction_id. An id is assigned when a row is written, not when it is
-- committed, so a reader of `id > n` would skip a row that was written early and committed late. The id of the writing
-- transaction can be compared with the oldest open transaction. It is a bigint, because clients can send and compare a
-- bigint without knowing the type xid8.
--
-- There is no foreign key, because events stay when their key is deleted. The texts have no limit, so that no write of
-- a key fails because of its event. tenant_id has the type of api_keys.tenant_id, without its limit, because Citus
-- places the tables of a tenant together only if their types are the same.
--
-- The tables belong to the owner of api_keys, also if another role migrates; api_keys_changes says why. A table that a
-- revert kept, because it had rows, is used again, unless an unrelated role owns it.
DO $$
DECLARE
    home pg_catalog.text := (
        SELECT nspname FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
    );
    owner pg_catalog.regrole := (
        SELECT relowner FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
    );
    name pg_catalog.text;
    found pg_catalog.regclass;
BEGIN
    FOREACH name IN ARRAY ARRAY['api_key_events', 'api_key_events_compacted'] LOOP
        found := pg_catalog.to_regclass(pg_catalog.format('%I.%I', home, name));
        IF EXISTS (
            SELECT FROM pg_catalog.pg_class AS c
            WHERE c.oid OPERATOR(pg_catalog.=) found AND (
                pg_catalog.obj_description(found, 'pg_class') OPERATOR(pg_catalog.=) 'Created by api_keys_driver.'
                AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
                AND (
                    c.relowner::pg_catalog.regrole::pg_catalog.text OPERATOR(pg_catalog.=) pg_catalog.quote_ident(current_user)
                    OR pg_catalog.pg_has_role(c.relowner, owner, 'MEMBER')
                )
            ) IS NOT TRUE
        ) THEN
            RAISE EXCEPTION 'there is another table %.%: rename or drop it, then migrate again', home, name;
        END IF;
    END LOOP;
    found := pg_catalog.to_regclass(pg_catalog.format('%I.api_key_events', home));

    IF found IS NULL THEN
        EXECUTE pg_catalog.format($ddl$
        CREATE TABLE %1$I.api_key_events (
            transaction_id pg_catalog.int8 NOT NULL
                DEFAULT (pg_catalog.pg_current_xact_id()::pg_catalog.text::pg_catalog.int8),
            id             pg_catalog.int8 GENERATED ALWAYS AS IDENTITY,
            tenant_id      pg_catalog.varchar NOT NULL,
            key_id         pg_catalog.text NOT NULL,
            revision       pg_catalog.int8 NOT NULL,
            kind           pg_catalog.text NOT NULL,
            at             pg_catalog.timestamptz NOT NULL,
            recorded_at    pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
            actor          pg_catalog.text,
            reason         pg_catalog.text,
            status         pg_catalog.text NOT NULL,
            is_frozen      pg_catalog.bool NOT NULL,
            expires_at     pg_catalog.timestamptz,
            CONSTRAINT api_key_events_pkey PRIMARY KEY (transaction_id, id)
        )
        $ddl$, home);
        EXECUTE pg_catalog.format($ddl$COMMENT ON TABLE %I.api_key_events IS 'Created by api_keys_driver.'$ddl$, home);
        EXECUTE pg_catalog.format(
            $ddl$COMMENT ON COLUMN %I.api_key_events.status IS 'As the change left it; so are is_frozen and expires_at.'$ddl$,
            home
        );
        EXECUTE pg_catalog.format(
            'CREATE INDEX ix_api_key_events_history ON %I.api_key_events USING btree (tenant_id, key_id, revision, id)',
            home
        );
    END IF;

    -- What compaction leaves of the keys that are gone: no revision of theirs was higher.
    EXECUTE pg_catalog.format($ddl$
    CREATE TABLE IF NOT EXISTS %1$I.api_key_events_compacted (
        only_row pg_catalog.bool NOT NULL DEFAULT true,
        revision pg_catalog.int8 NOT NULL,
        CONSTRAINT api_key_events_compacted_pkey PRIMARY KEY (only_row),
        CONSTRAINT api_key_events_compacted_has_one_row CHECK (only_row)
    )
    $ddl$, home);
    EXECUTE pg_catalog.format(
        'INSERT INTO %I.api_key_events_compacted (revision) VALUES (0) ON CONFLICT DO NOTHING', home
    );
    EXECUTE pg_catalog.format(
        $ddl$COMMENT ON TABLE %I.api_key_events_compacted IS 'Created by api_keys_driver.'$ddl$, home
    );
    FOREACH name IN ARRAY ARRAY['api_key_events', 'api_key_events_compacted'] LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %I.%I OWNER TO %s', home, name, owner);
    END LOOP;
END
$$;
