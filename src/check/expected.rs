//! The objects that the migrations create in an empty database, one per line of `expected.tsv`. A test writes that file.

use crate::steps::{STEPS, Step};

/// An object that the migrations create.
#[derive(Debug)]
pub(crate) struct Expected {
    /// The title of the step that creates it.
    pub(crate) created_by: &'static str,
    /// The title of the step that gives it the final definition.
    pub(crate) defined_by: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) table: &'static str,
    pub(crate) name: &'static str,
    pub(crate) definition: &'static str,
    /// A trigger that is created disabled. Whether to enable it is the user's choice.
    pub(crate) is_optional: bool,
}

const LINES: &str = include_str!("expected.tsv");

impl Expected {
    pub(crate) fn all() -> Vec<Self> {
        LINES.lines().filter_map(Self::parse).collect()
    }

    fn parse(line: &'static str) -> Option<Self> {
        let optional = line.strip_suffix(", disabled");
        let mut fields = optional.unwrap_or(line).split('\t');
        let mut field = || fields.next();
        Some(Self {
            created_by: field()?,
            defined_by: field()?,
            kind: field()?,
            table: field()?,
            name: field()?,
            definition: field()?,
            is_optional: optional.is_some(),
        })
    }

    /// The names of a kind, without those that are not compared.
    pub(crate) fn names(all: &[Self], kind: &str) -> Vec<&'static str> {
        let is_compared = |expected: &&Self| expected.kind == kind && !expected.may_differ();
        all.iter().filter(is_compared).map(|expected| expected.name).collect()
    }

    /// Whether the existing service may have it in another form: an index or a constraint that the first two
    /// steps create together with the tables.
    pub(crate) fn may_differ(&self) -> bool {
        self.created_by == format!("create_{}", self.table)
            && !matches!(self.kind, "table" | "column")
            && matches!(self.table, "api_keys" | "proxy_calls")
    }

    /// Whether creating it needs a free name among the relations of the schema.
    pub(crate) fn is_relation(&self) -> bool {
        matches!(self.kind, "table" | "index")
            || self.kind == "constraint" && self.definition.starts_with("PRIMARY KEY")
    }

    pub(crate) fn step(&self) -> Option<&'static Step> {
        STEPS.iter().find(|step| step.title() == self.defined_by)
    }
}
