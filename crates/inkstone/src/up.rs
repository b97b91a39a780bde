//! `inkstone up`: everything, until Ctrl-C.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use lifecycle::TaskFailure;

use crate::cli::UpArgs;
use crate::error::CliError;
use crate::out::{self, complain, say};
use crate::place::{Place, Running};
use crate::platform::{Options, Platform};
use crate::shell::quoted;
use crate::span::in_words;

/// Width of the rules above and below the banner, in characters.
const RULE: usize = 78;

pub(crate) async fn run(data: &Path, args: &UpArgs) -> Result<(), CliError> {
    let began = Instant::now();
    let signal = lifecycle::shutdown_signal().map_err(CliError::Runtime)?;
    tokio::pin!(signal);
    let options = Options {
        listen: args.listen,
        models: args.models.clone(),
        sync_always: args.sync_always,
        log: args.log.clone(),
        otlp_endpoint: args.otlp_endpoint.clone(),
    };
    let place = Place::at(data);
    let mut platform = tokio::select! {
        started = Platform::start(place.clone(), &options) => started?,
        // What has started so far goes down with the start that is dropped here, the broker included.
        () = &mut signal => return Ok(()),
    };
    // Logs go to the same terminal meanwhile: in one piece, none of them comes between its lines.
    let took = began.elapsed();
    let text = banner(&platform.running, &platform.key, &place, took);
    out::write(text.as_bytes());
    if let Some(warning) = in_the_clear(args.listen, &platform.running.gateway) {
        complain!("inkstone: {warning}");
    }
    let failure = tokio::select! {
        () = &mut signal => None,
        failure = platform.keep() => Some(failure),
    };
    // Installed before it is told of.
    let hurry = lifecycle::interrupt().map_err(CliError::Runtime)?;
    say!("{}", stopping(failure.is_some()));
    let whole = platform.stop_unless(hurry).await;
    match whole {
        true => say!("stopped"),
        false => say!("stopped at once; what was under way goes on at the next start"),
    }
    outcome(failure, whole)
}

/// What it ends with. Where something hangs it would begin anew by itself, which is not what someone wants who has ended it at once.
fn outcome(failure: Option<CliError>, whole: bool) -> Result<(), CliError> {
    match failure {
        None => Ok(()),
        Some(CliError::Failed(failure)) if !whole => {
            let failure = TaskFailure {
                hung: false,
                ..failure
            };
            Err(failure.into())
        }
        Some(failure) => Err(failure),
    }
}

/// What a stop waits for, as far as the settings say, and how it ends at once. Where something has `failed` nobody has asked for it so far.
fn stopping(failed: bool) -> String {
    let gateway = settings::load::<gateway::Settings>(None, &[]);
    let drain = gateway.map_or(String::new(), |gateway| {
        let drain = gateway.http.drain.duration();
        format!(" for up to {}", in_words(drain))
    });
    let hurry = match failed {
        true => "Ctrl-C",
        false => "Ctrl-C again",
    };
    format!("stopping: waits{drain} for requests that are open; {hurry} ends it at once")
}

/// What is said where others can reach the public port, and it speaks no TLS.
fn in_the_clear(listen: SocketAddr, url: &str) -> Option<String> {
    let exposed = !listen.ip().to_canonical().is_loopback() && url.starts_with("http://");
    exposed.then(|| {
        format!(
            "warning: whoever is on the way to {listen} can read keys, prompts and pictures, for the port speaks no TLS; set \
             INKSTONE_GATEWAY__HTTP__TLS__CERT and INKSTONE_GATEWAY__HTTP__TLS__KEY, or listen on 127.0.0.1"
        )
    })
}

/// What a person needs who has just started a platform. Another terminal may stand in another folder: every path is whole.
fn banner(running: &Running, key: &str, place: &Place, took: Duration) -> String {
    let (url, data) = (&running.gateway, quoted(place.folder()));
    let (key_file, nats) = (place.join("key"), place.join("nats/nats-server.log"));
    // `make up` does not put it on the path.
    let own = std::env::current_exe().unwrap_or_else(|_| "inkstone".into());
    let mut lines = vec![
        format!("Inkstone is up at {url}  ({:.1} s)", took.as_secs_f32()),
        String::new(),
        format!("{:<15} {}", "data", place.folder().display()),
        format!("{:<15} {key}   (in {})", "key", key_file.display()),
    ];
    for (service, admin) in &running.admin {
        lines.push(format!("{service:<15} {admin}/metrics"));
    }
    lines.extend([
        format!(
            "{:<15} {}   (log in {})",
            "nats-server",
            running.broker,
            nats.display()
        ),
        String::new(),
        format!(
            "{:<15} {} generate --data {data} \"a 3d cat on a blue background\" -o cat.png",
            "next",
            quoted(&own)
        ),
        format!(
            "{:<15} curl {url}/v1/images/generations -H \"Authorization: Bearer $(cat {})\" \\",
            "",
            quoted(&key_file)
        ),
        format!(
            "{:<15}      -H 'Content-Type: application/json' -d '{{\"prompt\":\"a 3d cat\",\"response_format\":\"url\"}}'",
            ""
        ),
    ]);
    if url.starts_with("https://") {
        lines.push(format!(
            "{:<15} where its CA is not trusted here: generate --ca FILE, curl --cacert FILE",
            "certificate"
        ));
    }
    lines.push(format!("{:<15} Ctrl-C", "stop"));
    let rule = "─".repeat(RULE);
    let mut text = format!("\n{rule}\n\n");
    for line in lines {
        let line = format!("  {line}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text + &format!("\n{rule}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lets_others_reach_a_port_without_tls_is_warned() {
        let warned = |listen: &str, scheme: &str| {
            let url = format!("{scheme}://{listen}");
            in_the_clear(listen.parse().unwrap(), &url)
        };
        for listen in ["0.0.0.0:8080", "10.1.2.3:80", "[::]:8080"] {
            assert!(warned(listen, "http").unwrap().contains("TLS__CERT"));
            assert_eq!(warned(listen, "https"), None);
        }
        for listen in ["127.0.0.1:8080", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert_eq!(warned(listen, "http"), None, "{listen}");
        }
    }

    #[test]
    fn a_platform_with_something_that_hangs_begins_anew_unless_someone_has_ended_it_at_once() {
        let hangs = |whole| {
            let failure = TaskFailure {
                service: "gpu-worker",
                task: "engine",
                problem: "does not come back".to_owned(),
                hung: true,
            };
            outcome(Some(failure.into()), whole).unwrap_err()
        };
        let begins_anew =
            |error: CliError| matches!(error, CliError::Failed(failure) if failure.hung);
        assert!(begins_anew(hangs(true)));
        assert!(!begins_anew(hangs(false)));
        assert!(outcome(None, false).is_ok());
    }

    #[test]
    fn who_has_stopped_a_platform_is_told_of_a_second_ctrl_c_and_who_has_not_of_a_first() {
        let asked_for = stopping(false);
        assert!(asked_for.ends_with("; Ctrl-C again ends it at once"));
        let failed = stopping(true);
        assert!(failed.ends_with("; Ctrl-C ends it at once"), "{failed}");
    }

    #[test]
    fn the_banner_stands_between_two_rules_with_address_key_and_what_to_do_next() {
        let running = Running {
            gateway: "http://127.0.0.1:8080".to_owned(),
            admin: vec![("gateway".to_owned(), "http://127.0.0.1:7000".to_owned())],
            process: 1,
            auth: String::new(),
            registry: String::new(),
            orchestrator: String::new(),
            broker: "nats://127.0.0.1:4222".to_owned(),
        };
        let text = |data| {
            let place = Place::at(Path::new(data));
            banner(&running, "ink_x", &place, Duration::from_secs(2))
        };
        let spaced = text("/my data");
        for part in ["generate --data '/my data' \"a", "$(cat '/my data/key')\""] {
            assert!(spaced.contains(part), "{part}: {spaced}");
        }
        // Wherever the next command is given, it finds what lies here.
        let here = std::env::current_dir().unwrap();
        let whole = quoted(&here.join(".inkstone"));
        let relative = text(".inkstone");
        assert!(relative.contains(&format!("generate --data {whole} \"a")));
        assert!(!relative.contains(" .inkstone"), "{relative}");
        let text = text("/srv/ink");
        let rules = text.lines().filter(|line| line.starts_with('─')).count();
        assert_eq!(rules, 2);
        for part in [
            "up at http://127.0.0.1:8080  (2.0 s)",
            "data            /srv/ink\n",
            "ink_x   (in /srv/ink/key)",
            "nats://127.0.0.1:4222   (log in /srv/ink/nats/nats-server.log)",
            "gateway         http://127.0.0.1:7000/metrics",
            "generate --data /srv/ink \"a 3d cat",
            "$(cat /srv/ink/key)\" \\\n",
            "\"response_format\":\"url\"",
            "Ctrl-C",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("--ca FILE"), "{text}");
    }
}
