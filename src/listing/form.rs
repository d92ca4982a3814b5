//! Types that identify the SQL forms of a list's statement. Their SQL is in `scope.rs` and `start.rs`.
//!
//! With a type, Diesel finds a prepared statement without building its SQL. For a short page, building the SQL would
//! take as long as all other work of the client.

/// The type of the form with number `N`.
pub(super) struct Form<const N: u8>;

/// Evaluates `$send`, in which the type `$This` identifies the form of the scope.
macro_rules! by_scope {
    ($scope:expr, $This:ident => $send:expr) => {
        match $scope {
            Scope::All(_) => {
                type $This = Form<0>;
                $send
            }
            Scope::Shown(_) => {
                type $This = Form<1>;
                $send
            }
            Scope::ShownWithStatus(_) => {
                type $This = Form<2>;
                $send
            }
            Scope::Named(_) => {
                type $This = Form<3>;
                $send
            }
            Scope::OfUser(_) => {
                type $This = Form<4>;
                $send
            }
        }
    };
}

/// Evaluates `$send`, in which the type `$This` identifies the form of the start.
macro_rules! by_start {
    ($start:expr, $This:ident => $send:expr) => {
        match $start {
            Start::Newest => {
                type $This = Form<0>;
                $send
            }
            Start::Skipping(_) => {
                type $This = Form<1>;
                $send
            }
            Start::After(..) => {
                type $This = Form<2>;
                $send
            }
            Start::AfterKey(..) => {
                type $This = Form<3>;
                $send
            }
        }
    };
}

pub(super) use {by_scope, by_start};
