-- Validation changes no data and no definition: there is nothing to revert.
SELECT 1;
