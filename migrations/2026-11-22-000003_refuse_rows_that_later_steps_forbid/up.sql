-- Finds rows that a later migration would stumble over, before anything is changed.
--
-- The later steps make created_at NOT NULL and key_hash unique. A row that forbids one of them stops
-- the run here, with the ids of the first such rows. Reads only: nothing waits for it. The hashes
-- themselves stay out of the message.
DO $$
DECLARE
    ids text;
    rows bigint;
BEGIN
    SELECT count(*), string_agg(id, ', ' ORDER BY id) FILTER (WHERE nth <= 5) INTO rows, ids
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS nth FROM api_keys WHERE created_at IS NULL) AS bad;
    IF rows > 0 THEN
        RAISE EXCEPTION 'api_keys has % row(s) with a NULL created_at (first ids: %): set a time on them, then migrate again', rows, ids;
    END IF;

    SELECT count(*), string_agg(id, ', ' ORDER BY id) FILTER (WHERE nth <= 5) INTO rows, ids
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS nth FROM proxy_calls WHERE created_at IS NULL) AS bad;
    IF rows > 0 THEN
        RAISE EXCEPTION 'proxy_calls has % row(s) with a NULL created_at (first ids: %): set a time on them, then migrate again', rows, ids;
    END IF;

    SELECT count(*), string_agg(id, ', ' ORDER BY key_hash, id) FILTER (WHERE nth <= 5) INTO rows, ids
    FROM (
        SELECT id, key_hash, row_number() OVER (ORDER BY key_hash, id) AS nth
        FROM (SELECT id, key_hash, count(*) OVER (PARTITION BY key_hash) AS sharers FROM api_keys) AS hashes
        WHERE sharers > 1
    ) AS bad;
    IF rows > 0 THEN
        RAISE EXCEPTION 'api_keys has % rows that share a key_hash with another (first ids: %): keep one row of each hash, then migrate again', rows, ids;
    END IF;
END
$$;
