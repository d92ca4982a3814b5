//! Adds parameters to a connection string, and reads the few that the pool needs. libpq parses the string.

use std::fmt::Write;

use super::manager::Target;

/// Adds parameters before those of the string. If a parameter occurs twice, libpq uses the last one.
pub(super) fn with_parameters(string: &str, parameters: &[(&str, String)]) -> String {
    let mut all = String::new();
    let Some(scheme) = ["postgresql://", "postgres://"].into_iter().find(|scheme| string.starts_with(scheme))
    else {
        for (name, value) in parameters {
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            let _ = write!(all, "{name}='{value}' ");
        }
        return all + string;
    };
    for (name, value) in parameters {
        let _ = write!(all, "{name}=");
        for byte in value.bytes() {
            let _ = write!(all, "%{byte:02X}");
        }
        all.push('&');
    }
    let rest = &string[scheme.len()..];
    // A password may contain a `?`. It ends at the `@`.
    let address = rest.find(['@', '/']).filter(|end| rest[*end..].starts_with('@')).unwrap_or(0);
    let question = rest[address..].find('?').map_or(rest.len(), |at| address + at);
    let own = rest[question..].trim_start_matches('?');
    format!("{scheme}{}?{all}{own}", &rest[..question])
}

/// Whether the string may name several hosts. A comma separates them.
pub(super) fn has_several_hosts(string: &str) -> bool {
    string.contains(',')
}

/// The value of `target_session_attrs`. If it occurs twice, the last one counts, as in libpq.
pub(super) fn target(string: &str) -> Target {
    let value = string.rsplit_once("target_session_attrs").map_or("", |(_, rest)| rest);
    let value = value.trim_start_matches([' ', '=', '\'']);
    if value.starts_with("read-write") {
        Target::ReadWrite
    } else if value.starts_with("primary") {
        Target::Primary
    } else {
        Target::Any
    }
}

#[cfg(test)]
mod tests {
    use super::super::manager::Target;
    use super::{target, with_parameters};

    #[test]
    fn parameters_are_added_before_those_of_the_string() {
        let parameters = [("a", "7".to_owned()), ("b", "a'\\b".to_owned())];
        let with = |string: &str| with_parameters(string, &parameters);
        assert_eq!(with("host=h"), "a='7' b='a\\'\\\\b' host=h");
        assert_eq!(with("password=a://b host=h"), "a='7' b='a\\'\\\\b' password=a://b host=h");
        assert_eq!(with("other://h/d"), "a='7' b='a\\'\\\\b' other://h/d");
        for (address, own) in [
            ("postgres://u:p@h/d", ""),
            ("postgresql://h/d", "sslmode=disable"),
            ("postgres://u:a?b@h/d", "x=y"),
            ("postgres://h/a@b", "x=y"),
            ("postgres://a:1,b:2", "target_session_attrs=primary"),
        ] {
            let string = if own.is_empty() { address.into() } else { format!("{address}?{own}") };
            assert_eq!(with(&string), format!("{address}?a=%37&b=%61%27%5C%62&{own}"));
        }
    }

    #[test]
    fn the_last_target_counts_in_both_forms_of_the_string() {
        for (string, expected) in [
            ("host=a,b", Target::Any),
            ("host=a,b target_session_attrs=read-write", Target::ReadWrite),
            ("host=a,b target_session_attrs = 'primary'", Target::Primary),
            ("postgres://a,b/d?target_session_attrs=read-write&x=y", Target::ReadWrite),
            ("postgres://a,b/d?target_session_attrs=primary", Target::Primary),
            ("host=a,b target_session_attrs=primary target_session_attrs=any", Target::Any),
            ("host=a,b target_session_attrs=prefer-standby", Target::Any),
        ] {
            assert_eq!(target(string), expected, "{string}");
        }
    }
}
