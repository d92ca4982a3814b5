//! Names that a pending step needs and another object has.

use super::super::Effect;
use super::super::facts::FRONTIER;
use super::{Verdict, View};
use crate::check::Expected;
use crate::steps::quoted;

pub(super) fn judge(view: &View<'_>, verdict: &mut Verdict) {
    let tables = view.facts.expected.iter().filter(|expected| expected.kind == "table");
    for table in tables.filter(|table| will_be_created(view, table)) {
        for expected in view.facts.expected.iter().filter(|expected| is_created_with(expected, table)) {
            refuse(view, expected.name, verdict);
        }
        if table.name == "usage_retention" {
            refuse(view, FRONTIER, verdict);
        }
    }
}

/// A view or a foreign table of the name is reported as a table of the wrong kind.
fn will_be_created(view: &View<'_>, table: &Expected) -> bool {
    view.is_pending(table.created_by)
        && !view.home.objects.iter().any(|object| object.kind == "table" && object.name == table.name)
}

/// Whether the step that creates the table also gives this object its name.
fn is_created_with(expected: &Expected, table: &Expected) -> bool {
    expected.is_relation() && expected.table == table.name && expected.created_by == table.created_by
}

fn refuse(view: &View<'_>, name: &str, verdict: &mut Verdict) {
    for taken in view.home.named.iter().filter(|taken| taken.name == name) {
        verdict.add(
            Effect::BlocksMigration,
            format!("name {name}"),
            format!("the {} of this name is not the crate's, and a migration needs the name", taken.kind),
            format!(
                "Rename it: ALTER {} {}.{} RENAME TO another name",
                taken.kind.to_uppercase(),
                view.home.session.quoted_schema,
                quoted(name)
            ),
        );
    }
}
