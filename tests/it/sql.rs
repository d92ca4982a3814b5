//! Each statement that the drivers send is in a file of `tests/it/sql`, to be read, and to be run with psql, which
//! explains it. `REGENERATE_SQL=1 cargo test --test it sql::` writes the files.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{env, fs};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use sqlformat::{Dialect, FormatOptions, QueryParams};

use crate::every_method::{Input, METHODS};
use crate::support::prepared::{Prepared, prepared_by};
use crate::support::{KeyRow, migrated};

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/it/sql"].iter().collect()
}

/// The statement as it was sent, except for white space, and the command that explains it.
fn script(name: &str, prepared: &Prepared) -> String {
    let options = FormatOptions {
        dialect: Dialect::PostgreSql,
        max_inline_block: 80,
        max_inline_arguments: Some(100),
        max_inline_top_level: Some(100),
        ..FormatOptions::default()
    };
    let name = name.replace('.', "_");
    let Prepared { sql, types, arguments, .. } = prepared;
    let sql = sqlformat::format(sql, &QueryParams::None, &options);
    // The number in an unused id differs in each run.
    let parts =
        arguments.split("unused ").map(|part| part.trim_start_matches(|digit: char| digit.is_ascii_digit()));
    let arguments = parts.collect::<Vec<_>>().join("unused");
    if types.is_empty() {
        return format!("PREPARE {name} AS\n{sql};\n\nEXPLAIN EXECUTE {name};\n");
    }
    format!("PREPARE {name} ({types}) AS\n{sql};\n\nEXPLAIN EXECUTE {name} ({arguments});\n")
}

#[test]
fn each_statement_equals_its_file_and_can_be_explained() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut expected = BTreeSet::new();
    for method in METHODS {
        let mut sent = conn.test_transaction::<_, diesel::result::Error, _>(|conn| {
            Ok(prepared_by(conn, method, &Input::default()))
        });
        let own = sent.pop().expect("a statement");
        let (script, file) = (script(method.name, &own), format!("{}.sql", method.name));
        conn.batch_execute(&script).unwrap_or_else(|error| panic!("{file}: {error}\n{script}"));
        let path = folder().join(&file);
        if env::var_os("REGENERATE_SQL").is_some() {
            fs::write(&path, &script).unwrap();
        }
        let stands = fs::read_to_string(path).unwrap_or_default();
        assert!(stands == script, "{file} is out of date, see the first lines of sql.rs. It is:\n{script}");
        expected.insert(file);
    }
    let files = fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.collect::<BTreeSet<_>>(), expected, "one file for each statement");
}
