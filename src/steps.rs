//! Code that `check` and `migrate` share: the migrations, the schema of the tables, the records of applied migrations,
//! and the state of the session. Nothing here changes the schema.

mod home;
mod initial_session;
pub(crate) mod records;
mod step;

pub(crate) use self::home::{Found, find, schema_of};
pub(crate) use self::initial_session::{InitialSession, SETTINGS, is_english, retry_on_timeout};
pub(crate) use self::records::Records;
pub(crate) use self::step::{Index, STEPS, Step, quoted};
