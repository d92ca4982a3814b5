-- The progress of the index build of a session.
SELECT phase,
    CASE WHEN blocks_total OPERATOR(pg_catalog.>) 0 THEN blocks_done ELSE tuples_done END AS done,
    CASE WHEN blocks_total OPERATOR(pg_catalog.>) 0 THEN blocks_total ELSE tuples_total END AS total
FROM pg_catalog.pg_stat_progress_create_index
WHERE pid OPERATOR(pg_catalog.=) $1 AND phase IS NOT NULL
