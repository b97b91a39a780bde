//! Reads a query name by name, so that every complaint names its parameter.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::http::Uri;
use contract::{ErrorCode, Failure};

use crate::json::{cut, shorten};

/// The parameters of a query that have not been taken yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Reads the query of `uri`.
    ///
    /// # Errors
    /// What is no query, or has a parameter twice: which of the two counts must not be a matter of luck.
    pub(crate) fn of(uri: &Uri) -> Result<Self, Failure> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
        let Query(pairs) = pairs.map_err(|rejection| {
            Failure::new(ErrorCode::InvalidArgument, cut(rejection.body_text()))
        })?;
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs {
            if parameters.contains_key(&name) {
                let shown = shorten(&name);
                let message = format!("{shown} is given more than once");
                return Err(Failure::invalid(shown, message));
            }
            parameters.insert(name, value);
        }
        Ok(Self(parameters))
    }

    /// Takes a parameter.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a parameter that has an older name too, and says by which it was given.
    ///
    /// # Errors
    /// When it was given by both.
    pub(crate) fn take_either(
        &mut self,
        name: &'static str,
        older: &'static str,
    ) -> Result<Option<(&'static str, String)>, Failure> {
        match (self.take(name), self.take(older)) {
            (Some(_), Some(_)) => {
                let message = format!("{older} is the older name of {name}: give one of the two");
                Err(Failure::invalid(older, message))
            }
            (Some(value), None) => Ok(Some((name, value))),
            (None, value) => Ok(value.map(|value| (older, value))),
        }
    }

    /// Refuses what nobody took: a typo must not be taken for a default.
    pub(crate) fn nothing_else(self, known: &[&str]) -> Result<(), Failure> {
        let Some(name) = self.0.into_keys().next() else {
            return Ok(());
        };
        let (name, known) = (shorten(&name), known.join(", "));
        let message = format!("{name} is not a parameter of this path; it takes {known}");
        Err(Failure::invalid(name, message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(query: &str) -> Result<Parameters, Failure> {
        Parameters::of(&format!("/x?{query}").parse().unwrap())
    }

    #[test]
    fn a_parameter_is_taken_once_and_the_rest_is_refused_by_name() {
        let mut parameters = read("a=1%202&b=&c").unwrap();
        assert_eq!(parameters.take("a").as_deref(), Some("1 2"));
        assert_eq!(parameters.take("b").as_deref(), Some(""));
        let failure = parameters.nothing_else(&["a", "b"]).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("c"));
        assert!(failure.message.contains("it takes a, b"), "{failure}");
        assert_eq!(read("a=1&a=1").unwrap_err().field.as_deref(), Some("a"));
        assert_eq!(
            Parameters::of(&Uri::from_static("/x")).unwrap(),
            Parameters::default()
        );
    }

    #[test]
    fn an_older_name_is_as_good_but_not_beside_the_newer() {
        let either = |query: &str| read(query).unwrap().take_either("size", "limit");
        let given = |name, value: &str| Some((name, value.to_owned()));
        assert_eq!(either("size=1").unwrap(), given("size", "1"));
        assert_eq!(either("limit=1").unwrap(), given("limit", "1"));
        assert_eq!(either("").unwrap(), None);
        assert_eq!(
            either("size=1&limit=1").unwrap_err().field.as_deref(),
            Some("limit")
        );
    }

    proptest! {
        #[test]
        fn no_query_makes_the_reader_panic(query in "[!-~]{0,40}") {
            if let Ok(uri) = format!("/x?{query}").parse() {
                let _ = Parameters::of(&uri);
            }
        }
    }
}
