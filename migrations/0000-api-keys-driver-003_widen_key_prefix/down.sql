-- Stays wide: 10 characters would cut prefixes that were written since, and a wider column harms nobody.
SELECT 1;
