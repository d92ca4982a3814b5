//! Removes the values of rows, which may be hashes, from the server's errors, and reads the violated constraint from
//! them.

use diesel::result::{DatabaseErrorInformation, Error};

/// Removes the `DETAIL` from an error of the server, because it quotes the values of a refused row. The other fields
/// hold no values.
pub(crate) fn without_values(error: Error) -> Error {
    match error {
        Error::DatabaseError(kind, said) => Error::DatabaseError(kind, Box::new(WithoutDetail::new(&*said))),
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => Error::RollbackErrorOnCommit {
            rollback_error: Box::new(without_values(*rollback_error)),
            commit_error: Box::new(without_values(*commit_error)),
        },
        error => error,
    }
}

struct WithoutDetail {
    message: String,
    hint: Option<String>,
    table: Option<String>,
    column: Option<String>,
    constraint: Option<String>,
    position: Option<i32>,
}

impl WithoutDetail {
    fn new(said: &(dyn DatabaseErrorInformation + Send + Sync)) -> Self {
        Self {
            message: said.message().into(),
            hint: said.hint().map(Into::into),
            table: said.table_name().map(Into::into),
            column: said.column_name().map(Into::into),
            constraint: violated_constraint(said).map(Into::into),
            position: said.statement_position(),
        }
    }
}

impl DatabaseErrorInformation for WithoutDetail {
    fn message(&self) -> &str {
        &self.message
    }

    fn details(&self) -> Option<&str> {
        None
    }

    fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    fn table_name(&self) -> Option<&str> {
        self.table.as_deref()
    }

    fn column_name(&self) -> Option<&str> {
        self.column.as_deref()
    }

    fn constraint_name(&self) -> Option<&str> {
        self.constraint.as_deref()
    }

    fn statement_position(&self) -> Option<i32> {
        self.position
    }
}

/// Returns the constraint that refused a row. A Citus coordinator passes on the message of a shard's server but not its
/// fields, so the name is then read from the message.
pub(crate) fn violated_constraint(said: &(dyn DatabaseErrorInformation + Send + Sync)) -> Option<&str> {
    let in_words = || said.message().split_once(" constraint \"")?.1.strip_suffix('"');
    said.constraint_name().or_else(in_words)
}

/// Whether `name` is the name of a constraint, or of its copy on a shard, such as `api_keys_pkey_102008`.
pub(crate) fn is_constraint(name: &str, constraint: &str) -> bool {
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix(constraint)
        .is_some_and(|suffix| suffix.is_empty() || suffix.strip_prefix('_').is_some_and(is_number))
}

#[cfg(test)]
mod tests {
    use super::is_constraint;

    #[test]
    fn a_constraint_is_recognised_with_and_without_the_number_of_a_shard() {
        for name in ["api_keys_pkey", "api_keys_pkey_102008", "api_keys_pkey_0"] {
            assert!(is_constraint(name, "api_keys_pkey"), "{name}");
        }
        for name in [
            "",
            "api_keys",
            "api_keys_pkey_",
            "api_keys_pkey1",
            "api_keys_pkey_1a",
            "my_api_keys_pkey",
            "api_keys_pkey_-1",
        ] {
            assert!(!is_constraint(name, "api_keys_pkey"), "{name}");
        }
    }
}
