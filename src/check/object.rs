//! An object of the schema as it was found, and how it is matched with an expected one.

use diesel::prelude::*;
use diesel::sql_types::Text;

use super::{Expected, column};

/// The step that is skipped if a view, a policy or the like depends on the column.
pub(super) const WIDENING: &str = "widen_key_prefix";

/// An object of the schema.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub(crate) struct Object {
    #[diesel(sql_type = Text)]
    pub(crate) kind: String,
    #[diesel(sql_type = Text)]
    pub(crate) table: String,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) definition: String,
    #[diesel(sql_type = Text)]
    pub(crate) flaw: String,
}

impl Object {
    pub(super) fn is_partitioned(&self) -> bool {
        self.kind == "table" && self.definition == "p"
    }
}

pub(super) fn is_table(object: &Object) -> bool {
    matches!(object.definition.as_str(), "r" | "p")
}

pub(super) fn is_named(expected: &Expected, object: &Object) -> bool {
    object.kind == expected.kind
        && object.name == expected.name
        && (object.table == expected.table || expected.kind == "index")
}

/// Whether the column holds less than the step gives it.
pub(super) fn prefix_is_narrow(expected: &[Expected], objects: &[Object]) -> bool {
    expected.iter().filter(|expected| expected.defined_by == WIDENING).any(|expected| {
        objects.iter().filter(|object| is_named(expected, object)).any(|object| {
            column::difference(expected.definition, &object.definition) == Some(column::Difference::Narrow)
        })
    })
}
