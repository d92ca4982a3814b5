//! Inserting any number of rows in one statement: an array a column. Which columns, and what a row must hold, is said
//! where a table is written.
//!
//! Diesel's own batch insert binds each value of each row, of which a statement takes 65,535, and is prepared anew for
//! every number of rows. The arrays stand in subselects, where the planner does not count their elements, so that one plan
//! is kept for batches of any size.

/// Makes a statement part that inserts rows: `INSERT INTO table (columns) SELECT columns FROM unnest(arrays)`.
///
/// Each line has a column, its SQL type, the Rust type of a value, and the value of a row.
macro_rules! insert_unnested {
    (
        $(#[$doc:meta])*
        $name:ident<$a:lifetime> into $table:literal of $row:ident: $Row:ty {
            $($column:ident: $SqlType:ty, $Value:ty = $value:expr;)*
        }
    ) => {
        $(#[$doc])*
        struct $name<$a> {
            $($column: Vec<$Value>,)*
        }

        impl<$a> $name<$a> {
            fn of(rows: &$a [$Row]) -> Self {
                Self { $($column: rows.iter().map(|$row| -> $Value { $value }).collect(),)* }
            }
        }

        impl diesel::query_builder::QueryFragment<diesel::pg::Pg> for $name<'_> {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::pg::Pg>,
            ) -> diesel::QueryResult<()> {
                out.push_sql(concat!("INSERT INTO \"", $table, "\" ("));
                let columns = [$(concat!("\"", stringify!($column), "\"")),*];
                let columns = columns.join(", ");
                out.push_sql(&columns);
                out.push_sql(") SELECT ");
                out.push_sql(&columns);
                out.push_sql(" FROM unnest((SELECT ");
                let mut separator = "";
                $(
                    out.push_sql(std::mem::replace(&mut separator, "), (SELECT "));
                    out.push_bind_param::<diesel::sql_types::Array<$SqlType>, _>(&self.$column)?;
                )*
                out.push_sql(")) AS \"new\" (");
                out.push_sql(&columns);
                out.push_sql(")");
                Ok(())
            }
        }
    };
}
pub(crate) use insert_unnested;
