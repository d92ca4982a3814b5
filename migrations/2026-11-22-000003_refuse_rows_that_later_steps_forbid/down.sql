-- Nothing was changed, so there is nothing to reverse.
SELECT 1;
