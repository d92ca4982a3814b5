//! An index on a partitioned table: on the parent alone, concurrently on each partition, then attached.
//!
//! The server cannot build one concurrently by itself. Partitions that are made once the parent has its
//! index get theirs from the server.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Oid, Text};

use super::index::{Existing, Table, ensure_on, taken};
use super::watch::Watch;
use crate::Result;
use crate::steps::{Index, quoted};

/// The longest name that PostgreSQL keeps.
const LONGEST_NAME: usize = 63;

/// A partition that lacks its part of the parent's index.
#[derive(Debug, QueryableByName)]
struct Lacking {
    #[diesel(embed)]
    table: Table,
    /// A foreign table takes no index.
    #[diesel(sql_type = Bool)]
    is_foreign: bool,
    /// A valid index of the same definition that is attached to nothing.
    #[diesel(sql_type = Nullable<Text>)]
    fitting: Option<String>,
}

pub(super) fn ensure(
    conn: &mut PgConnection,
    watch: &mut Watch<'_, '_>,
    table: &Table,
    name: &str,
    index: &Index,
) -> Result<()> {
    match Existing::find(conn, &table.schema, name)? {
        None => {
            let sql = index.create("", &quoted(name), "ONLY", &table.qualified());
            in_short_locks(conn, watch, table, &sql)?;
        }
        Some(existing) if existing.is(index, table) => {}
        Some(_) => return Err(taken(watch, table, name, index)),
    }
    // A partition may be made or attached meanwhile, so the list is read until nothing is left on it.
    while let Some(partition) = next_lacking(conn, table, name, index)? {
        let part = partition.fitting.unwrap_or_else(|| name_of_part(name, &partition.table.name));
        let built = if partition.table.is_partitioned {
            ensure(conn, watch, &partition.table, &part, index)
        } else {
            ensure_on(conn, watch, &partition.table, &part, index)
        };
        match built {
            Ok(()) => {}
            Err(_) if Table::find(conn, &partition.table.schema, &partition.table.name)?.is_none() => {
                continue;
            }
            Err(error) => return Err(error),
        }
        let attach = format!(
            "ALTER INDEX {}.{} ATTACH PARTITION {}.{}",
            quoted(&table.schema),
            quoted(name),
            quoted(&partition.table.schema),
            quoted(&part)
        );
        in_short_locks(conn, watch, &partition.table, &attach)?;
    }
    Ok(())
}

pub(super) fn in_short_locks(
    conn: &mut PgConnection,
    watch: &mut Watch<'_, '_>,
    table: &Table,
    sql: &str,
) -> Result<()> {
    watch.with_short_locks(conn, &[table.oid], |conn| {
        conn.transaction(|conn| {
            conn.batch_execute("SET LOCAL lock_timeout = '1s'")?;
            conn.batch_execute(sql)?;
            Ok(())
        })
    })
}

fn next_lacking(
    conn: &mut PgConnection,
    table: &Table,
    name: &str,
    index: &Index,
) -> Result<Option<Lacking>> {
    let lacking: Vec<Lacking> = diesel::sql_query(include_str!("partitions/lacking.sql"))
        .bind::<Oid, _>(table.oid)
        .bind::<Text, _>(&table.schema)
        .bind::<Text, _>(name)
        .bind::<Bool, _>(index.is_unique)
        .bind::<Text, _>(&index.definition)
        .load(conn)?;
    Ok(lacking.into_iter().find(|partition| !partition.is_foreign))
}

/// The name of a partition's part: always the same one, so that an interrupted build is found again.
fn name_of_part(index: &str, partition: &str) -> String {
    let name = format!("{index}_{partition}");
    if name.len() <= LONGEST_NAME {
        return name;
    }
    // FNV-1a, because the standard library's hasher may differ from one release to the next.
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let kept = (0..=LONGEST_NAME - 9).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    format!("{}_{hash:08x}", &name[..kept])
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_NAME, name_of_part};

    #[test]
    fn the_name_of_a_part_is_short_enough_and_tells_partitions_apart() {
        assert_eq!(name_of_part("ix", "p1"), "ix_p1");
        let long = "ü".repeat(31);
        let names = ["1", "2"].map(|end| name_of_part("ix_proxy_calls_key_usage", &format!("{long}{end}")));
        assert!(names.iter().all(|name| name.len() <= LONGEST_NAME));
        assert_ne!(names[0], names[1]);
        assert_eq!(name_of_part("ix", &"p".repeat(70)), name_of_part("ix", &"p".repeat(70)));
    }
}
