-- A validated constraint says nothing that is not true of the rows: there is nothing to reverse.
SELECT 1;
