//! What `check` and `migrate` both know: the migrations, the schema they are for, which of them are recorded, and
//! the session as it was found. Nothing here changes the schema.

mod home;
mod outset;
pub(crate) mod records;
mod step;

pub(crate) use self::home::{Found, find, schema_of};
pub(crate) use self::outset::{Outset, SETTINGS, is_english, patiently};
pub(crate) use self::records::Records;
pub(crate) use self::step::{Index, STEPS, Step, quoted};
