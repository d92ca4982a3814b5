-- The column stays wide: 10 characters would cut prefixes that were written since.
SELECT 1;
