//! Finds out why the server refused a new key, and which key of a batch it was. Checks before a statement is sent are
//! in `require.rs`.

use diesel::result::DatabaseErrorKind::{CheckViolation, ForeignKeyViolation, UniqueViolation};
use diesel::result::Error as DieselError;

use super::KeyHash;
use crate::error::{is_constraint, violated_constraint};
use crate::{Error, KeyId, TenantId};

/// The values of a new key for which the server may refuse it.
pub(super) struct Candidate<'a> {
    pub(super) tenant_id: &'a TenantId,
    pub(super) id: &'a KeyId,
    pub(super) user_id: Option<&'a str>,
    pub(super) key_hash: &'a KeyHash,
}

/// Returns the error for the candidate that the server refused. `None` if the error has another cause.
pub(super) fn refusal(error: &DieselError, candidates: &[Candidate<'_>]) -> Option<Error> {
    let DieselError::DatabaseError(kind, said) = error else { return None };
    let constraint = violated_constraint(&**said)?;
    let details = said.details().unwrap_or_default();
    // The details have the form `(column)=(value)` in every language of the server.
    let refused = |is_named: &dyn Fn(&Candidate<'_>) -> bool| match candidates {
        [only] => Some(only),
        several => several.iter().find(|candidate| is_named(candidate)),
    };
    let with = |column: &str, value: &str| details.contains(&format!("({column})=({value})"));
    // The existing service may have given its constraints other names.
    let is_on = |column: &str| violated_columns(details) == Some(column);

    match kind {
        UniqueViolation if is_constraint(constraint, "api_keys_pkey") || is_on("id") => {
            refused(&|key| with("id", key.id.as_str())).map(|key| Error::KeyExists(key.id.clone()))
        }
        UniqueViolation if is_constraint(constraint, "uq_api_keys_key_hash") || is_on("key_hash") => {
            refused(&|key| with("key_hash", key.key_hash.as_str()))
                .map(|key| Error::KeyHashExists(key.id.clone()))
        }
        ForeignKeyViolation if constraint.contains("user_id") || is_on("user_id") => {
            let key = refused(&|key| key.user_id.is_some_and(|user_id| with("user_id", user_id)))?;
            key.user_id.map(|user_id| Error::UnknownUser(user_id.into()))
        }
        ForeignKeyViolation if constraint.contains("tenant_id") || is_on("tenant_id") => {
            refused(&|key| with("tenant_id", key.tenant_id.as_str()))
                .map(|key| Error::UnknownTenant(key.tenant_id.clone()))
        }
        // The existing service has a `CHECK` on the form of a tenant's id. An id of another form has no tenant.
        CheckViolation if constraint.contains("tenant_id") => {
            refused(&|key| details.contains(&format!("({}, {}, ", key.id, key.tenant_id)))
                .map(|key| Error::UnknownTenant(key.tenant_id.clone()))
        }
        _ => None,
    }
}

/// The columns whose values are not unique, as the server names them before it quotes the values.
fn violated_columns(details: &str) -> Option<&str> {
    Some(details.split_once('(')?.1.split_once(")=(")?.0)
}
