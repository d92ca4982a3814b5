//! The list of migrations that `build.rs` writes, with their SQL. The index of a concurrent step is read from its SQL.

use std::fmt::Write;

/// One migration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The name of its folder: the version, `_` and the title.
    pub(crate) name: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) in_transaction: bool,
}

/// All migrations, oldest first.
pub(crate) const STEPS: &[Step] = include!(concat!(env!("OUT_DIR"), "/steps.rs"));

impl Step {
    /// The version in Diesel's table of applied migrations.
    pub(crate) fn version(&self) -> String {
        self.name.split_once('_').map_or(self.name, |(version, _)| version).replace('-', "")
    }

    /// The name without its version.
    pub(crate) fn title(&self) -> &'static str {
        self.name.split_once('_').map_or(self.name, |(_, title)| title)
    }

    /// The index that this step builds concurrently, if it builds one.
    pub(crate) fn index(&self) -> Option<Index> {
        Index::parse(self.up)
    }
}

/// The index that a migration builds. The migration writes the definition in the form of `pg_get_indexdef`, but with
/// qualified names, because it may run under any search path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) is_unique: bool,
    pub(crate) name: String,
    pub(crate) table: String,
    /// The rest of the definition, from `USING` on, as `pg_get_indexdef` prints it.
    pub(crate) definition: String,
}

impl Index {
    fn parse(sql: &str) -> Option<Self> {
        let code: Vec<_> = sql.lines().filter(|line| !line.starts_with("--")).collect();
        let code = code.join(" ");
        let words: Vec<_> = code.trim_end().trim_end_matches(';').split_whitespace().collect();
        let (is_unique, words) = match words.as_slice() {
            ["CREATE", "INDEX", "CONCURRENTLY", rest @ ..] => (false, rest),
            ["CREATE", "UNIQUE", "INDEX", "CONCURRENTLY", rest @ ..] => (true, rest),
            _ => return None,
        };
        let [name, "ON", table, definition @ ..] = words else { return None };
        Some(Self {
            is_unique,
            name: (*name).to_owned(),
            table: (*table).to_owned(),
            definition: unqualified(&definition.join(" ")),
        })
    }

    /// The definition as it is compared with that of an existing index: without the cast of a column to text, which
    /// PostgreSQL shows for `varchar` only.
    pub(crate) fn comparable(&self) -> String {
        let mut parts = self.definition.split(")::text");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |before, after| match before.rsplit_once('(') {
            Some((rest, column))
                if column.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') =>
            {
                format!("{rest}{column}{after}")
            }
            _ => format!("{before})::text{after}"),
        })
    }

    /// The statement that builds the index. `how` is `CONCURRENTLY` or empty, and `only` is `ONLY` or empty.
    pub(crate) fn create(&self, how: &str, name: &str, only: &str, table: &str) -> String {
        let mut sql = String::from("CREATE ");
        for word in [if self.is_unique { "UNIQUE" } else { "" }, "INDEX", how, name, "ON", only, table] {
            if !word.is_empty() {
                let _ = write!(sql, "{word} ");
            }
        }
        sql + &self.definition
    }
}

/// The definition without `pg_catalog`, which `pg_get_indexdef` leaves out.
fn unqualified(definition: &str) -> String {
    let parts = definition.split("OPERATOR(pg_catalog.").enumerate();
    let operators: String =
        parts.map(|(nth, part)| if nth == 0 { part.into() } else { part.replacen(')', "", 1) }).collect();
    operators.replace("pg_catalog.", "")
}

/// An SQL identifier in double quotes.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::{Index, STEPS, quoted};

    #[test]
    fn every_concurrent_statement_is_understood_and_alone_in_its_migration() {
        for step in STEPS {
            let builds = step.up.matches("INDEX CONCURRENTLY").count();
            assert_eq!(builds, usize::from(step.index().is_some()), "{}", step.name);
            assert!(step.index().is_none_or(|index| index.definition.starts_with("USING ")), "{}", step.name);
            assert_eq!(step.in_transaction, builds == 0, "{}", step.name);
        }
    }

    #[test]
    fn versions_and_titles_name_one_step_each() {
        for (index, step) in STEPS.iter().enumerate() {
            for other in &STEPS[index + 1..] {
                assert!(step.version() < other.version(), "{}", step.name);
                assert_ne!(step.title(), other.title());
            }
        }
    }

    #[test]
    fn an_index_gives_the_statement_that_described_it() {
        let sql = "-- Why.\nCREATE UNIQUE INDEX CONCURRENTLY i ON t USING btree (a pg_catalog.text_pattern_ops)\n    \
                   INCLUDE (b) WHERE (a OPERATOR(pg_catalog.<>) ''::pg_catalog.text);\n";
        let index = Index::parse(sql).unwrap();
        assert_eq!(
            index.create("CONCURRENTLY", &index.name, "", &index.table),
            "CREATE UNIQUE INDEX CONCURRENTLY i ON t USING btree (a text_pattern_ops) INCLUDE (b) WHERE (a <> ''::text)"
        );
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        let cast = Index {
            definition: "USING btree (a) WHERE (((b)::text <> 'x'::text) OR (f(a, b)::text = ''::text))"
                .into(),
            ..index
        };
        assert_eq!(
            cast.comparable(),
            "USING btree (a) WHERE ((b <> 'x'::text) OR (f(a, b)::text = ''::text))"
        );
    }
}
