//! What the command line takes from the environment, and what `inkstone up` looks for there besides each service's own settings: what would
//! be without effect, and what cannot work there.

use std::ffi::OsStr;

use crate::error::CliError;

/// The command line without the variables that are set and empty, which stands for unset: clap would take them as values.
pub(crate) fn without_empty(command: clap::Command) -> clap::Command {
    without(command, &|name| {
        std::env::var_os(name).is_some_and(|value| value.is_empty())
    })
}

fn without(command: clap::Command, left_out: &dyn Fn(&OsStr) -> bool) -> clap::Command {
    let command = command.mut_args(|option| match option.get_env().is_some_and(left_out) {
        true => option.env(None::<&'static str>),
        false => option,
    });
    command.mut_subcommands(|command| without(command, left_out))
}

/// What stands behind `INKSTONE_` and in front of `__` in settings of services.
pub(crate) const SERVICES: [&str; 5] = [
    "AUTH",
    "GATEWAY",
    "GPU_WORKER",
    "MODEL_REGISTRY",
    "ORCHESTRATOR",
];

/// The variables that look like a service's setting where there is no such service: a typo there is in nobody's settings, so nobody else
/// would complain of it.
pub(crate) fn of_no_service(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let misspelt = |name: &String| {
        let service = name
            .strip_prefix("INKSTONE_")
            .and_then(|rest| rest.split_once("__"));
        service.is_some_and(|(service, _)| !SERVICES.contains(&service))
    };
    let mut found: Vec<String> = names.into_iter().filter(misspelt).collect();
    found.sort_unstable();
    found
}

/// Settings of certificates between services: `inkstone up` has them all in one process, and calls them in the clear on the
/// loopback address, so a folder of certificates would only make them deaf to each other.
///
/// # Errors
/// When the environment names such a folder. `variables`: names, and whether the value is empty.
pub(crate) fn refuse_certificates(
    variables: impl IntoIterator<Item = (String, bool)>,
) -> Result<(), CliError> {
    let is_set = |(name, is_empty): &(String, bool)| {
        let ours = name.starts_with("INKSTONE_") && name.ends_with("__TLS__DIR");
        // `INKSTONE_GATEWAY__TLS__DIR`, and not a section deeper.
        ours && name.matches("__").count() == 2 && !is_empty
    };
    match variables.into_iter().find(is_set) {
        Some((variable, _)) => Err(CliError::CertificatesInOneProcess { variable }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn variables(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(clap::Arg::get_env);
        let own = own.map(|name| name.to_string_lossy().into_owned());
        let nested = command.get_subcommands().flat_map(variables);
        own.chain(nested).collect()
    }

    #[test]
    fn a_variable_that_is_left_out_is_no_options_any_more_and_the_others_are() {
        let whole = variables(&crate::cli::Cli::command());
        let left = without(crate::cli::Cli::command(), &|name| name == "INKSTONE_KEY");
        left.clone().debug_assert();
        let but_keys = whole.iter().filter(|name| *name != "INKSTONE_KEY");
        assert!(but_keys.clone().count() < whole.len());
        assert!(but_keys.eq(variables(&left).iter()));
        let none = without(crate::cli::Cli::command(), &|_| true);
        assert!(variables(&none).is_empty());
    }

    #[test]
    fn a_setting_of_no_service_is_found_and_everything_else_is_not() {
        let names = [
            "INKSTONE_GATWAY__HTTP__LISTEN",
            "INKSTONE_GPUWORKER__WORKER__SLOTS",
            "INKSTONE_GPU_WORKER__WORKER__SLOTS",
            "INKSTONE_AUTH__GRPC__LISTEN",
            "INKSTONE_KEY",
            "INKSTONE_TLS_DIR",
            "PATH",
        ];
        let found = of_no_service(names.map(str::to_owned));
        assert_eq!(found, [names[0], names[1]]);
    }

    #[test]
    fn certificates_between_services_of_one_process_are_refused_by_the_variables_name() {
        let look = |name: &str, is_empty| refuse_certificates([(name.to_owned(), is_empty)]);
        let refused = look("INKSTONE_GATEWAY__TLS__DIR", false).unwrap_err();
        assert!(refused.to_string().contains("INKSTONE_GATEWAY__TLS__DIR"));
        assert!(look("INKSTONE_GATEWAY__TLS__DIR", true).is_ok());
        assert!(look("INKSTONE_GATEWAY__HTTP__TLS__CERT", false).is_ok());
        assert!(look("INKSTONE_AUTH__BROKER__TLS__DIR", false).is_ok());
    }
}
