-- Increases the revision of a key with each change and appends the change's events, for changes by any program.
--
-- Triggers are used because the existing service writes the same table and does not use this crate. A use is not a
-- change: see api_keys_number. The triggers name no column except revision, because PostgreSQL refuses to alter the
-- type of a column that a trigger names, and the service must still be able to alter its table.
--
-- Each function sets its search_path and qualifies every name and operator, and only its owner may attach it to a
-- table. The functions belong to the owner of api_keys, also if a superuser migrates: the owner decides the types of
-- the columns, and a cast or an output function of such a type runs with the rights of the function's owner. The
-- functions find the events in the schema of the table whose trigger fired. The name of the schema is fixed in the
-- function. After the schema is renamed, its current name is used, with a statement that is planned at each change,
-- until the functions are created again.
DO $do$
DECLARE
    home pg_catalog.text := (
        SELECT nspname FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
    );
    owner pg_catalog.regrole := (
        SELECT relowner FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
    );
    functions pg_catalog.text[] := ARRAY[
        'api_keys_compare', 'api_keys_number', 'api_keys_tell', 'api_keys_tell_truncated', 'api_key_events_notify'
    ];
    planted pg_catalog.text;
    name pg_catalog.text;
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);

    -- A function that is replaced keeps its owner.
    SELECT p.oid::pg_catalog.regprocedure INTO planted
    FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
    WHERE n.nspname OPERATOR(pg_catalog.=) home
        AND p.proname::pg_catalog.text OPERATOR(pg_catalog.=) ANY (functions)
        AND p.proowner::pg_catalog.regrole::pg_catalog.text OPERATOR(pg_catalog.<>) pg_catalog.quote_ident(current_user)
        AND NOT pg_catalog.pg_has_role(p.proowner, owner, 'MEMBER')
    LIMIT 1;
    IF planted IS NOT NULL THEN
        RAISE EXCEPTION 'the function % belongs to an unrelated role: rename or drop it, then migrate again', planted;
    END IF;

    -- Increases the revision of a row if more changed than the columns of a use. It runs for every use, so it is short:
    -- it reads no table and needs no rights.
    EXECUTE pg_catalog.format($ddl$
    CREATE OR REPLACE FUNCTION %1$I.api_keys_compare() RETURNS pg_catalog.trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $fn$
    BEGIN
        OLD.last_used_at := NEW.last_used_at;
        OLD.total_requests := NEW.total_requests;
        IF pg_catalog.record_image_ne(OLD, NEW) THEN
            NEW.revision := OLD.revision OPERATOR(pg_catalog.+)
                (OLD.revision OPERATOR(pg_catalog.<) 9223372036854775807)::pg_catalog.int4;
        END IF;
        RETURN NEW;
    END
    $fn$
    $ddl$, home);

    -- The trigger sets the revision and ignores the value that the writer sends. The revision for a tenant and an id
    -- never decreases: a new row starts after the highest revision of its events, also if these were compacted.
    --
    -- If only last_used_at and total_requests differ, the update is a use. It is also a use if a time column of the
    -- service differs too, such as an updated_at that a trigger sets, or a generated column, which has no value yet in
    -- a BEFORE trigger. For these, api_keys_compare increased the revision, and this function restores it.
    -- Such columns are set to NULL in both rows, by json_populate_record, which calls no function of another type. Rows
    -- as JSON or as text cannot be compared: different values may look the same, and a cast to json may be anybody's. A
    -- domain may refuse NULL, so a generated column of a domain counts as any other column.
    --
    -- A sequential scan would be planned while the tables are tiny, and a session keeps its plans while they grow.
    EXECUTE pg_catalog.format($ddl$
    CREATE OR REPLACE FUNCTION %1$I.api_keys_number() RETURNS pg_catalog.trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $fn$
    DECLARE
        is_renamed pg_catalog.bool := true;
        was record;
        ignored pg_catalog.json;
        past pg_catalog.int8 := 0;
    BEGIN
        IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
            is_renamed := pg_catalog.record_image_ne(ROW(OLD.tenant_id, OLD.id), ROW(NEW.tenant_id, NEW.id));
            IF NOT is_renamed AND pg_catalog.record_image_eq(
                ROW(OLD.status, OLD.is_frozen, OLD.frozen_at, OLD.frozen_by, OLD.freeze_reason,
                    OLD.revoked_at, OLD.revoked_reason, OLD.expires_at),
                ROW(NEW.status, NEW.is_frozen, NEW.frozen_at, NEW.frozen_by, NEW.freeze_reason,
                    NEW.revoked_at, NEW.revoked_reason, NEW.expires_at)
            ) THEN
                -- By itself: a condition that holds a query is planned as one, at each call.
                SELECT pg_catalog.json_object_agg(a.attname, NULL::pg_catalog.text) INTO ignored
                FROM pg_catalog.pg_attribute AS a
                JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
                WHERE a.attrelid OPERATOR(pg_catalog.=) TG_RELID
                    AND a.attnum OPERATOR(pg_catalog.>) 0
                    AND NOT a.attisdropped
                    AND (
                        (
                            a.attgenerated OPERATOR(pg_catalog.<>) ''
                            AND t.typtype OPERATOR(pg_catalog.<>) 'd'
                        )
                        -- A use, and a time that this crate does not know.
                        OR (
                            pg_catalog.record_image_ne(
                                ROW(OLD.last_used_at, OLD.total_requests), ROW(NEW.last_used_at, NEW.total_requests)
                            )
                            AND a.atttypid OPERATOR(pg_catalog.=) ANY (ARRAY[
                                'pg_catalog.timestamptz'::pg_catalog.regtype, 'pg_catalog.timestamp'::pg_catalog.regtype,
                                'pg_catalog.date'::pg_catalog.regtype
                            ]::pg_catalog.oid[])
                            AND a.attname OPERATOR(pg_catalog.<>) 'created_at'
                        )
                    );
                was := OLD;
                was.last_used_at := NEW.last_used_at;
                was.total_requests := NEW.total_requests;
                was.revision := NEW.revision;
                IF NOT pg_catalog.record_image_ne(
                    pg_catalog.json_populate_record(was, ignored), pg_catalog.json_populate_record(NEW, ignored)
                ) THEN
                    NEW.revision := OLD.revision;
                    RETURN NEW;
                END IF;
            END IF;
            past := OLD.revision;
        END IF;

        IF is_renamed THEN
            IF TG_TABLE_SCHEMA OPERATOR(pg_catalog.=) %1$L THEN
                -- If another transaction deletes a key with this name, waits until it ends. The statement would wait too,
                -- but after this trigger, which then has missed the events of the deletion. The name of a shard differs.
                -- A range in order, so that the plan is right for any number of keys: while there are few, PostgreSQL
                -- prefers other indexes that hold the id.
                IF TG_TABLE_NAME OPERATOR(pg_catalog.=) 'api_keys' THEN
                    PERFORM FROM %1$I.api_keys AS k
                    WHERE k.tenant_id OPERATOR(pg_catalog.=) NEW.tenant_id
                        AND k.id OPERATOR(pg_catalog.>=) NEW.id AND k.id OPERATOR(pg_catalog.<=) NEW.id
                    ORDER BY k.id USING OPERATOR(pg_catalog.<) LIMIT 1
                    FOR KEY SHARE;
                END IF;
                past := greatest(
                    past,
                    (
                        SELECT pg_catalog.max(revision) FROM %1$I.api_key_events
                        WHERE tenant_id OPERATOR(pg_catalog.=) NEW.tenant_id::pg_catalog.text
                            AND key_id OPERATOR(pg_catalog.=) NEW.id::pg_catalog.text
                    ),
                    (SELECT revision FROM %1$I.api_key_events_compacted WHERE only_row)
                );
            ELSIF EXISTS (
                SELECT FROM pg_catalog.pg_class AS c
                JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
                JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) c.relowner
                WHERE n.nspname OPERATOR(pg_catalog.=) TG_TABLE_SCHEMA
                    AND c.relname OPERATOR(pg_catalog.=) 'api_key_events'
                    AND r.rolname OPERATOR(pg_catalog.=) current_user
            ) THEN
                EXECUTE pg_catalog.format(
                    'SELECT greatest($1, (SELECT pg_catalog.max(revision) FROM %%1$I.api_key_events
                         WHERE tenant_id OPERATOR(pg_catalog.=) $2 AND key_id OPERATOR(pg_catalog.=) $3),
                         (SELECT revision FROM %%1$I.api_key_events_compacted WHERE only_row))',
                    TG_TABLE_SCHEMA
                ) INTO past USING past, NEW.tenant_id::pg_catalog.text, NEW.id::pg_catalog.text;
            END IF;
        END IF;
        -- Stays at the end of its type, which only a writer that circumvents the triggers comes near.
        NEW.revision := past OPERATOR(pg_catalog.+) (past OPERATOR(pg_catalog.<) 9223372036854775807)::pg_catalog.int4;
        RETURN NEW;
    END
    $fn$
    $ddl$, home);

    EXECUTE pg_catalog.format($ddl$
    CREATE OR REPLACE FUNCTION %1$I.api_keys_tell() RETURNS pg_catalog.trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fn$
    DECLARE
        key record;
        kind pg_catalog.text;
        kinds pg_catalog.text[] := '{}';
        untold record;
        ignored pg_catalog.json;
        given_at pg_catalog.timestamptz;
        reason pg_catalog.text;
    BEGIN
        IF TG_TABLE_SCHEMA OPERATOR(pg_catalog.<>) %1$L THEN
            IF NOT EXISTS (
                SELECT FROM pg_catalog.pg_class AS c
                JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
                JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) c.relowner
                WHERE n.nspname OPERATOR(pg_catalog.=) TG_TABLE_SCHEMA
                    AND c.relname OPERATOR(pg_catalog.=) 'api_key_events'
                    AND r.rolname OPERATOR(pg_catalog.=) current_user
            ) THEN
                RAISE WARNING 'the change of a key in %% is not recorded: the schema has no api_key_events of the owner of api_keys_tell()',
                    TG_TABLE_SCHEMA;
                RETURN NULL;
            END IF;
        END IF;

        IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN
            key := NEW;
            kinds := '{inserted}';
        ELSIF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
            key := OLD;
            key.revision := OLD.revision OPERATOR(pg_catalog.+)
                (OLD.revision OPERATOR(pg_catalog.<) 9223372036854775807)::pg_catalog.int4;
            kinds := '{deleted}';
        ELSIF pg_catalog.record_image_ne(ROW(OLD.tenant_id, OLD.id), ROW(NEW.tenant_id, NEW.id)) THEN
            -- Another name is another key to who follows. The old one ends, with the state that it had.
            key := OLD;
            key.revision := NEW.revision;
            kinds := '{deleted,inserted}';
        ELSE
            key := NEW;
            -- The old row, in which all that is told already becomes new.
            untold := OLD;
            untold.revision := NEW.revision;
            untold.last_used_at := NEW.last_used_at;
            untold.total_requests := NEW.total_requests;
            IF OLD.is_frozen OR NEW.is_frozen THEN
                IF pg_catalog.record_image_ne(
                    ROW(OLD.is_frozen, OLD.frozen_at, OLD.frozen_by, OLD.freeze_reason),
                    ROW(NEW.is_frozen, NEW.frozen_at, NEW.frozen_by, NEW.freeze_reason)
                ) THEN
                    kinds := pg_catalog.array_append(kinds, CASE WHEN NEW.is_frozen THEN 'frozen' ELSE 'unfrozen' END);
                END IF;
                untold.is_frozen := NEW.is_frozen;
                untold.frozen_at := NEW.frozen_at;
                untold.frozen_by := NEW.frozen_by;
                untold.freeze_reason := NEW.freeze_reason;
            END IF;
            IF NEW.status::pg_catalog.text OPERATOR(pg_catalog.=) 'revoked' THEN
                IF pg_catalog.record_image_ne(
                    ROW(OLD.status, OLD.revoked_at, OLD.revoked_reason),
                    ROW(NEW.status, NEW.revoked_at, NEW.revoked_reason)
                ) THEN
                    kinds := pg_catalog.array_append(kinds, 'revoked');
                END IF;
                untold.status := NEW.status;
                untold.revoked_at := NEW.revoked_at;
                untold.revoked_reason := NEW.revoked_reason;
            END IF;
            IF pg_catalog.record_image_ne(ROW(OLD.expires_at), ROW(NEW.expires_at)) THEN
                kinds := pg_catalog.array_append(kinds, 'expiry_set');
                untold.expires_at := NEW.expires_at;
            END IF;
            IF pg_catalog.cardinality(kinds) OPERATOR(pg_catalog.=) 0 THEN
                kinds := '{changed}';
            ELSIF pg_catalog.record_image_ne(untold, NEW) THEN
                SELECT pg_catalog.json_object_agg(a.attname, NULL::pg_catalog.text) INTO ignored
                FROM pg_catalog.pg_attribute AS a
                JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
                WHERE a.attrelid OPERATOR(pg_catalog.=) TG_RELID
                    AND a.attnum OPERATOR(pg_catalog.>) 0
                    AND NOT a.attisdropped
                    AND (
                        (
                            a.attgenerated OPERATOR(pg_catalog.<>) ''
                            AND t.typtype OPERATOR(pg_catalog.<>) 'd'
                        )
                        OR (
                            a.atttypid OPERATOR(pg_catalog.=) ANY (ARRAY[
                                'pg_catalog.timestamptz'::pg_catalog.regtype, 'pg_catalog.timestamp'::pg_catalog.regtype,
                                'pg_catalog.date'::pg_catalog.regtype
                            ]::pg_catalog.oid[])
                            AND a.attname OPERATOR(pg_catalog.<>) ALL (
                                '{created_at,frozen_at,revoked_at,expires_at}'::pg_catalog.name[]
                            )
                        )
                    );
                IF pg_catalog.record_image_ne(
                    pg_catalog.json_populate_record(untold, ignored), pg_catalog.json_populate_record(NEW, ignored)
                ) THEN
                    kinds := pg_catalog.array_append(kinds, 'changed');
                END IF;
            END IF;
        END IF;

        FOREACH kind IN ARRAY kinds LOOP
            IF kind OPERATOR(pg_catalog.=) 'inserted' THEN
                key := NEW;
                given_at := NEW.created_at;
            ELSIF kind OPERATOR(pg_catalog.=) 'frozen' THEN
                given_at := key.frozen_at;
                reason := key.freeze_reason;
            ELSIF kind OPERATOR(pg_catalog.=) 'revoked' THEN
                given_at := key.revoked_at;
                reason := key.revoked_reason;
            ELSE
                given_at := NULL;
                reason := NULL;
            END IF;
            IF TG_TABLE_SCHEMA OPERATOR(pg_catalog.=) %1$L THEN
                INSERT INTO %1$I.api_key_events
                    (tenant_id, key_id, revision, kind, at, actor, reason, status, is_frozen, expires_at)
                VALUES (
                    key.tenant_id, key.id, key.revision, kind, coalesce(given_at, pg_catalog.now()),
                    CASE WHEN kind OPERATOR(pg_catalog.=) 'frozen' THEN key.frozen_by END, reason,
                    key.status, key.is_frozen, key.expires_at
                );
            ELSE
                EXECUTE pg_catalog.format(
                    'INSERT INTO %%I.api_key_events
                         (tenant_id, key_id, revision, kind, at, actor, reason, status, is_frozen, expires_at)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)',
                    TG_TABLE_SCHEMA
                ) USING
                    key.tenant_id, key.id, key.revision, kind, coalesce(given_at, pg_catalog.now()),
                    CASE WHEN kind OPERATOR(pg_catalog.=) 'frozen' THEN key.frozen_by END, reason,
                    key.status, key.is_frozen, key.expires_at;
            END IF;
        END LOOP;
        RETURN NULL;
    END
    $fn$
    $ddl$, home);

    -- TRUNCATE is recorded and not refused, so that the service can still empty its table. It fails if rows could be
    -- missed: if the snapshot may be older than the lock, and if a policy hides rows.
    EXECUTE pg_catalog.format($ddl$
    CREATE OR REPLACE FUNCTION %1$I.api_keys_tell_truncated() RETURNS pg_catalog.trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $fn$
    BEGIN
        IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
            RAISE EXCEPTION 'TRUNCATE of api_keys is recorded in READ COMMITTED only: begin the transaction so, or DELETE';
        END IF;
        EXECUTE pg_catalog.format(
            'INSERT INTO %%1$I.api_key_events (tenant_id, key_id, revision, kind, at, status, is_frozen, expires_at)
             SELECT tenant_id, id,
                 revision OPERATOR(pg_catalog.+) (revision OPERATOR(pg_catalog.<) 9223372036854775807)::pg_catalog.int4,
                 ''deleted'', pg_catalog.now(), status, is_frozen, expires_at
             FROM ONLY %%1$I.%%2$I',
            TG_TABLE_SCHEMA, TG_TABLE_NAME
        );
        RETURN NULL;
    END
    $fn$
    $ddl$, home);

    EXECUTE pg_catalog.format($ddl$
    CREATE OR REPLACE FUNCTION %1$I.api_key_events_notify() RETURNS pg_catalog.trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $fn$
    BEGIN
        PERFORM pg_catalog.pg_notify('api_key_events', '');
        RETURN NULL;
    END
    $fn$
    $ddl$, home);

    -- A role with EXECUTE on a trigger function could attach it to its own table.
    EXECUTE pg_catalog.format(
        'REVOKE ALL ON FUNCTION %1$I.api_keys_compare(), %1$I.api_keys_number(), %1$I.api_keys_tell(),
             %1$I.api_keys_tell_truncated(), %1$I.api_key_events_notify() FROM PUBLIC',
        home
    );
    FOREACH name IN ARRAY functions LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %I.%I() OWNER TO %s', home, name, owner);
    END LOOP;

    -- Triggers fire in the order of their names. "~" sorts last, so the service's BEFORE triggers have already changed
    -- the row.
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER "~api_keys_compare" BEFORE UPDATE ON %1$I.api_keys FOR EACH ROW
         EXECUTE FUNCTION %1$I.api_keys_compare()',
        home
    );
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER "~api_keys_number" BEFORE INSERT ON %1$I.api_keys FOR EACH ROW
         EXECUTE FUNCTION %1$I.api_keys_number()',
        home
    );
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER "~api_keys_number_update" BEFORE UPDATE ON %1$I.api_keys FOR EACH ROW
         WHEN (OLD.revision OPERATOR(pg_catalog.<>) NEW.revision)
         EXECUTE FUNCTION %1$I.api_keys_number()',
        home
    );
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER "~api_keys_tell" AFTER INSERT OR DELETE ON %1$I.api_keys FOR EACH ROW
         EXECUTE FUNCTION %1$I.api_keys_tell()',
        home
    );
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER "~api_keys_tell_update" AFTER UPDATE ON %1$I.api_keys FOR EACH ROW
         WHEN (OLD.revision OPERATOR(pg_catalog.<>) NEW.revision)
         EXECUTE FUNCTION %1$I.api_keys_tell()',
        home
    );
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER "~api_keys_tell_truncated" BEFORE TRUNCATE ON %1$I.api_keys FOR EACH STATEMENT
         EXECUTE FUNCTION %1$I.api_keys_tell_truncated()',
        home
    );
    -- Disabled, because commits that notify wait for each other: see docs/events.md.
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE TRIGGER api_key_events_notify AFTER INSERT ON %1$I.api_key_events FOR EACH STATEMENT
         EXECUTE FUNCTION %1$I.api_key_events_notify()',
        home
    );
    EXECUTE pg_catalog.format('ALTER TABLE %I.api_key_events DISABLE TRIGGER api_key_events_notify', home);
END
$do$;
