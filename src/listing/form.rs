//! The forms that a statement of a list takes, as types. Diesel finds a prepared statement by a type without building
//! its SQL, which would take as long as the client's other work for a short page. Only here does a scope or a start become
//! a type.

/// One of the forms.
pub(super) struct Nth<const N: u8>;

/// Sends a statement with a type, `$This`, that stands for the form of its scope.
macro_rules! by_scope {
    ($scope:expr, $This:ident => $send:expr) => {
        match $scope {
            Scope::All(_) => {
                type $This = Nth<0>;
                $send
            }
            Scope::Shown(_) => {
                type $This = Nth<1>;
                $send
            }
            Scope::ShownWithStatus(_) => {
                type $This = Nth<2>;
                $send
            }
            Scope::Named(_) => {
                type $This = Nth<3>;
                $send
            }
            Scope::OfUser(_) => {
                type $This = Nth<4>;
                $send
            }
        }
    };
}

/// Sends a statement with a type, `$This`, that stands for the form of its start.
macro_rules! by_start {
    ($start:expr, $This:ident => $send:expr) => {
        match $start {
            Start::Newest => {
                type $This = Nth<0>;
                $send
            }
            Start::Skipping(_) => {
                type $This = Nth<1>;
                $send
            }
            Start::After(..) => {
                type $This = Nth<2>;
                $send
            }
            Start::AfterKey(..) => {
                type $This = Nth<3>;
                $send
            }
        }
    };
}

pub(super) use {by_scope, by_start};
