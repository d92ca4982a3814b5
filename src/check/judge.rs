//! Compares the database with what the migrations create, and turns each difference into an obstacle.

mod hindrances;
mod names;
mod objects;
mod rights;
mod surroundings;

use super::facts::{Facts, Home};
use super::object::{WIDENING, is_named, is_table};
use super::{Effect, Expected, Obstacle, Report, column};
use crate::steps::{STEPS, Step};

/// The result of comparing the facts with the expected objects.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// The steps that `migrate` has to do, oldest first.
    pub(crate) pending: Vec<&'static Step>,
    /// The pending steps whose objects all exist although no step is recorded.
    pub(crate) done: Vec<&'static Step>,
    pub(crate) obstacles: Vec<Obstacle>,
}

impl Verdict {
    fn add(
        &mut self,
        effect: Effect,
        name: impl Into<String>,
        why: impl Into<String>,
        action: impl Into<String>,
    ) {
        self.obstacles.push(Obstacle { name: name.into(), why: why.into(), action: action.into(), effect });
    }

    /// Whether a table or a column is not what the crate reads.
    pub(crate) fn has_wrong_tables(&self) -> bool {
        self.obstacles.iter().any(|obstacle| {
            obstacle.effect == Effect::BlocksMigration
                && ["table ", "column ", "name "].iter().any(|kind| obstacle.name.starts_with(kind))
        })
    }

    pub(crate) fn into_report(mut self, facts: &Facts) -> Report {
        self.obstacles.sort_by(|a, b| (a.effect, &a.name).cmp(&(b.effect, &b.name)));
        let is_pending = |step: &Step| self.pending.contains(&step);
        let applied = STEPS.iter().filter(|step| !is_pending(step));
        Report {
            server_version: facts.version.clone(),
            schema: facts.home.as_ref().map(|home| home.schema.clone()),
            applied: applied
                .filter(|step| facts.home.as_ref().is_some_and(|home| home.records.has(step)))
                .map(|step| step.name.to_owned())
                .collect(),
            pending: self.pending.iter().map(|step| step.name.to_owned()).collect(),
            obstacles: self.obstacles,
        }
    }
}

/// The facts and the pending steps, with lookups that the judges share.
struct View<'f> {
    facts: &'f Facts,
    home: &'f Home,
    /// The steps to do or to repeat.
    pending: Vec<&'static Step>,
}

impl View<'_> {
    fn is_pending(&self, title: &str) -> bool {
        self.pending.iter().any(|step| step.title() == title)
    }

    fn qualified(&self, name: &str) -> String {
        format!("{}.{name}", self.home.session.quoted_schema)
    }

    fn has_table(&self, name: &str) -> bool {
        self.home
            .objects
            .iter()
            .any(|object| object.kind == "table" && object.name == name && is_table(object))
    }
}

pub(crate) fn judge(facts: &Facts) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(home) = &facts.home else {
        verdict.pending = STEPS.iter().collect();
        verdict.add(
            Effect::BlocksMigration,
            "search_path",
            "it names no schema that exists and may be used",
            "SET search_path to the schema of the tables",
        );
        return verdict;
    };
    let view = View { facts, home, pending: pending(facts, home) };
    surroundings::judge(&view, &mut verdict);
    objects::judge(&view, &mut verdict);
    rights::judge(&view, &mut verdict);
    names::judge(&view, &mut verdict);
    hindrances::judge(&view, &mut verdict);
    verdict.done = view.pending.iter().copied().filter(|step| is_done(step, facts, home)).collect();
    verdict.pending = view.pending;
    verdict
}

/// Whether the step creates objects, and all of them exist.
fn is_done(step: &Step, facts: &Facts, home: &Home) -> bool {
    let mut made = facts.expected.iter().filter(|expected| expected.created_by == step.title()).peekable();
    made.peek().is_some() && made.all(|expected| expected.may_differ() || is_there(expected, home))
}

/// The steps to do: those that are not recorded, and those that are recorded while their objects are
/// missing, with the steps before them that leave no object.
///
/// The widening is not pending if it is impossible: everything else works without it.
fn pending(facts: &Facts, home: &Home) -> Vec<&'static Step> {
    let leaves_objects =
        |step: &Step| facts.expected.iter().any(|expected| expected.defined_by == step.title());
    let is_missing = |step: &Step| {
        facts.expected.iter().any(|expected| {
            expected.defined_by == step.title()
                && !expected.may_differ()
                && can_be_repaired(expected, facts, home)
                && !is_there(expected, home)
        })
    };
    let mut pending: Vec<&'static Step> = Vec::new();
    for (index, step) in STEPS.iter().enumerate() {
        if step.title() == WIDENING && !home.dependents.is_empty() {
            continue;
        }
        if !home.records.has(step) {
            pending.push(step);
        } else if is_missing(step) {
            let before = STEPS[..index].iter().rev().take_while(|before| !leaves_objects(before));
            let mut again: Vec<_> = before.filter(|before| !pending.contains(before)).collect();
            again.reverse();
            pending.extend(again);
            pending.push(step);
        }
    }
    pending
}

/// Whether repeating the step repairs the object. A step that creates a table does not change one that exists.
fn can_be_repaired(expected: &Expected, facts: &Facts, home: &Home) -> bool {
    let its_table = facts.expected.iter().find(|table| table.kind == "table" && table.name == expected.table);
    its_table.is_none_or(|table| match home.objects.iter().find(|object| is_named(table, object)) {
        Some(object) => is_table(object) && table.created_by != expected.defined_by,
        None => true,
    })
}

/// Whether the object exists as the migrations create it. Flaws that `migrate` cannot repair do not count.
fn is_there(expected: &Expected, home: &Home) -> bool {
    home.objects.iter().filter(|object| is_named(expected, object)).any(|object| match expected.kind {
        "table" => is_table(object),
        "column" => column::fits(expected.definition, &object.definition),
        "index" => {
            object.definition == expected.definition
                && object.table == expected.table
                && object.flaw.is_empty()
        }
        _ => object.definition == expected.definition,
    })
}
