//! Builds the index of a partitioned table: first on the parent alone, then concurrently on each partition, and
//! attaches the parts.
//!
//! PostgreSQL cannot build such an index concurrently in one statement. On partitions that are created after the
//! parent's index, PostgreSQL creates the index itself.

use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Oid, Text};

use super::index::{Builder, Table};
use crate::Result;
use crate::steps::quoted;

/// The longest name that PostgreSQL keeps.
const LONGEST_NAME: usize = 63;

/// A partition that lacks its part of the parent's index.
#[derive(Debug, QueryableByName)]
struct MissingPart {
    #[diesel(embed)]
    table: Table,
    /// A foreign table cannot have an index.
    #[diesel(sql_type = Bool)]
    is_foreign: bool,
    /// A valid index with the same definition that is not attached to another index.
    #[diesel(sql_type = Nullable<Text>)]
    unattached_index: Option<String>,
}

/// A partition and its part of the parent's index. Another session may have attached a part that is invalid, or that
/// lacks parts itself.
#[derive(Debug, QueryableByName)]
struct Part {
    #[diesel(embed)]
    table: Table,
    #[diesel(sql_type = Text)]
    index: String,
    #[diesel(sql_type = Bool)]
    is_valid: bool,
}

impl Builder<'_, '_, '_> {
    pub(super) fn ensure_on_parent(&mut self, table: &Table, name: &str) -> Result<()> {
        match self.existing(table, name)? {
            None => {
                let sql = self.index.create("", &quoted(name), "ONLY", &table.qualified());
                self.run_with_short_lock_timeout(table, &sql)?;
            }
            Some(existing) if existing.is(self.index, table) => {}
            Some(_) => return Err(self.taken(table, name)),
        }
        // A partition may be created or attached in the meantime, so the list is read until it is empty.
        while let Some(MissingPart { table: partition, unattached_index, .. }) =
            self.next_missing_part(table, name)?
        {
            let part = unattached_index.unwrap_or_else(|| part_name(name, &partition.name));
            match self.ensure_on(&partition, &part) {
                Ok(()) => {}
                // The partition was dropped in the meantime.
                Err(_) if Table::find(self.conn, &partition.schema, &partition.name)?.is_none() => continue,
                Err(error) => return Err(error),
            }
            let attach = format!(
                "ALTER INDEX {}.{} ATTACH PARTITION {}.{}",
                quoted(&table.schema),
                quoted(name),
                quoted(&partition.schema),
                quoted(&part)
            );
            self.run_with_short_lock_timeout(&partition, &attach)?;
        }
        for Part { table: partition, index, is_valid } in self.attached_parts(table, name)? {
            if partition.is_partitioned {
                self.ensure_on_parent(&partition, &index)?;
            } else if !is_valid {
                // The index of a parent cannot lose a part, so it cannot be dropped.
                let index = format!("{}.{}", quoted(&partition.schema), quoted(&index));
                let sql = format!("REINDEX INDEX CONCURRENTLY {index}");
                self.watch.run_with_long_lock_timeout(self.conn, partition.oid, &sql)?;
            }
        }
        Ok(())
    }

    fn attached_parts(&mut self, table: &Table, name: &str) -> Result<Vec<Part>> {
        Ok(diesel::sql_query(include_str!("partitions/attached_parts.sql"))
            .bind::<Text, _>(&table.schema)
            .bind::<Text, _>(name)
            .load(self.conn)?)
    }

    fn next_missing_part(&mut self, table: &Table, name: &str) -> Result<Option<MissingPart>> {
        let lacking: Vec<MissingPart> = diesel::sql_query(include_str!("partitions/missing_parts.sql"))
            .bind::<Oid, _>(table.oid)
            .bind::<Text, _>(&table.schema)
            .bind::<Text, _>(name)
            .bind::<Bool, _>(self.index.is_unique)
            .bind::<Text, _>(self.index.comparable())
            .load(self.conn)?;
        Ok(lacking.into_iter().find(|partition| !partition.is_foreign))
    }
}

/// The name of the index on a partition. It is always the same, so that the next call finds an interrupted build.
fn part_name(index: &str, partition: &str) -> String {
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
    use super::{LONGEST_NAME, part_name};

    #[test]
    fn the_name_of_a_part_is_short_enough_and_tells_partitions_apart() {
        assert_eq!(part_name("ix", "p1"), "ix_p1");
        let long = "ü".repeat(31);
        let names = ["1", "2"].map(|end| part_name("ix_proxy_calls_key_usage", &format!("{long}{end}")));
        assert!(names.iter().all(|name| name.len() <= LONGEST_NAME));
        assert_ne!(names[0], names[1]);
        assert_eq!(part_name("ix", &"p".repeat(70)), part_name("ix", &"p".repeat(70)));
    }
}
