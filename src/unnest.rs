//! A macro for inserting a batch of rows in one statement, with one array per column. The columns of a table are in the
//! file of the method that inserts its rows.
//!
//! Diesel's own batch insert binds each value of each row. A statement takes at most 65,535 bind values, and each number
//! of rows is another statement. Here, the arrays are in subselects, where the planner does not count their elements. So
//! the server keeps one plan for batches of any size.

/// Defines a part of a statement: `INSERT INTO table (columns) SELECT columns FROM unnest(arrays)`.
///
/// Each line holds a column, its SQL type, the Rust type of its values, and the expression of a row's value.
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
