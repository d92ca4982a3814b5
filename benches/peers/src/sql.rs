//! This crate's statements, from the files that its tests compare with the sent SQL. All contenders send the same SQL,
//! so the benchmark compares clients.

use std::sync::LazyLock;

pub struct Statement {
    /// `PREPARE <name> (<types>) AS <sql>`.
    pub prepare: &'static str,
    pub name: &'static str,
    pub types: Vec<&'static str>,
    pub sql: &'static str,
}

fn of(file: &'static str) -> Statement {
    let (prepare, _) = file.split_once(";\n\nEXPLAIN").expect("how to explain it");
    let (head, sql) = prepare.split_once(" AS\n").expect("a statement");
    let (name, types) = head.trim_start_matches("PREPARE ").split_once(" (").expect("types");
    Statement { prepare, name, types: types.trim_end_matches(')').split(", ").collect(), sql }
}

macro_rules! statements {
    ($($name:ident = $file:literal;)*) => {$(
        pub static $name: LazyLock<Statement> =
            LazyLock::new(|| of(include_str!(concat!("../../../tests/it/sql/", $file, ".sql"))));
    )*};
}

statements! {
    ONE_KEY = "fetch_key_by_id";
    PAGE = "fetch_keys";
    PAGE_WITH_USAGE = "fetch_keys_with_usage";
    COUNT = "count_keys";
    COUNT_UP_TO = "count_keys_up_to";
    USAGE = "fetch_key_usage";
    SERIES = "fetch_key_usage_series";
    LOCK = "fetch_key_for_update";
    FREEZE = "update_key_frozen";
    UPDATE = "update_key";
    BY_PREFIX = "fetch_keys_by_prefix";
    BY_PREFIX_OF_ANY_TENANT = "fetch_keys_of_any_tenant_by_prefix";
    RECORD_USES = "record_key_uses";
    TRY_RECORD_USES = "try_record_key_uses";
}
